"""Both curves of ``cdm tune --axis level``: SR fed with the run's own low-res images, and with real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from cdm.data.batches import Pyramid
from cdm.evaluate.intervals import Estimate
from cdm.evaluate.level_curves import Gap, LevelCurves, LevelPoint
from cdm.pipeline.image_source import key_of
from cdm.pipeline.tune_level_bench import LevelBench
from cdm.pipeline.tune_level_trials import LevelTrials, LowRes
from cdm.pipeline.tune_levels import COARSE, level_grid

SHARE, LEAST = 2, 256
"""A point takes one in so many of a finalist's images, and at least so many."""


def curves_of(
    bench: LevelBench, stage: int, generated: Mapping[str, LevelTrials], found: Sequence[float]
) -> LevelCurves:
    """The coarse grid of one SR stage and the levels found, on equal numbers of images by the same half of the real
    ones. Real low-res images come from the other half. What the time does not suffice for is left out and counted."""
    request = bench.request
    count = min(max(request.images // SHARE, LEAST), request.images, bench.unused.count)
    low, high = bench.range_of(stage)
    levels = sorted({*level_grid(low, high)[::COARSE], *found})
    low_res = real_low_res(bench, stage, count)
    real = bench.on_real(next(iter(generated.values())), low_res)
    points: dict[str, list[LevelPoint]] = {name: [] for name in (*generated, "real")}
    drawn = {**generated, "real": real}
    if low_res.labels is None and bench.labels is not None:
        bench.say("the curve of real low-res images is left out: their classes are not known, generated ones have some")
        del drawn["real"]
    missing = 0
    for name, trials in drawn.items():
        trials.budget = bench.budget
        for level in levels:
            if not trials.allows(level):
                continue
            if trials.affords(level, count):
                points[name].append(point_at(trials, level, count))
            else:
                missing += 1
    if missing:
        bench.say(f"{missing} points of the curves left out for lack of time; the same command again goes on")
    known = {point.level for point in points["real"]}
    made = {name: _compared(trials, points[name], count, real, known) for name, trials in generated.items()}
    compared = _compared(real, points["real"], count, real, set())
    return LevelCurves(bench.cascade.stages[stage].name, count, made, compared, missing)


def _compared(
    trials: LevelTrials, points: list[LevelPoint], count: int, real: LevelTrials, known: set[float]
) -> tuple[LevelPoint, ...]:
    """The points with how much worse they are than others. ``known``: levels that real images were measured at."""
    if not points:
        return ()
    best, first = min(points, key=lambda point: point.distance), points[0]
    compared = []
    for point in points:
        over_best = gap_of(trials.worse(point.level, best.level, count)) if point is not best else None
        over_first = gap_of(trials.worse(point.level, first.level, count)) if point is not first else None
        over_real = None
        if point.level in known:
            over_real = gap_of(trials.metric.worse(trials.rows(point.level, count), real.rows(point.level, count)))
        paired = None
        if over_best is not None:
            move = trials.metric.moved
            paired = (move(best.distance, over_best.low), move(best.distance, over_best.high))
        compared.append(replace(point, against_best=over_best, against_first=over_first, against_real=over_real,
                                paired=paired))  # fmt: skip
    return tuple(compared)


def gap_of(found: Estimate) -> Gap:
    assert found.low is not None and found.high is not None
    return Gap(found.value, found.low, found.high)


def point_at(trials: LevelTrials, level: float, images: int) -> LevelPoint:
    told = trials.cascade.stages[trials.stage].aug_logsnr(level)
    assert told is not None  # only stages with noise are searched
    found = trials.estimate(level, images)
    return LevelPoint(level, told, found.value, found.low, found.high)


def real_low_res(bench: LevelBench, stage: int, count: int) -> LowRes:
    """Real images of the unused half at the size of the stage below, spread evenly over it."""
    real = bench.unused
    rows = np.unique(np.linspace(0, real.count - 1, count).round().astype(np.int64))
    images = np.asarray(Pyramid(real.array, bench.cascade.config.sizes).at(stage - 1)[real.rows[rows]])
    labels = None if real.labels is None else real.labels[rows]
    return LowRes(images, real.array.window, labels, key_of(real.key, rows.tolist(), stage))
