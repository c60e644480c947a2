"""What one candidate of ``cdm tune`` costs and gives: images of one stage, and their Fréchet distance to real ones.

A stage is judged at its own resolution, enlarged to the size that the features are taken at, against real images
brought to the same: so the base needs no SR stage to be searched. An SR stage is fed with the images of the stages
below, made once. Every candidate has the same seeds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

from cdm.cascade import Cascade, StageImage, image_seed, run_stage
from cdm.conditioning import make_low_res, upsample
from cdm.config import SamplingConfig, to_dict
from cdm.data.pixels import FULL_8, to_float
from cdm.evaluate.extractors.base import Extractor
from cdm.evaluate.frechet import INTERVALS, frechet_estimate
from cdm.evaluate.stats import FeatureStats
from cdm.pipeline.generate import to_bytes
from cdm.pipeline.image_source import ClassIndex, Images, key_of
from cdm.pipeline.reference import RealImages, ReferenceCache
from cdm.pipeline.tune_search import Candidate, Measured, within
from cdm.rng import Rng
from cdm.runtime import precision_name
from cdm.samplers import num_steps
from cdm.settings import joined, of_stage, stage_grid
from cdm.types import Cond

PROFILE_STEPS, PROFILE_IMAGES = 96, 64
PROBE_STEPS, PROBE_IMAGES = 3, 32
PROFILE_POWER = 0.5
"""Levels are spread by this power of how fast x0_hat changes along them."""
LEAST_RATE = 0.02
"""Added to it, as a share of the fastest: no part of the range is left out."""

Told = Callable[[str, int, int], None]


@dataclass(frozen=True)
class LowReal(RealImages):
    """Real images brought to a lower stage's size and enlarged again."""

    low: int = 0

    @cached_property
    def _low_key(self) -> str:
        return key_of(super().key, "brought to", self.low)

    @property
    def key(self) -> str:
        return self._low_key

    def pick(self, indices: np.ndarray) -> Images:
        x = make_low_res(to_float(super().pick(indices), FULL_8), self.low)
        return to_bytes(upsample(x, self.shape[-1]), self.what)


@dataclass(frozen=True)
class StageTrials:
    """The candidates of one stage.

    settings: of the other stages and of all else. low_res: uint8 images of the stage below, None for the base.
    """

    cascade: Cascade
    stage: int
    settings: SamplingConfig
    extractor: Extractor
    reference: FeatureStats
    labels: ClassIndex | None
    seed: int
    batch_size: int
    low_res: UInt8[np.ndarray, "n c h w"] | None
    data: str  # names the reference
    progress: Told

    def key(self, candidate: Candidate, images: int) -> str:
        low = None if self.low_res is None else key_of(self.low_res[:images].tobytes().hex())
        turn = None if self.labels is None else self.labels[:images].tolist()
        used = self.settings.aug_level[self.stage - 1 : self.stage] if self.stage else ()
        rest = to_dict(replace(self.settings, sampler="", grid="", steps=(), levels=(), aug_level=used))
        own = (candidate.sampler, candidate.grid, candidate.evaluations, images, self.seed, self.stage)
        weights = [stage.hash for stage in self.cascade.stages[: self.stage + 1]]
        machine = (precision_name(self.cascade.stages[0].denoiser.dtype), self.cascade.device.type)
        return key_of("tune", INTERVALS, weights, machine, own, rest, low, turn, self.extractor.hash, self.data)

    @property
    def present(self) -> Candidate:
        """How the stage is sampled now."""
        grid = of_stage(self.settings.grid, self.stage)
        sampler = of_stage(self.settings.sampler, self.stage)
        return within(sampler, "profile" if grid == "tuned" else grid, self.settings.steps[self.stage])

    def settings_for(self, candidate: Candidate) -> SamplingConfig:
        """The settings with this stage's entries put in."""
        count = len(self.cascade.stages)
        steps = list(self.settings.steps)
        samplers = [of_stage(self.settings.sampler, k) for k in range(count)]
        grids = [of_stage(self.settings.grid, k) for k in range(count)]
        levels: list[tuple[float, ...]] = [*self.settings.levels] or [()] * count
        steps[self.stage], samplers[self.stage] = candidate.evaluations, candidate.sampler
        is_profile = candidate.grid == "profile"
        grids[self.stage] = "tuned" if is_profile else candidate.grid
        levels[self.stage] = tuple(self.levels(candidate).tolist()) if is_profile else ()
        return replace(
            self.settings, steps=tuple(steps), sampler=joined(samplers), grid=joined(grids),
            levels=tuple(levels) if any(levels) else (),
        )  # fmt: skip

    def measure(self, candidate: Candidate, images: int) -> Measured:
        settings, rows = self.settings_for(candidate), []
        began = time.monotonic()  # a grid of the stage's own is made once, and would count as this candidate's pace
        for made in self.blocks(settings, images, candidate.words):
            rows.append(self.extractor(self._enlarged(made)).by_name()["main"].numpy())
        estimate = frechet_estimate(self.reference, np.concatenate(rows), self.labels)
        seconds = time.monotonic() - began
        return Measured(candidate, estimate.value, estimate.low, estimate.high, images, round(seconds, 3))

    def probe(self) -> Measured:
        """The pace, by one batch of a few images; the first call of a net, which is slower, goes before."""
        candidate, few = Candidate("dpmpp", "logsnr", PROBE_STEPS), min(PROBE_IMAGES, self.batch_size)
        small = replace(self, batch_size=few, progress=lambda *_: None)
        settings = self.settings_for(replace(candidate, evaluations=1))
        for _ in small.blocks(settings, few, ""):
            pass
        began = time.monotonic()
        for made in small.blocks(self.settings_for(candidate), few, ""):
            self.extractor(self._enlarged(made))
        return Measured(candidate, 0.0, None, None, few, time.monotonic() - began)

    def _enlarged(self, made: Images) -> UInt8[Tensor, "b c s s"]:
        return made if made.shape[-1] == self._shown else to_bytes(upsample(_floats(made), self._shown), "tuning")

    @property
    def _shown(self) -> int:
        return self.cascade.config.sizes[-1]

    def images(self, settings: SamplingConfig, count: int, what: str) -> UInt8[np.ndarray, "n c h w"]:
        return np.concatenate([made.numpy() for made in self.blocks(settings, count, what)])

    def blocks(self, settings: SamplingConfig, count: int, what: str) -> Iterator[Images]:
        """The stage's images, uint8, batch by batch."""
        for start in range(0, count, self.batch_size):
            self.progress(what, start, count)
            yield to_bytes(self._batch(settings, start, min(start + self.batch_size, count)), "tuning")

    @torch.no_grad()
    def _batch(self, settings: SamplingConfig, start: int, stop: int) -> StageImage:
        cond, seeds = self._inputs(settings, start, stop)
        return run_stage(self.cascade.stages[self.stage], cond, seeds, settings, settings.steps[self.stage]).image

    def _inputs(self, settings: SamplingConfig, start: int, stop: int) -> tuple[Cond, Int64[Tensor, " b"]]:
        """Conditioning and seeds of the images ``start`` to ``stop - 1``."""
        cascade, stage = self.cascade, self.cascade.stages[self.stage]
        seeds = torch.tensor([image_seed(self.seed, i) for i in range(start, stop)])
        labels = None if self.labels is None else torch.from_numpy(self.labels[start:stop])
        own = stage.check_labels(labels if cascade.config.num_classes else None, stop - start)
        own = None if own is None else own.to(cascade.device)
        if self.low_res is None:
            return Cond(own), seeds
        low_res = _floats(torch.from_numpy(self.low_res[start:stop])).to(cascade.device)
        aug_logsnr = stage.aug_logsnr(settings.aug_level[self.stage - 1])
        return stage.condition(low_res, own, aug_logsnr, Rng(0, self.stage), seeds)[0], seeds

    # ---- a grid of the stage's own -----------------------------------------------------------------------------------

    def levels(self, candidate: Candidate) -> Float64[Tensor, " n"]:
        """Rising levels, close where x0_hat changes fast: even in the integral of its rate to ``PROFILE_POWER``."""
        grid, rate = self._profile
        weight = torch.cat([grid.new_zeros(1), (rate**PROFILE_POWER * grid.diff()).cumsum(0)])
        count = num_steps(candidate.sampler, candidate.evaluations)
        wanted = torch.linspace(0, float(weight[-1]), count, dtype=torch.float64)
        place = torch.searchsorted(weight, wanted).clamp(1, len(weight) - 1)
        part = (wanted - weight[place - 1]) / (weight[place] - weight[place - 1])
        levels = torch.lerp(grid[place - 1], grid[place], part.clamp(0, 1))
        table = self.cascade.stages[self.stage].denoiser.table
        return levels if table is None else _entries(levels, table)

    @cached_property
    def _profile(self) -> tuple[Float64[Tensor, " m"], Float64[Tensor, " k"]]:
        """Even levels, and between each two of them the root mean square change of x0_hat per unit of log-SNR."""
        stage = self.cascade.stages[self.stage]
        count = min(len(part) for part in (self.labels, self.low_res, range(PROFILE_IMAGES)) if part is not None)
        table = stage.denoiser.table
        steps = PROFILE_STEPS if table is None else min(PROFILE_STEPS, len(table))
        settings = replace(self.settings, sampler="dpmpp", grid="logsnr", levels=())
        levels = stage_grid(stage, settings, steps, None)[:-1]
        estimates: list[Tensor] = []
        cond, seeds = self._inputs(settings, 0, count)
        with torch.no_grad():
            run_stage(stage, cond, seeds, settings, steps, progress=lambda *told: estimates.append(told[-1]))
        change = [(b - a).double().square().mean().sqrt().cpu() for a, b in pairwise(estimates)]
        rate = torch.stack(change) / levels.diff()
        return levels, rate + LEAST_RATE * rate.max()


def _floats(images: Images) -> Tensor:
    return to_float(images, FULL_8)


def _entries(levels: Float64[Tensor, " n"], table: Float64[Tensor, " T"]) -> Float64[Tensor, " n"]:
    """The nearest entries, each once."""
    return table[(table[None, :] - levels[:, None]).abs().argmin(dim=1)].unique(sorted=True)


def reference_stats(cache: ReferenceCache, real: RealImages, extractor: Extractor, size: int) -> FeatureStats:
    """Of the real images as a stage of this size shows them."""
    return cache.stats(shown_at(real, size), extractor)


def shown_at(real: RealImages, size: int) -> RealImages:
    """Real images as a stage of this size shows them."""
    if size == real.shape[-1]:
        return real
    return LowReal(real.role, real.where, real.array, real.rows, real.digests, size)
