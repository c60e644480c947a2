"""Memory that tensors have given back stays with the process, so that the next ones need no fresh pages."""

import os
import subprocess
import sys

import pytest

from cdm.cli.main import main
from cdm.heap import keep_memory

CHILD = """
import resource, sys
import torch
from cdm.heap import keep_memory
torch.set_num_threads(1)
kept = keep_memory() if sys.argv[1] == "keep" else None
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for size in range(2**21, 2**23, 2**17):  # 8 to 32 MB, each larger than all before: by default in pages of its own
    torch.ones(size)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = sum(4 * size // 4096 for size in range(2**21, 2**23, 2**17))


def child(argument: str, **env: str) -> tuple[str, int]:
    """What keep_memory said in a fresh process, and the pages that it asked the kernel for."""
    without = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    line = [sys.executable, "-c", CHILD, argument]
    done = subprocess.run(line, capture_output=True, text=True, env=without | env, check=True)
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux") or os.confstr("CS_GNU_LIBC_VERSION") is None, reason="glibc")
def test_tensors_take_pages_that_others_have_given_back() -> None:
    kept, faults = child("keep")
    assert kept == "True" and faults < PAGES / 4
    assert child("as it is")[1] > PAGES / 2


@pytest.mark.parametrize("own", [{"MALLOC_ARENA_MAX": "1"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=65536"}])
def test_who_has_set_malloc_up_is_left_alone(own: dict[str, str]) -> None:
    assert child("keep", **own)[0] == "False"


@pytest.mark.parametrize("library", [OSError("no such library"), object()])
def test_another_c_library(monkeypatch: pytest.MonkeyPatch, library: object) -> None:
    def load(name: None) -> object:
        if isinstance(library, OSError):
            raise library
        return library

    monkeypatch.setattr("cdm.heap.ctypes.CDLL", load)
    assert keep_memory() is False


def test_the_command_does_so(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr("cdm.cli.main.keep_memory", lambda: called.append(True))
    with pytest.raises(SystemExit):
        main(["--help"])
    assert called == [True]
