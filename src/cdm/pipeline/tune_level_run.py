"""``cdm tune --axis level``: search each SR stage's augmentation level, and the hand-over, and make them the default.

The whole cascade has one hand-over, so each is taken through all SR stages, from the lowest up, and they are compared
at the top. What was found is measured again on seeds and real images that the search has not seen.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import stdev
from typing import Any

from cdm.artifacts import RunLock, make_folder, save_json
from cdm.cascade import load_config
from cdm.config import SamplingConfig, to_dict
from cdm.errors import UserError
from cdm.evaluate.intervals import Estimate
from cdm.evaluate.level_curves import LevelCurves
from cdm.evaluate.level_report import level_report
from cdm.pipeline.generate import Progress
from cdm.pipeline.judge import open_judge
from cdm.pipeline.tune_level_bench import LevelBench, Say, halves, hand_overs, searched_stages
from cdm.pipeline.tune_level_curves import curves_of, gap_of, point_at
from cdm.pipeline.tune_level_trials import SEEDS, LevelTrials
from cdm.pipeline.tune_levels import COARSE, GRID, LevelSearch, level_grid, rounds_of, search_levels
from cdm.pipeline.tune_request import TuneRequest
from cdm.pipeline.tune_search import Budget
from cdm.pipeline.tune_store import store_sampling
from cdm.runtime import set_threads
from cdm.settings import make_settings
from cdm.train.log import duration

STUDENT_2 = 4.303
"""Student's t for 95 %, 2 degrees of freedom: of three seeds."""
SEARCH_TIME = 0.6
"""Of the budget, what the searches may take; then come the measurements on fresh seeds, and the curves."""


@dataclass(frozen=True)
class Searched:
    """One SR stage under one hand-over. ``trials.at(best)`` are its settings."""

    trials: LevelTrials
    search: LevelSearch
    best: float

    @property
    def images(self) -> int:
        """That the best was told by."""
        return self.search.values[self.best][0]

    def points(self) -> list[dict[str, Any]]:
        """Every level by as many images as it had, and how much worse than the best by as many."""
        rows = []
        for level, (count, _) in sorted(self.search.values.items()):
            gap = None if level == self.best else self.trials.worse(level, self.best, count)
            told = "" if gap is None else self.trials.metric.told(gap)
            row = replace(point_at(self.trials, level, count), against_best=None if gap is None else gap_of(gap))
            rows.append(row.told() | {"images": count, "rejected": level in self.search.rejected, "told": told})
        return rows


def check_levels(request: TuneRequest) -> None:
    """Whether the run has levels that can be searched as asked, told from its configuration alone.

    Raises:
        UserError: it has not.
    """
    request.check_run()
    config = load_config(request.run)
    searched_stages(config, request)
    hand_overs(config, request, lambda _: None)


def tune_levels(request: TuneRequest, progress: Progress, say: Say) -> Path:
    """Search, measure again, store in ``cascade.json``, and write ``RUN/tuning/levels.json`` and ``levels.html``.

    Raises:
        UserError: no SR stage with levels to choose from, too few real images, or too little time.
    """
    request.check_run()
    began = time.monotonic()
    set_threads(request.threads)
    config = load_config(request.run)
    stages, ways = searched_stages(config, request), hand_overs(config, request, say)
    with RunLock(make_folder(request.out)):
        judge = open_judge(request.judged(), progress, say)
        half, unused = halves(judge, request)
        bench = LevelBench(request, judge, half, unused, Budget(60 * request.axis_minutes, time.monotonic()),
                           progress, say)  # fmt: skip
        say(f"levels are searched with {half.count:,} of {judge.val.count:,} real images and checked on the others")
        share = SEARCH_TIME * bench.budget.seconds / (len(ways) * len(stages))
        climbed = {way: found for way in ways if (found := _climb(bench, way, stages, share))}
        if not climbed:
            raise UserError(
                "no level lies within what the stage below can stop at, above its last step; expected one to truncate "
                "at: use --hand-over non_truncated."
            )
        way, why = _choose(climbed)
        say(why)
        chosen = climbed[way][-1].trials.at(climbed[way][-1].best)
        again = _again(bench, climbed[way][-1], chosen)
        kept = judge.cascade.settings() if again["worse for sure"] else chosen
        curves = [curves_of(bench, stage, {w: s[k].trials for w, s in climbed.items()},
                            [s[k].best for s in climbed.values()])
                  for k, stage in enumerate(stages)]  # fmt: skip
        told = _told(bench, climbed, why, again, kept, curves, began)
        save_json(request.out / "levels.json", told)
        report = level_report(request.out / "levels.html", told, curves, request.command)
        _store(request, bench, kept)  # last: whoever is stopped before compares with the same default again
    for line in (again["words"], f"from now on: {_words(kept)}", *(word for each in curves for word in each.words)):
        say(line)
    return report


def _climb(bench: LevelBench, way: str, stages: Sequence[int], seconds: float) -> list[Searched]:
    """One hand-over through the SR stages; empty where no level allows it."""
    settings = replace(bench.cascade.settings(), hand_over=way)
    climbed = []
    for stage in stages:
        name = bench.cascade.stages[stage].name
        low, high = bench.range_of(stage)
        trials = bench.trials(stage, settings, Budget(seconds, time.monotonic()))
        grid = level_grid(low, high)
        allowed = [level for level in grid if trials.allows(level)]
        if not any(allowed):  # at level 0 there is nothing to truncate
            return []
        if len(allowed) < len(grid):
            bench.say(f"stage {name}, {way}: the stage below can stop at {allowed[0]:g} to {allowed[-1]:g} only")
        found = search_levels(trials, low, high, bench.request.images)
        if found.best is None:
            raise _too_short(bench, trials, allowed, f"stage {name}, {way}", seconds)
        count, value = found.values[found.best]
        early = "" if found.finished else "; stopped by --minutes, the same command goes on"
        bench.say(
            f"stage {name}, {way}: level {found.best:g}, distance {value:.3g} by {count:,} images; "
            f"{_spent(found):,} images in all, where {GRID} levels in full would take "
            f"{GRID * bench.request.images:,}{early}"
        )
        climbed.append(Searched(trials, found, found.best))
        settings = trials.at(found.best)
    return climbed


def _too_short(bench: LevelBench, trials: LevelTrials, allowed: Sequence[float], what: str, share: float) -> UserError:
    """share: seconds that this search has of the budget."""
    count, levels = rounds_of(bench.request.images)[0], allowed[::COARSE]
    needed = sum(trials.seconds(level, count) for level in levels)
    minutes = 1.2 * bench.request.minutes * needed / share
    return UserError(
        f"--minutes {bench.request.minutes:g} leaves {duration(share)} for {what}, whose first round still takes about "
        f"{duration(needed)} ({len(levels)} levels, {count} images of each); expected --minutes {minutes:.2g} or more."
    )


def _spent(found: LevelSearch) -> int:
    """Images of all levels."""
    return sum(count for count, _ in found.values.values())


def _choose(climbed: dict[str, list[Searched]]) -> tuple[str, str]:
    """The hand-over, and why: the truncated one costs fewer evaluations, so it has to be no worse."""
    if len(climbed) == 1:
        (way,) = climbed
        return way, f"hand-over {way}: the only one that was searched"
    tops = {way: found[-1] for way, found in climbed.items()}
    if all(found.best == 0 for found in climbed["truncated"]):
        return "non_truncated", "at level 0 both hand-overs are the same: non_truncated"
    count = min(top.images for top in tops.values())
    rows = {way: top.trials.rows(top.best, count) for way, top in tops.items()}
    trials = tops["truncated"].trials
    gap = trials.metric.worse(rows["truncated"], rows["non_truncated"])
    way = "non_truncated" if _is_above(gap) else "truncated"
    why = "it is better" if _is_above(gap) or _is_below(gap) else "no difference shows, and it takes fewer evaluations"
    return way, f"truncated against non_truncated: {trials.metric.told(gap)}; hand-over {way}: {why}"


def _again(bench: LevelBench, top: Searched, chosen: SamplingConfig) -> dict[str, Any]:
    """The winner and the default before on fresh seeds, by both halves of the real images."""
    before, stage, images = _before(bench, chosen), top.trials.stage, bench.request.images
    seed = bench.request.seed + SEEDS
    fresh = replace(bench.trials(stage, chosen), seed=seed)
    rows = fresh.rows(top.best, images)
    sides = {"searched half": fresh.metric, "unused half": bench.metric(bench.unused, stage)}
    told: dict[str, Any] = {
        "seeds": [seed + k for k in range(SEEDS)], "images": images,
        **{name: _estimate(metric.value(rows)) for name, metric in sides.items()},
    }  # fmt: skip
    words = "; ".join(f"{_interval(told[name])} by the {name} of the real images" for name in sides)
    told["words"] = f"on fresh seeds the distance is {words}"
    told["worse for sure"] = False
    if before != chosen:
        old = replace(bench.trials(stage, before), seed=seed).rows(before.aug_level[stage - 1], images)
        gap = sides["unused half"].worse(rows, old)
        told["against before"] = _estimate(gap)
        told["worse for sure"] = _is_above(gap)
        kept = "; what was found does not hold, and the default stays" if _is_above(gap) else ""
        told["words"] += f"; against the default before, on the unused half: {fresh.metric.told(gap)}{kept}"
    return told


def _before(bench: LevelBench, chosen: SamplingConfig) -> SamplingConfig:
    """The run's default; where that is ``chosen`` already, by the same search, the one before with other levels."""
    config, now = bench.cascade.config, bench.cascade.settings()
    if now == chosen:
        for each in reversed(config.sampling_history):
            was = make_settings(replace(config, sampling=each))
            if was != now and replace(was, aug_level=now.aug_level, hand_over=now.hand_over) == now:
                return was
    return now


def _store(request: TuneRequest, bench: LevelBench, kept: SamplingConfig) -> None:
    """Levels and hand-over into the default and the qualities; steps stay."""
    qualities = tuple(
        replace(each, aug_level=kept.aug_level, hand_over=kept.hand_over) for each in bench.cascade.config.qualities
    )
    store_sampling(request.run, kept, qualities)


def _told(
    bench: LevelBench, climbed: dict[str, list[Searched]], why: str, again: dict[str, Any], kept: SamplingConfig,
    curves: list[LevelCurves], began: float,
) -> dict[str, Any]:  # fmt: skip
    request, judge = bench.request, bench.judge
    searches = [
        {"stage": bench.cascade.stages[found.trials.stage].name, "hand_over": way, "best": found.best,
         "levels": found.points(), "finished": found.search.finished, "images_in_all": _spent(found.search),
         "exhaustive_images": GRID * request.images, **_by_seed(found)}
        for way, stages in climbed.items() for found in stages
    ]  # fmt: skip
    made = {
        "run": str(request.run), "weights": bench.cascade.hash, "data": judge.val.where,
        "metric": f"{request.metric} on domain features {judge.extractor.hash}",
        "images": f"{request.images:,} of a finalist, {SEEDS} sampling seeds from {request.seed} on",
        "took": duration(time.monotonic() - began),
    }  # fmt: skip
    return {
        "made": made, "before": to_dict(bench.cascade.settings()), "sampling": to_dict(kept), "why": why,
        "words": _words(kept), "searches": searches, "again": again, "level_curves": [each.told() for each in curves],
    }  # fmt: skip


def _by_seed(found: Searched) -> dict[str, Any]:
    """The best level by each sampling seed's third of its images, and the 95 % error of their mean."""
    values = found.trials.by_seed(found.best, found.images)
    return {"by_seed": values, "by_seed_error": STUDENT_2 * stdev(values) / SEEDS**0.5}


def _words(settings: SamplingConfig) -> str:
    levels = ", ".join(f"{level:g}" for level in settings.aug_level)
    return f"augmentation level {levels}, hand-over {settings.hand_over}"


def _estimate(found: Estimate) -> dict[str, Any]:
    return {"distance": found.value, "low": found.low, "high": found.high, "method": found.method}


def _interval(told: dict[str, Any]) -> str:
    ends = "" if told["low"] is None else f" ({told['low']:.3g} to {told['high']:.3g})"
    return f"{told['distance']:.3g}{ends}"


def _is_above(gap: Estimate) -> bool:
    return gap.low is not None and gap.low > 0


def _is_below(gap: Estimate) -> bool:
    return gap.high is not None and gap.high < 0
