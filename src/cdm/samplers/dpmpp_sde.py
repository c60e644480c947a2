"""DPM-Solver++(2M) for the reverse SDE (Lu et al. 2022, section 5): ancestral steps that look half a step ahead."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float64
from torch import Tensor

from cdm.denoiser import Denoiser
from cdm.errors import UserError
from cdm.noise.process import posterior_coefficients
from cdm.samplers.base import Clip, SampleStep, StepNoise, evaluate, levels
from cdm.types import Cond, Image


def dpmpp_sde(
    denoiser: Denoiser,
    x: Image,
    grid: Float64[Tensor, " n"],
    cond: Cond,
    *,
    clip: Clip | None = None,
    noise: StepNoise | None = None,
) -> Iterator[SampleStep]:
    """x_s ~ N(posterior mean of x_t and x0_hat, small variance), x0_hat extrapolated. See ``base.Sampler``.

    Its first-order solver is exactly the ancestral step with the small variance; like ``dpmpp`` this one extrapolates
    x0_hat half a step ahead from the last two estimates, but not in the first step nor in one to +inf.

    Raises:
        UserError: no ``noise``.
    """
    if noise is None:
        raise UserError("this sampler needs fresh noise; got noise=None: pass noise(i), or use dpmpp.")
    values = levels(grid)
    table = torch.stack(posterior_coefficients(grid[:-1], grid[1:])).T.tolist()
    past: tuple[Image, float] | None = None  # x0_hat and length of the step before
    for i, (from_x_t, from_x0, small, _) in enumerate(table):
        x0_hat, _ = evaluate(denoiser, x, values[i], cond, clip)
        length = values[i + 1] - values[i]
        ahead = 0.0 if past is None or math.isinf(length) else length / (2 * past[1])
        x = torch.mul(x, from_x_t).add_(x0_hat, alpha=from_x0 * (1 + ahead))
        if past is not None and ahead:
            x.add_(past[0], alpha=-from_x0 * ahead)
        if math.isfinite(length):
            x.add_(noise(i), alpha=math.exp(small / 2))
        past = x0_hat, length
        yield SampleStep(i, values[i + 1], x, x0_hat)
