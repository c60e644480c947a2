"""Whether other processes keep the CPU cores busy that a training wants."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

LOOK_EVERY = 20.0
"""Seconds."""
BUSY, SHARE = 0.5, 0.2
"""Cores that others have taken, and their share of all, from which on it is told."""
IDLE = ("idle", "iowait", "steal")
FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
"""Of a core's line in /proc/stat (man 5 proc). What the host of a virtual machine takes is no process here."""


def busy_seconds(cores: set[int], stat: Path = Path("/proc/stat")) -> float | None:
    """What all processes together have used of ``cores``, since the machine was started. None: not told here."""
    try:
        lines = stat.read_text().splitlines()
    except OSError:
        return None
    ticks = 0
    for name, *numbers in (line.split() for line in lines if line.startswith("cpu")):
        if name.removeprefix("cpu").isdigit() and int(name.removeprefix("cpu")) in cores:
            ticks += sum(int(n) for field, n in zip(FIELDS, numbers, strict=False) if field not in IDLE)
    return ticks / os.sysconf("SC_CLK_TCK")


class Cores:
    """Looks now and again, and tells once. A thread that has lost its core keeps all others waiting at the end of every
    operation: on two cores, one of them busy, one thread trains 1.7 times as fast as two (docs/results.md)."""

    def __init__(self, read: Callable[[], tuple[float, float, float | None]] | None = None) -> None:
        """``read``: for tests. Seconds on the clock, of this process on all cores, of all processes on them."""
        self._cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
        self._read, self._told = read or self._now, False
        self._last = self._read()

    def _now(self) -> tuple[float, float, float | None]:
        return time.perf_counter(), time.process_time(), busy_seconds(self._cores)

    def warning(self) -> str | None:
        """A sentence when others have taken cores since the last look that torch's threads want too."""
        now, last = self._read(), self._last
        wall = now[0] - last[0]
        if self._told or wall < LOOK_EVERY or now[2] is None or last[2] is None:
            return None
        self._last = now
        others = (now[2] - last[2] - (now[1] - last[1])) / wall
        cores, threads = len(self._cores), torch.get_num_threads()
        fewer = max(1, cores - round(others))
        if others < max(BUSY, SHARE * cores) or fewer >= threads:
            return None
        self._told = True
        return (
            f"other processes keep {others:.1f} of the {cores} cores busy, and {threads} threads wait for each other; "
            f"if they stay, Ctrl-C and the same command with --threads {fewer} may be faster"
        )
