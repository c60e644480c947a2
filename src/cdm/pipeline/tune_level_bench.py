"""What the parts of ``cdm tune --axis level`` share: the run, real images in two halves, what is measured with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cdm.cascade import Cascade
from cdm.config import CascadeConfig, SamplingConfig
from cdm.errors import UserError
from cdm.evaluate.paired import Fd, Kid, least_reference, paired_metric
from cdm.pipeline.augmentation_request import parse_levels
from cdm.pipeline.generate import Progress
from cdm.pipeline.image_source import ClassIndex
from cdm.pipeline.judge import Judge
from cdm.pipeline.reference import RealImages
from cdm.pipeline.tune_level_trials import SEEDS, LevelTrials, LowRes
from cdm.pipeline.tune_request import HAND_OVERS, TuneRequest
from cdm.pipeline.tune_search import Budget
from cdm.pipeline.tune_trials import shown_at

Say = Callable[[str], None]
NARROWEST = 0.01
"""Range of levels: the steps of a narrower one would be too small to tell apart, or to type."""


@dataclass(frozen=True)
class LevelBench:
    """half: real images that levels are searched with. unused: the others. budget: of all."""

    request: TuneRequest
    judge: Judge
    half: RealImages
    unused: RealImages
    budget: Budget
    progress: Progress
    say: Say

    @property
    def cascade(self) -> Cascade:
        return self.judge.cascade

    @property
    def work(self) -> Path:
        """Where images and features are kept, for the same command again."""
        return self.request.out / "levels"

    @property
    def labels(self) -> ClassIndex | None:
        """Class of each image, in turn, the same for every sampling seed."""
        turn = self.judge.labels
        return None if turn is None else np.repeat(turn, SEEDS)[: self.request.images]

    def metric(self, real: RealImages, stage: int) -> Fd | Kid:
        cache, extractor = self.judge.cache, self.judge.extractor
        shown = shown_at(real, self.cascade.config.sizes[stage])
        rows = cache.features(shown, extractor).rows()
        return paired_metric(self.request.metric, cache.stats(shown, extractor), rows, self.labels)

    def trials(self, stage: int, settings: SamplingConfig, budget: Budget | None = None) -> LevelTrials:
        return LevelTrials(
            self.cascade, stage, settings, self.judge.extractor, self.metric(self.half, stage), self.labels,
            self.request.images, self.request.seed, self.request.batch_size, self.work, budget or self.budget,
            self.progress,
        )  # fmt: skip

    def on_real(self, trials: LevelTrials, low_res: LowRes) -> LevelTrials:
        """The same levels on real low-res images."""
        metric = replace(trials.metric, strata=low_res.labels)
        return replace(trials, real=low_res, labels=low_res.labels, metric=metric, images=len(low_res.images),
                       budget=self.budget, made=0, _stores={})  # fmt: skip

    def range_of(self, stage: int) -> tuple[float, float]:
        """Levels that are searched."""
        own, asked = self.cascade.config.stages[stage].augmentation, self.request.levels
        return (own.level_min, own.level_max) if asked is None else parse_levels(asked, "--levels")


def searched_stages(config: CascadeConfig, request: TuneRequest) -> list[int]:
    """SR stages that have a level to choose.

    Raises:
        UserError: none has, or ``--levels`` asks for others than trained at.
    """
    if len(config.stages) == 1:
        raise UserError(
            f"{request.run} has no SR stage, and so no augmentation level to tune; expected a cascade: leave --axis "
            "level out."
        )
    noisy = [k for k, stage in enumerate(config.stages) if stage.augmentation.has_noise]
    found = [k for k in noisy if config.stages[k].augmentation.level_min < config.stages[k].augmentation.level_max]
    if not found:
        why = "was trained at one level alone" if noisy else "was trained without noise on its low-res image"
        raise UserError(
            f"every SR stage of {request.run} {why}, so there is no level to choose; expected one trained at a range "
            "of levels: cdm train --augmentation gaussian --aug-levels 0:0.6."
        )
    if request.levels is not None:
        low, high = parse_levels(request.levels, "--levels")
        for k in found:
            own = config.stages[k].augmentation
            if low < own.level_min or high > own.level_max:
                raise UserError(
                    f"--levels is {request.levels}, but stage {stage_name(config, k)} was trained at "
                    f"{own.level_min:g} to {own.level_max:g}; expected a range within: change --levels, or leave it "
                    "out."
                )
        if high - low < NARROWEST:
            raise UserError(
                f"--levels is {request.levels}, which leaves nothing to choose; expected a range of at least "
                f"{NARROWEST:g}, as 0:0.3. One level needs no search: cdm sample --aug-level takes it."
            )
    return found


def hand_overs(config: CascadeConfig, request: TuneRequest, say: Say) -> list[str]:
    """Those that are searched. Raises ``UserError`` where the one asked for cannot be."""
    without = [k for k, stage in enumerate(config.stages) if k and not stage.augmentation.has_noise]
    asked: list[str] = list(HAND_OVERS) if request.hand_over == "both" else [request.hand_over]
    if without and "truncated" in asked:
        told = f"stage {stage_name(config, without[0])} has {config.stages[without[0]].augmentation.kind!r}"
        if request.hand_over == "truncated":
            raise UserError(
                f"the truncated hand-over needs SR stages trained with Gaussian augmentation; {told}: use --hand-over "
                "non_truncated."
            )
        say(f"the truncated hand-over is left out: {told}")
        asked.remove("truncated")
    return asked


def stage_name(config: CascadeConfig, index: int) -> str:
    return f"{index}-{config.sizes[index]}"


def halves(judge: Judge, request: TuneRequest) -> tuple[RealImages, RealImages]:
    """The real images parted by the hash of each one's pixels: those searched with, and the others.

    Raises:
        UserError: too few for the metric on either side.
    """
    val = judge.val
    first = np.array([digest[0] % 2 == 0 for digest in val.digests], dtype=bool)
    sides = [
        RealImages(val.role, val.where, val.array, val.rows[own],
                   tuple(d for d, mine in zip(val.digests, own, strict=True) if mine))
        for own in (first, ~first)
    ]  # fmt: skip
    least = least_reference(request.metric, judge.extractor.dim)
    if min(side.count for side in sides) < least:
        other = ", or --metric kid, which needs fewer" if request.metric == "fd" else ""
        raise UserError(
            f"{val.where} has {val.count:,} images, {sides[0].count:,} and {sides[1].count:,} in the halves to search "
            f"with and to check on; expected at least {least} in each for {request.metric} on {judge.extractor.dim} "
            f"features: give more images{other}."
        )
    return sides[0], sides[1]
