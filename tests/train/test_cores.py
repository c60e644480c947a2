"""A training that shares its cores is told so."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cdm.train import cores
from cdm.train.cores import Cores, busy_seconds

STAT = """cpu  1000 0 0 0 0 0 0 0 0 0
cpu0 100 20 30 4000 500 6 7 8 90 10
cpu1 200 0 0 5000 0 0 0 0
cpu10 999 0 0 0 0 0 0 0
intr 12 34
"""


def test_idle_and_stolen_time_and_guests_do_not_count(tmp_path: Path) -> None:
    """Guests are part of user time already."""
    (tmp_path / "stat").write_text(STAT)
    tick = os.sysconf("SC_CLK_TCK")
    assert busy_seconds({0}, tmp_path / "stat") == 163 / tick
    assert busy_seconds({0, 1}, tmp_path / "stat") == 363 / tick
    assert busy_seconds({0}, tmp_path / "none") is None


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="this machine does not tell how busy its cores are")
def test_a_busy_process_is_seen() -> None:
    """On the core where it is bound to be, for at least as long as it ran there."""
    core = min(os.sched_getaffinity(0))
    bound = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    before, own = busy_seconds({core}), os.times().children_user
    with subprocess.Popen([sys.executable, "-c", bound]) as other:
        time.sleep(2)
        other.kill()
    after, ran = busy_seconds({core}), os.times().children_user - own
    assert before is not None and after is not None and after - before > ran - 0.1 > 0


@pytest.mark.parametrize(
    ("others", "threads", "told"),
    [
        (0.3, 2, None),
        (0.9, 2, "1"),
        (0.9, 1, None),
        (2.0, 2, "1"),
        (2.0, 1, None),
        (2.6, 8, "5"),
        (1.5, 8, None),
        (1.7, 8, "6"),
    ],
)
def test_what_is_told(others: float, threads: int, told: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2 cores, of 8 where there are so many threads. This process has used 1.1 cores."""
    clock = {"now": 0.0}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(max(2, threads))), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    watch = Cores(lambda: (clock["now"], 1.1 * clock["now"], (1.1 + others) * clock["now"]))
    clock["now"] = cores.LOOK_EVERY - 1
    assert watch.warning() is None  # too soon
    clock["now"] = cores.LOOK_EVERY + 1
    said = watch.warning()
    assert (said is None) == (told is None)
    if told is not None:
        assert said is not None and f"keep {others:.1f} of the" in said and f"--threads {told} may" in said
        clock["now"] *= 3
        assert watch.warning() is None  # once


def test_a_busy_moment_long_ago_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look is at the time since the last one."""
    now = [0.0, 0.0, 0.0]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    watch = Cores(lambda: (now[0], now[1], now[2]))
    now[:] = [100.0, 100.0, 140.0]
    assert watch.warning() is None
    now[:] = [130.0, 130.0, 190.0]
    assert watch.warning() is not None


def test_where_it_is_not_known_nothing_is_told() -> None:
    clock = iter(range(0, 1000, 100))
    watch = Cores(lambda: (next(clock), 0.0, None))
    assert watch.warning() is None and watch.warning() is None
