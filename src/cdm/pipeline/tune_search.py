"""The search of ``cdm tune`` in one stage: which sampler, grid and number of evaluations, at what quality.

Two rounds. First every sampler meets every grid, with few images and at two numbers of evaluations; those that do best
at either go on. Then these climb the whole ladder of evaluations with all images. A result is a line of a file as soon
as it is there, so a search that was stopped goes on; what the time does not suffice for is left out, cheapest first
done.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cdm.artifacts import told_by_path
from cdm.evaluate.intervals import Z95
from cdm.samplers import taken

SAMPLERS = ("dpmpp", "dpmpp_sde", "ddpm", "heun", "heun_churn")
GRIDS = ("profile", "logsnr", "edm", "cosine")
"""The likeliest first: a race that is short of time leaves out the last."""
LADDERS = ((4, 6, 8, 12, 16, 24, 32, 64, 128), (2, 3, 4, 6, 8, 12, 16, 32, 64))
"""Evaluations that are tried: of the base, and of an SR stage."""
RACES = ((8, 24), (4, 12))
"""Evaluations at which all meet, of the base and of an SR stage."""
KEPT = 3
"""How many pairs of sampler and grid go on from each race."""
RACE_SHARE = 4
"""A race takes one image in so many,"""
LEAST_RACE = 256
"""but at least these: the covariance of fewer says nothing."""
RACE_TIME = 0.2
"""Each race takes this share of the time at most."""


@dataclass(frozen=True)
class Candidate:
    """``evaluations``: network evaluations per image at most."""

    sampler: str
    grid: str
    evaluations: int

    @property
    def words(self) -> str:
        return f"{self.sampler}, {self.grid} grid, {self.evaluations} evaluations"


def within(sampler: str, grid: str, limit: int) -> Candidate:
    """With as many evaluations as the sampler takes of ``limit``: Heun's method an odd number."""
    return Candidate(sampler, grid, taken(sampler, limit))


@dataclass(frozen=True)
class Measured:
    """A candidate's Fréchet distance with its 95 % interval, from so many images in so many seconds."""

    candidate: Candidate
    value: float
    low: float | None
    high: float | None
    images: int
    seconds: float


@dataclass
class Budget:
    """Seconds for the whole search, those of earlier calls not counted."""

    seconds: float
    began: float

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)


class Ledger:
    """What was measured, one JSON line each, by a key that names stage, weights, data and images."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Measured] = {}
        with told_by_path(path):
            text = path.read_text(errors="replace") if path.exists() else ""
        self._cut = bool(text) and not text.endswith("\n")
        for line in text.splitlines():
            try:
                row = json.loads(line)
                key, candidate = row.pop("key"), Candidate(**row.pop("candidate"))
                self._known[key] = Measured(candidate, **row)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # a line that a kill cut short: measured again

    def get(self, key: str) -> Measured | None:
        return self._known.get(key)

    def put(self, key: str, measured: Measured) -> None:
        self._known[key] = measured
        with told_by_path(self._path), open(self._path, "a") as file:
            file.write("\n" * self._cut + json.dumps({"key": key, **asdict(measured)}) + "\n")
        self._cut = False


@dataclass(frozen=True)
class Trial:
    """How the search measures.

    key: ``key(candidate, images)`` names a measurement. measure: makes it. probe: a small one, of a few images in a few
    seconds, that says how fast it goes. profile: evaluations, times images, that a grid of the stage's own takes once.
    """

    key: Callable[[Candidate, int], str]
    measure: Callable[[Candidate, int], Measured]
    probe: Callable[[], Measured]
    profile: int = 0


@dataclass
class _Pace:
    """Seconds per evaluation and image, and per image besides, of what was measured: the slowest counts; of a probe as
    long as nothing was."""

    probe: Callable[[], Measured]
    profile: int  # 0 once it is there
    per_evaluation: float = 0.0
    _probed: float = 0.0

    def learn(self, measured: Measured) -> None:
        self.per_evaluation = max(self.per_evaluation, self._of(measured))

    def seconds(self, candidate: Candidate, images: int) -> float:
        if not self.per_evaluation and not self._probed:
            self._probed = self._of(self.probe())
        first = self.profile if candidate.grid == "profile" else 0
        return (self.per_evaluation or self._probed) * (images * (candidate.evaluations + 2) + first)

    def _of(self, measured: Measured) -> float:
        return measured.seconds / (measured.images * (measured.candidate.evaluations + 2))  # 2: features and the start


def search(
    trial: Trial, ledger: Ledger, budget: Budget, *, is_base: bool, images: int, most: int,
    grids: Sequence[str] = GRIDS, present: Candidate | None = None,
) -> tuple[list[Measured], list[Candidate]]:  # fmt: skip
    """Returns what was measured with all ``images``, and what the time did not suffice for, in the races too.

    most: evaluations that the stage can take (a table has no more levels). present: how the stage is sampled now; it is
    measured first, if the time suffices.
    """
    pace, left_out = _Pace(trial.probe, trial.profile), []

    def measured(candidate: Candidate, count: int, left: float) -> Measured | None:
        key = trial.key(candidate, count)
        found = ledger.get(key)
        if found is None:
            if pace.seconds(candidate, count) > left:
                left_out.append(candidate)
                return None
            found = trial.measure(candidate, count)
            ledger.put(key, found)
            pace.profile *= candidate.grid != "profile"
        pace.learn(found)
        return found

    climbed = []
    if present is not None and (now := measured(present, images, budget.left())) is not None:
        climbed.append(now)
    few = max(images // RACE_SHARE, min(LEAST_RACE, images))
    going_on: list[tuple[str, str]] = []
    met: set[tuple[str, str]] = set()
    for evaluations in (min(count, most) for count in RACES[not is_base]):
        entries = [within(sampler, grid, evaluations) for grid in grids for sampler in SAMPLERS]
        end = max(0.0, budget.left() - RACE_TIME * budget.seconds)
        raced = [found for entry in entries if (found := measured(entry, few, budget.left() - end)) is not None]
        met |= {(each.candidate.sampler, each.candidate.grid) for each in raced}
        best = sorted(raced, key=lambda each: each.value)[:KEPT]
        pairs = [(each.candidate.sampler, each.candidate.grid) for each in best]
        going_on += [pair for pair in pairs if pair not in going_on]
    unmet = {(each.sampler, each.grid): each for each in left_out if (each.sampler, each.grid) not in met}
    left_out[:] = unmet.values()  # a pair that missed one race has run in the other
    for evaluations in sorted({min(count, most) for count in LADDERS[not is_base]}):
        for sampler, grid in going_on:
            candidate = within(sampler, grid, evaluations)
            if candidate in [each.candidate for each in climbed]:
                continue
            if (found := measured(candidate, images, budget.left())) is not None:
                climbed.append(found)
    return climbed, left_out


def front(points: Sequence[Measured]) -> list[Measured]:
    """Those that no other equals in quality with as few evaluations, by rising number of evaluations."""
    kept: list[Measured] = []
    for point in sorted(points, key=lambda each: (each.candidate.evaluations, each.value)):
        if not kept or point.value < kept[-1].value:
            kept.append(point)
    return kept


FAST, BALANCED = 1.25, 1.05
"""The distance, as a multiple of the best on the front, that still does."""


def pick(points: Sequence[Measured], slack: float) -> Measured:
    """The fewest evaluations whose distance is at most ``slack`` times the best, and one standard error of the best
    more (Breiman et al. 1984, section 3.4.3): the best of many measurements is so partly by chance. ``slack`` 1 is the
    best itself."""
    kept = front(points)
    best = kept[-1]
    if slack == 1 or best.high is None:
        error = 0.0
    else:
        error = (best.high - best.value) / Z95
    return next(point for point in kept if point.value <= slack * best.value + error)
