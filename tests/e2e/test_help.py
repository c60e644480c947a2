"""Help is quick and fits a screen; wrong usage is told shortly."""

import resource
import subprocess
import sys

import pytest
from tests.e2e.command import CDM, environment, run


def test_help_is_quick():
    """Under half a second of processor time, the best of three: other work on the machine is not what is measured."""
    times = []
    for _ in range(3):
        begin = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*CDM, "--help"], check=True, capture_output=True, env=environment())
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(end.ru_utime - begin.ru_utime + end.ru_stime - begin.ru_stime)
    assert min(times) < 0.5, times


@pytest.mark.parametrize(
    "command", [(), ("train",), ("sample",), ("evaluate",)], ids=lambda words: "cdm " + " ".join(words)
)
def test_help_imports_no_torch(command):
    python = [sys.executable, "-X", "importtime", "-m", "cdm.cli.main", *command, "--help"]
    done = subprocess.run(python, check=True, capture_output=True, text=True, env=environment())
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "cdm.cli.options" in imported
    assert not imported & {"torch", "numpy", "PIL", "matplotlib"}


@pytest.mark.parametrize("command", ["train", "sample", "upscale", "evaluate", "tune", "compare", "info"])
def test_help_of_a_command_fits_a_screen(command):
    ran = run(command, "--help")
    assert ran.code == 0 and not ran.err, ran
    assert len(ran.out.splitlines()) < 45
    assert max(map(len, ran.out.splitlines())) <= 100
    assert "None" not in ran.out
    if "--precision" in ran.out:
        assert ("fp16" in ran.out) == (command != "train")  # which refuses it


def test_the_bare_command_shows_what_there_is():
    ran = run()
    assert ran.code == 0
    assert all(command in ran.out for command in ("train", "sample", "upscale", "evaluate", "compare", "info"))


USAGE = {
    "unknown command": (("paint",), "paint"),
    "unknown flag": (("sample", "run", "--steeps", "3"), "--steeps"),
    "missing value": (("sample", "run", "--class"), "--class"),
    "missing RUN": (("train", "data"), "--out"),
    "text for a number": (("train", "data", "--out", "run", "--images", "many"), "--images"),
}


@pytest.mark.parametrize("case", USAGE)
def test_usage(case):
    arguments, word = USAGE[case]
    ran = run(*arguments)
    assert ran.code == 2, ran
    assert word in ran.out + ran.err
    assert "Traceback" not in ran.err and len(ran.err.splitlines()) <= 20
