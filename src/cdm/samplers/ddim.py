"""DDIM (Song et al. 2020): deterministic, first order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from jaxtyping import Float64
from torch import Tensor

from cdm.denoiser import Denoiser
from cdm.samplers.base import Clip, SampleStep, StepNoise, evaluate, levels, ode_step
from cdm.types import Cond, Image


def ddim(
    denoiser: Denoiser,
    x: Image,
    grid: Float64[Tensor, " n"],
    cond: Cond,
    *,
    clip: Clip | None = None,
    noise: StepNoise | None = None,  # every sampler takes it; this one is deterministic
) -> Iterator[SampleStep]:
    """x_s = alpha_s x0_hat + sigma_s eps (Song et al. 2020, eq. 12 with sigma = 0). See ``base.Sampler``."""
    for i, (logsnr_t, logsnr_s) in enumerate(pairwise(levels(grid))):
        x0_hat, _ = evaluate(denoiser, x, logsnr_t, cond, clip)
        from_x_t, from_x0 = ode_step(logsnr_t, logsnr_s)
        x = torch.mul(x, from_x_t).add_(x0_hat, alpha=from_x0)
        yield SampleStep(i, logsnr_s, x, x0_hat)
