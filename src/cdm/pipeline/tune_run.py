"""``cdm tune``: search how a run is best sampled, and make that its default. The same command again goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cdm.artifacts import RunLock, make_folder, save_json
from cdm.cascade import Cascade
from cdm.config import SamplingConfig, to_dict
from cdm.errors import UserError
from cdm.evaluate.extractors.base import Extractor
from cdm.evaluate.paired import least_reference
from cdm.evaluate.tune_report import StageFront, tune_report
from cdm.pipeline.costs import stage_costs, told_costs
from cdm.pipeline.generate import Progress
from cdm.pipeline.judge import open_judge
from cdm.pipeline.tune_level_bench import halves
from cdm.pipeline.tune_request import TuneRequest
from cdm.pipeline.tune_search import BALANCED, FAST, Budget, Ledger, Measured, Trial, front, pick, search
from cdm.pipeline.tune_store import store_sampling
from cdm.pipeline.tune_trials import PROFILE_IMAGES, PROFILE_STEPS, StageTrials
from cdm.runtime import set_threads
from cdm.settings import MAX_STEPS
from cdm.train.log import counted, duration

Say = Callable[[str], None]
SLACK = {"fast": FAST, "balanced": BALANCED, "best": 1.0}
LEAST_RUNGS = 3
"""Numbers of evaluations that must have been tried where the time did not suffice for all: fewer are no front."""
SHARES = (0.6, 0.4)
"""Of the time, what goes to the base; the SR stages share the rest."""


@dataclass(frozen=True)
class Tuned:
    """What the search found in one stage: everything measured, and the point of each quality."""

    trials: StageTrials
    points: list[Measured]
    picked: dict[str, Measured]


def tune(request: TuneRequest, progress: Progress, say: Say) -> Path:
    """Search stage after stage, store the winners in ``cascade.json``, and write ``RUN/tuning/report.html``.

    Raises:
        UserError: no run, no real images, or too little time for a single candidate of a stage.
    """
    request.check_run()
    began = time.monotonic()
    set_threads(request.threads)
    with RunLock(make_folder(request.out)):
        judge = open_judge(request.judged(), progress, say)
        cascade, extractor = judge.cascade, judge.extractor
        ledger = Ledger(request.out / "measured.jsonl")
        settings = replace(cascade.settings(), hand_over="non_truncated")
        if cascade.settings().hand_over != "non_truncated":
            say("warning: the run's default hand-over is truncated; what is searched and stored is non_truncated")
        least = least_reference("fd", extractor.dim)
        if judge.val.count < least:
            raise UserError(
                f"{request.data} has {judge.val.count:,} real images to compare with; expected at least {least}, or "
                "the distance says nothing: give more."
            )
        if "level" in request.axes:
            halves(judge, request)  # before this axis takes its time
        searched: list[Tuned] = []
        low_res = None
        for stage in cascade.stages:
            stats = judge.reference(stage.config.size)
            trials = StageTrials(
                cascade, stage.index, settings, extractor, stats, judge.labels, request.seed, request.batch_size,
                low_res, judge.val.fingerprint, progress,
            )  # fmt: skip
            share = SHARES[0] if stage.config.is_base else SHARES[1] / (len(cascade.stages) - 1)
            if len(cascade.stages) == 1:
                share = 1.0
            found = _search(request, trials, ledger, Budget(60 * request.axis_minutes * share, time.monotonic()), say)
            searched.append(found)
            settings = trials.settings_for(found.picked["balanced"].candidate)
            if stage.index < len(cascade.stages) - 1:
                low_res = trials.images(settings, request.images, f"images of stage {stage.index} for the next")
        qualities = {name: _together(searched, name) for name in SLACK}
        store_sampling(request.run, qualities["balanced"], tuple(qualities.values()))
        report = _report(request, cascade, extractor, searched, qualities, judge.val.where, began)
    for name, chosen in qualities.items():
        say(f"{name}: {_words(chosen)}")
    say(f"`cdm sample {request.run}` takes balanced from now on, and --quality any of them")
    return report


def _search(request: TuneRequest, trials: StageTrials, ledger: Ledger, budget: Budget, say: Say) -> Tuned:
    stage = trials.cascade.stages[trials.stage]
    table = stage.denoiser.table
    say(f"stage {stage.name}: up to {duration(budget.seconds)} of search, {request.images:,} images of each candidate")
    points, left_out = search(
        Trial(trials.key, trials.measure, trials.probe, PROFILE_STEPS * PROFILE_IMAGES), ledger, budget,
        is_base=stage.config.is_base, images=request.images, most=MAX_STEPS if table is None else len(table),
        present=trials.present,
    )  # fmt: skip
    rungs = {point.candidate.evaluations for point in points}
    present_is_known = trials.present in [point.candidate for point in points]
    if (left_out and len(rungs) < LEAST_RUNGS) or not present_is_known:
        few = counted(len(points), "candidate")
        why = "too few to choose by" if present_is_known else f"not how the run samples now ({trials.present.words})"
        raise UserError(
            f"--minutes {request.minutes:g} does not suffice: of stage {stage.name} {few} "
            f"could be measured with {request.images:,} images, {why}; expected more: raise --minutes, "
            "or lower -n. What was measured is kept, and the run's defaults stay as they are."
        )
    picked = {name: pick(points, slack) for name, slack in SLACK.items()}
    best = front(points)[-1]
    left = f"; {counted(len(left_out), 'candidate')} left out for lack of time" if left_out else ""
    say(f"stage {stage.name}: {counted(len(points), 'point')}, best {best.value:.3g} by {best.candidate.words}{left}")
    return Tuned(trials, points, picked)


def _together(searched: list[Tuned], quality: str) -> SamplingConfig:
    """The settings of one quality, all stages' points put together."""
    settings = searched[0].trials.settings
    for found in searched:
        settings = replace(found.trials, settings=settings).settings_for(found.picked[quality].candidate)
    return settings


def _words(settings: SamplingConfig) -> str:
    return f"{settings.sampler}, grid {settings.grid}, evaluations {'+'.join(map(str, settings.steps))}"


def _report(
    request: TuneRequest, cascade: Cascade, extractor: Extractor, searched: list[Tuned],
    qualities: dict[str, SamplingConfig], data: str, began: float,
) -> Path:  # fmt: skip
    fronts = [
        StageFront(
            found.trials.cascade.stages[found.trials.stage].name,
            tuple(_row(point) for point in found.points),
            tuple(_row(point) for point in front(found.points)),
            {name: _row(point) for name, point in found.picked.items()},
        )
        for found in searched
    ]
    told = {
        "run": str(request.run), "weights": cascade.hash, "data": data, "extractor": f"domain {extractor.hash}",
        "images": f"{request.images:,} of each candidate, seed {request.seed}",
        "took": duration(time.monotonic() - began),
    }  # fmt: skip
    costs = told_costs(stage_costs(cascade, qualities["balanced"], request.batch_size))
    save_json(
        request.out / "fronts.json",
        {"stages": [front.told() for front in fronts], "made": told, "costs": costs,
         "qualities": {name: to_dict(settings) for name, settings in qualities.items()}},
    )  # fmt: skip
    return tune_report(
        request.out / "report.html", fronts, {name: _words(each) for name, each in qualities.items()}, told,
        request.command, costs,
    )  # fmt: skip


def _row(point: Measured) -> dict[str, Any]:
    return {
        "sampler": point.candidate.sampler, "grid": point.candidate.grid,
        "evaluations": point.candidate.evaluations, "distance": point.value, "low": point.low, "high": point.high,
        "seconds": point.seconds,
    }  # fmt: skip
