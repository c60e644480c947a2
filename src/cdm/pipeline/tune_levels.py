"""The search of ``cdm tune --axis level`` in one SR stage: which augmentation level, from few images.

A coarse grid over the range, with few images of each level; the neighbours of the best at half its step; then ever more
images of ever fewer levels. Two levels are compared on the same seeds, where most of the noise cancels: a level that is
worse for sure does not go on. It takes under a third of the images that all ``GRID`` levels would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from cdm.evaluate.intervals import Estimate

GRID = 11
"""Levels of the exhaustive search that this stands for: its steps are those between them."""
COARSE = 2
"""The first grid takes every so many."""
ROUNDS = (8, 4, 2, 1)
"""Each round takes one image in so many."""
LEAST_ROUND = 128
"""Images of a level at least."""
KEPT = (3, 3, 2)
"""Levels that go on from each round at most."""


@runtime_checkable
class LevelTrial(Protocol):
    """How the search measures. Images are made once: more of them go on from those that are there."""

    def allows(self, level: float) -> bool: ...

    def affords(self, level: float, images: int) -> bool:
        """Whether the time suffices for so many images of this level."""
        ...

    def value(self, level: float, images: int) -> float:
        """The distance to real images; less is better."""
        ...

    def worse(self, level: float, than: float, images: int) -> Estimate:
        """How much worse, on the same seeds; ``low`` above 0: for sure."""
        ...


@dataclass(frozen=True)
class LevelSearch:
    """best: None where the time did not suffice for the first round. values: (images, distance) of each level, with the
    most images it had. rejected: levels that were worse than the best for sure. finished: every round was made."""

    best: float | None
    values: dict[float, tuple[int, float]]
    rejected: tuple[float, ...]
    finished: bool


def level_grid(low: float, high: float) -> list[float]:
    """``GRID`` levels from ``low`` to ``high``, rounded so that they can be typed, but never out of that range."""
    return [min(max(round(low + (high - low) * i / (GRID - 1), 4), low), high) for i in range(GRID)]


def rounds_of(images: int) -> list[int]:
    """Images of a level in each round, rising to ``images``."""
    return sorted({max(images // part, min(LEAST_ROUND, images)) for part in ROUNDS})


def search_levels(trial: LevelTrial, low: float, high: float, images: int) -> LevelSearch:
    """The best level within ``low`` to ``high``, told by ``images`` of each finalist."""
    grid = [level for level in level_grid(low, high) if trial.allows(level)]
    counts = rounds_of(images)
    refined = min(1, len(counts) - 2)  # the round in which the neighbours of the best come in
    going_on, best = grid[::COARSE], None
    values: dict[float, tuple[int, float]] = {}
    rejected: list[float] = []
    for k, count in enumerate(counts):
        now = _measure(trial, going_on, count)
        if now and k == refined:
            place = grid.index(min(now, key=now.__getitem__))
            near = [level for level in grid[max(0, place - 1) : place + 2] if level not in now and level not in values]
            more = _measure(trial, near, count)
            now = None if more is None else now | more
        if not now:
            return LevelSearch(best, values, tuple(sorted(rejected)), finished=False)
        best = min(now, key=now.__getitem__)
        values |= {level: (count, value) for level, value in now.items()}
        if count == counts[-1]:
            break
        lost = [level for level in now if level != best and _is_worse(trial.worse(level, best, count))]
        rejected += lost
        going_on = sorted((level for level in now if level not in lost), key=now.__getitem__)[: KEPT[k]]
    return LevelSearch(best, values, tuple(sorted(rejected)), finished=True)


def _measure(trial: LevelTrial, levels: Sequence[float], images: int) -> dict[float, float] | None:
    """Distances; None where the time does not suffice for all: a part of a round tells nothing."""
    measured = {}
    for level in levels:
        if not trial.affords(level, images):
            return None
        measured[level] = trial.value(level, images)
    return measured


def _is_worse(gap: Estimate) -> bool:
    return gap.low is not None and gap.low > 0
