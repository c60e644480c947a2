"""One stage sampled from its start noise to its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Int64
from torch import Tensor

from cdm.conditioning import quantise
from cdm.config import SamplingConfig
from cdm.rng import Purpose, Rng
from cdm.samplers import SAMPLERS, num_evaluations
from cdm.samplers.base import clip_dynamically, clip_to_range
from cdm.settings import of_stage, stage_grid
from cdm.stage import Stage
from cdm.types import Cond, Image

Progress = Callable[[int, int, int, Image], None]
"""``progress(stage, done, total, preview)`` after every sampler step; preview is x0_hat of the images under way."""


@dataclass(frozen=True)
class StageRun:
    """What one stage made. ``image``: x0_hat of the last step, quantised as saved files are; ``x_t`` at ``logsnr``: the
    sampler's end, handed over by truncation (otherwise the image before quantisation, at +inf)."""

    image: Image
    x_t: Image
    logsnr: float
    evaluations: int


@torch.no_grad()
def run_stage(
    stage: Stage,
    cond: Cond,
    seeds: Int64[Tensor, " b"],
    settings: SamplingConfig,
    steps: int,
    *,
    stop_at: float | None = None,
    progress: Progress | None = None,
) -> StageRun:
    """Sample one stage. All noise is a function of (seed of the image, stage, step)."""
    rng = Rng(0, stage.index)
    seeds = seeds.to(next(stage.net.parameters()).device)
    sampler = of_stage(settings.sampler, stage.index)
    grid = stage_grid(stage, settings, steps, stop_at)
    clip = clip_to_range if not settings.threshold else partial(clip_dynamically, percentile=settings.threshold)

    def noise(i: int) -> Image:
        return rng.normal(Purpose.SAMPLER_NOISE, seeds, stage.shape, step=i)

    x = rng.normal(Purpose.START_NOISE, seeds, stage.shape)
    step = None
    for step in SAMPLERS[sampler](stage.denoiser, x, grid, cond, clip=clip if settings.clip else None, noise=noise):
        if progress is not None:
            progress(stage.index, step.i + 1, len(grid) - 1, step.x0_hat)
    assert step is not None
    final = step.x0_hat if stop_at is not None else step.x_t
    return StageRun(quantise(final, stage.levels), step.x_t, step.logsnr, num_evaluations(sampler, grid))
