"""The real command in a process of its own, as a user runs it, and what must hold of its answers."""

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cdm
from cdm.cli.main import main

CDM = [sys.executable, "-m", "cdm.cli.main"]
PROGRESS = re.compile(r": (.* left|[\d,]+ of [\d,]+)$")
"""A plain line of progress, which a slow machine shows."""
TIMEOUT_S = 600


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"exit code {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


def environment(**more: str) -> dict[str, str]:
    own = {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "PYTHONPATH": str(Path(cdm.__file__).parents[1])}
    return {**os.environ, **own, **more}


def run(
    *arguments: object, env: dict[str, str] | None = None, cwd: Path | None = None,
    preexec_fn: Callable[[], Any] | None = None,
) -> Ran:  # fmt: skip
    """``cdm`` with these arguments, to its end."""
    done = subprocess.run(
        [*CDM, *map(str, arguments)], capture_output=True, text=True, env=env or environment(), cwd=cwd,
        timeout=TIMEOUT_S, preexec_fn=preexec_fn,
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr)


def run_here(*arguments: object) -> Ran:
    """``cdm`` in this process: its entry point, exit code and output are those of the command, without its start-up."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Ran(code, out.getvalue(), err.getvalue())


@contextmanager
def started(*arguments: object, until: str) -> Iterator[subprocess.Popen[str]]:
    """``cdm`` in the background, once it has printed a line with ``until``; killed in the end if it still runs."""
    line = [*CDM, *map(str, arguments)]
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            seen = ""
            while until not in seen:
                text = process.stdout.readline()
                assert text, f"ended without {until!r}: {Ran(process.wait(), seen, process.stderr.read())}"
                seen += text
            yield process
        finally:
            process.kill()


def finish(process: subprocess.Popen[str]) -> Ran:
    out, err = process.communicate(timeout=TIMEOUT_S)
    return Ran(process.returncode, out, err)


def refused(ran: Ran, *words: str) -> None:
    """Exit code 2, and one sentence with all of ``words``: no traceback, no library's noise, nothing but progress."""
    assert ran.code == 2, ran
    lines = [line for line in ran.err.strip().splitlines() if not PROGRESS.search(line)]
    assert len(lines) == 1 and lines[0].startswith("cdm: ") and lines[0][-1] in ".?", ran
    for word in words:
        assert word in lines[0], f"no {word!r} in: {lines[0]}"


def succeeded(ran: Ran, *words: str) -> None:
    """Exit code 0, ``words`` on stdout, and nothing but progress on stderr (a slow machine shows some)."""
    assert ran.code == 0 and not [line for line in ran.err.splitlines() if not PROGRESS.search(line)], ran
    for word in words:
        assert word in ran.out, f"no {word!r} in: {ran.out}"
