"""Peak memory of whole commands on the real letters cascade, as the operating system counts it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.e2e.command import CDM, environment

ROOT = Path(__file__).parents[2]
GLYPHS = ROOT.parent / "shared" / "data" / "glyphs64-train.zip"
GIB = 2**30


def peak_bytes(*arguments: object) -> int:
    """Largest resident memory of one ``cdm`` process."""
    process = subprocess.Popen([*CDM, *map(str, arguments)], stdout=subprocess.DEVNULL, env=environment())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # it is waited for already
    assert process.returncode == 0
    return 1024 * usage.ru_maxrss


def test_letters_are_sampled_under_2_gb(tmp_path: Path) -> None:
    peak = peak_bytes("sample", ROOT / "examples/letters", "--steps", "2,2", "--out", tmp_path / "out")
    assert 0.1 * GIB < peak < 2 * GIB


@pytest.mark.skipif(not GLYPHS.exists(), reason="the letters data set is not beside this checkout")
def test_letters_are_trained_under_4_gb(tmp_path: Path) -> None:
    """Both stages, on the whole data set: validation, previews and checkpoints included."""
    peak = peak_bytes("train", GLYPHS, "--out", tmp_path / "run", "--images", 640)
    assert 0.1 * GIB < peak < 4 * GIB
