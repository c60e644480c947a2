"""What one augmentation level of ``cdm tune --axis level`` costs and gives: images of one SR stage, and their distance
to real ones.

Features stay on the disk under a key that names all they hang on, so nothing is made twice, also after a stop. The
finished low-res images are made once and serve every level; a truncated stage below is run anew to where each level
stops it. Image i has the same seed at every level.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8

from cdm.cascade import Cascade, image_seed, run_stage
from cdm.conditioning import upsample
from cdm.config import SamplingConfig, to_dict
from cdm.data.pixels import FULL_8, Window, to_float
from cdm.errors import UserError
from cdm.evaluate.extractors.base import Extractor, widths
from cdm.evaluate.feature_store import FeatureStore
from cdm.evaluate.intervals import Estimate
from cdm.evaluate.paired import Fd, Kid
from cdm.evaluate.stats import Rows
from cdm.pipeline.generate import FeatureSink, ImageStore, Progress, fill, to_bytes
from cdm.pipeline.image_source import ClassIndex, Images, key_of
from cdm.pipeline.processes import Processes
from cdm.pipeline.tune_search import Budget
from cdm.rng import Rng
from cdm.runtime import precision_name

PROBE = (8, 32)
"""So many images tell the pace before the first level is begun."""
SEEDS = 3
"""Sampling seeds that the images of a level take turns with: each third of them is a repetition."""


@dataclass(frozen=True)
class LowRes:
    """Images put in below an SR stage: finished ones of the run, or real ones. ``labels``: class of each."""

    images: np.ndarray
    window: Window
    labels: ClassIndex | None
    key: str


@dataclass(frozen=True)
class LevelImages:
    """Images of stage ``stage``, enlarged to the cascade's size; ``low_res`` None: the stages below run too.

    settings: all levels and the hand-over. labels: class of each image, in turn.
    """

    cascade: Cascade
    settings: SamplingConfig
    stage: int
    seed: int
    labels: ClassIndex | None
    low_res: LowRes | None
    count: int
    what: str

    @property
    def key(self) -> str:
        turn = None if self.labels is None else self.labels.tolist()
        low_res = None if self.low_res is None else self.low_res.key
        steps, levels = self.settings.steps[: self.stage + 1], self.settings.aug_level[: self.stage]
        own = to_dict(replace(self.settings, steps=steps, aug_level=levels))
        if low_res is not None:
            own |= {"hand_over": "", "aug_level": levels[-1]}
        dtype = precision_name(self.cascade.stages[0].denoiser.dtype)
        return key_of("level", self.cascade.hash, own, self.stage, self.seed, SEEDS, turn, low_res, dtype,
                      self.cascade.device.type)  # fmt: skip

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.cascade.class_names

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.cascade.stages[-1].shape

    def stages(self, start: int, stop: int) -> tuple[Images, ...]:
        seeds = torch.tensor([image_seed((self.seed + i % SEEDS) % 2**31, i // SEEDS) for i in range(start, stop)])
        labels = None if self.labels is None else torch.from_numpy(self.labels[start:stop])
        if self.low_res is None:
            sampled = self.cascade.sample(
                labels, seeds, settings=self.settings, stop_after=self.stage, batch_size=len(seeds)
            )
            made = sampled.images[-1]
        else:
            made = self._on(self.low_res, start, stop, labels, seeds)
        own = to_bytes(made, self.what)
        shown = own
        if made.shape[-1] < self.shape[-1]:
            shown = to_bytes(upsample(to_float(own, FULL_8), self.shape[-1]), self.what)
        return own, shown

    @torch.no_grad()
    def _on(
        self, low_res: LowRes, start: int, stop: int, labels: torch.Tensor | None, seeds: torch.Tensor
    ) -> torch.Tensor:
        cascade, stage = self.cascade, self.cascade.stages[self.stage]
        x = to_float(np.array(low_res.images[start:stop]), low_res.window).to(cascade.device)
        own = stage.check_labels(labels if cascade.config.num_classes else None, len(x))
        own = None if own is None else own.to(cascade.device)
        aug_logsnr = stage.aug_logsnr(self.settings.aug_level[self.stage - 1])
        cond, _ = stage.condition(x, own, aug_logsnr, Rng(0, self.stage), seeds)
        return run_stage(stage, cond, seeds, self.settings, self.settings.steps[self.stage]).image


@dataclass(frozen=True)
class _First:
    """The first ``count`` images of a sink."""

    sink: FeatureSink
    count: int
    stage: int = -1

    def missing(self) -> Int64[np.ndarray, " m"]:
        missing = self.sink.missing()
        return missing[missing < self.count]

    def write(self, indices: Int64[np.ndarray, " b"], images: Images) -> None:
        self.sink.write(indices, images)


@dataclass
class LevelTrials:
    """The levels of SR stage ``stage``, a ``LevelTrial``.

    settings: hand-over, and the levels of the other SR stages. images: of a finalist. labels: class of each, in turn.
    real: real low-res images in place of the run's own. made: images made by this object.
    """

    cascade: Cascade
    stage: int
    settings: SamplingConfig
    extractor: Extractor
    metric: Fd | Kid
    labels: ClassIndex | None
    images: int
    seed: int
    batch_size: int
    folder: Path
    budget: Budget
    progress: Progress
    real: LowRes | None = None
    made: int = 0
    _pace: float = 0.0
    _stores: dict[float, FeatureStore] = field(default_factory=dict)

    def at(self, level: float) -> SamplingConfig:
        levels = list(self.settings.aug_level)
        levels[self.stage - 1] = level
        return replace(self.settings, aug_level=tuple(levels))

    def allows(self, level: float) -> bool:
        """Whether the stage was trained at it, and a truncated stage below can stop at it."""
        if not self.cascade.stages[self.stage].config.augmentation.trained_at(level):
            return False
        try:
            self._stop(level)
        except UserError:
            return False
        return True

    def affords(self, level: float, images: int) -> bool:
        needed = self.seconds(level, images)
        return needed == 0 or needed < self.budget.left()

    def seconds(self, level: float, images: int) -> float:
        """That the first ``images`` of a level take from now on; 0: they are there."""
        missing = int((self._store(level).missing() < images).sum())
        if missing and not self._pace:
            self._pace = self._probe(level)
        return self._pace * missing

    def _probe(self, level: float) -> float:
        """Seconds of an image, by a few that are not kept; the low-res ones below are made too, so rather too many."""
        source, seconds = self._source(level, 0, only_key=True), 0.0
        if self.real is None:
            source = replace(source, low_res=None)
        for count in PROBE:  # the first of them is slower than all later ones
            began = time.monotonic()
            self.extractor(source.stages(0, min(count, self.images))[1])
            seconds = (time.monotonic() - began) / min(count, self.images)
        return seconds

    def value(self, level: float, images: int) -> float:
        return self.estimate(level, images).value

    def estimate(self, level: float, images: int) -> Estimate:
        return self.metric.value(self.rows(level, images))

    def by_seed(self, level: float, images: int) -> list[float]:
        """The distance of each sampling seed's own share of the images."""
        rows = self.rows(level, images)
        return [self.metric.value(np.asarray(rows[k::SEEDS])).value for k in range(SEEDS)]

    def worse(self, level: float, than: float, images: int) -> Estimate:
        return self.metric.worse(self.rows(level, images), self.rows(than, images))

    def rows(self, level: float, images: int) -> Rows:
        """Features of the first ``images`` images of a level, made where they are missing."""
        store = self._store(level)
        sink = _First(FeatureSink(self.extractor, store), images)
        if len(sink.missing()):
            source, began = self._source(level, images), time.monotonic()
            count = fill(source, [sink], Processes(), self.batch_size, self.progress)
            self.made += count
            self._pace = (time.monotonic() - began) / count
        return store.rows(count=images)

    def _store(self, level: float) -> FeatureStore:
        if level not in self._stores:
            key = key_of(self._source(level, self.images, only_key=True).key, self.extractor.hash)
            self._stores[level] = FeatureStore.open(self.folder, key, self.images, widths(self.extractor))
        return self._stores[level]

    def _stop(self, level: float) -> float | None:
        """Where the stage below stops; None: it runs to its end."""
        if self.real is not None or self.settings.hand_over == "non_truncated":
            return None
        return self.cascade.stop_level(self.cascade.stages[self.stage - 1], self.at(level))

    def _source(self, level: float, count: int, only_key: bool = False) -> LevelImages:
        how = "real low-res images" if self.real is not None else self.settings.hand_over
        what = f"stage {self.cascade.stages[self.stage].name} at level {level:g}, {how}"
        low_res = self.real
        if low_res is None and self._stop(level) is None:
            low_res = self._finished(0 if only_key else count)
        return LevelImages(self.cascade, self.at(level), self.stage, self.seed, self.labels, low_res, count, what)

    def _finished(self, count: int) -> LowRes:
        """Finished images of the stage below, the first ``count`` of them made."""
        below = self.stage - 1
        what = f"finished images of stage {self.cascade.stages[below].name}"
        settings = self.settings if below else replace(self.settings, hand_over="non_truncated")  # nothing below it
        source = LevelImages(self.cascade, settings, below, self.seed, self.labels, None, max(count, 1), what)
        images: UInt8[np.ndarray, "n c h w"] = np.empty((0, *self.cascade.stages[below].shape), np.uint8)
        if count:
            store = ImageStore(self.folder, source.key, count, self.cascade.stages[below].shape, stage=0)
            fill(source, [store], Processes(), self.batch_size, self.progress)
            images = store.images()
        return LowRes(images, FULL_8, self.labels, source.key)
