"""Both curves of ``cdm tune --axis level``: SR fed with the run's own low-res images, and with real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cdm.data.batches import Pyramid
from cdm.evaluate.level_curves import LevelCurves, LevelPoint
from cdm.pipeline.image_source import key_of
from cdm.pipeline.tune_level_bench import LevelBench
from cdm.pipeline.tune_level_trials import LevelTrials, LowRes
from cdm.pipeline.tune_levels import COARSE, level_grid

SHARE, LEAST = 4, 256
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
    real = bench.on_real(next(iter(generated.values())), real_low_res(bench, stage, count))
    points: dict[str, list[LevelPoint]] = {name: [] for name in (*generated, "real")}
    missing = 0
    for name, trials in (*generated.items(), ("real", real)):
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
    made = {name: tuple(points[name]) for name in generated}
    return LevelCurves(bench.cascade.stages[stage].name, count, made, tuple(points["real"]), missing)


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
