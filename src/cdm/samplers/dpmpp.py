"""DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): deterministic, second order, one evaluation per step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from jaxtyping import Float64
from torch import Tensor

from cdm.denoiser import Denoiser
from cdm.samplers.base import Clip, SampleStep, StepNoise, evaluate, levels, ode_step
from cdm.types import Cond, Image


def dpmpp(
    denoiser: Denoiser,
    x: Image,
    grid: Float64[Tensor, " n"],
    cond: Cond,
    *,
    clip: Clip | None = None,
    noise: StepNoise | None = None,  # every sampler takes it; this one is deterministic
) -> Iterator[SampleStep]:
    """Extrapolates x0_hat half a step ahead from the last two estimates (midpoint). See ``base.Sampler``.

    The first step is first order, having no past, and so is one to +inf, which has no half way.
    """
    past: tuple[Image, float] | None = None  # x0_hat and length of the step before
    for i, (logsnr_t, logsnr_s) in enumerate(pairwise(levels(grid))):
        x0_hat, _ = evaluate(denoiser, x, logsnr_t, cond, clip)
        from_x_t, from_x0 = ode_step(logsnr_t, logsnr_s)
        length = logsnr_s - logsnr_t
        x = torch.mul(x, from_x_t)
        if past is None or math.isinf(length):
            x.add_(x0_hat, alpha=from_x0)
        else:
            ahead = length / (2 * past[1])  # 1 / (2 r) of the paper; its lambda is logsnr / 2, the ratio is the same
            x.add_(x0_hat, alpha=from_x0 * (1 + ahead)).add_(past[0], alpha=-from_x0 * ahead)
        past = x0_hat, length
        yield SampleStep(i, logsnr_s, x, x0_hat)
