"""Heun's method with churn (Karras et al. 2022, algorithms 1 and 2): second order, two evaluations per step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from jaxtyping import Float64
from torch import Tensor

from cdm.denoiser import Denoiser
from cdm.errors import UserError
from cdm.samplers.base import Clip, SampleStep, StepNoise, evaluate, levels, ode_step
from cdm.types import Cond, Image

CHURN_SIGMA = (0.05, 50.0)
"""S_min and S_max of Karras et al. 2022, table 5 (ImageNet): no churn at other sigma = exp(-logsnr / 2)."""


def heun(
    denoiser: Denoiser,
    x: Image,
    grid: Float64[Tensor, " n"],
    cond: Cond,
    *,
    clip: Clip | None = None,
    noise: StepNoise | None = None,
    churn: float = 0.0,
) -> Iterator[SampleStep]:
    """Euler's step for x_t / alpha_t over sigma, then the mean of the slopes at both ends. See ``base.Sampler``.

    The step to +inf is Euler's and takes one evaluation. ``x0_hat`` is the last estimate made.

    churn: by what share of the step's own length in log-SNR fresh noise takes x_t back before it (the paper's gamma,
        S_churn over the number of steps, but for uneven grids too); sigma grows by sqrt(2) at most, and never
        beyond the grid's start; none before the step to +inf. The paper's S_noise is 1: above, the result stays too
        wide, however many the steps.

    Raises:
        UserError: churn without ``noise``.
    """
    if churn and noise is None:
        raise UserError("churn needs fresh noise; got noise=None: pass noise(i), or churn=0.")
    values = levels(grid)
    for i, (logsnr_t, logsnr_s) in enumerate(pairwise(values)):
        start = _raised(logsnr_t, churn * (logsnr_s - logsnr_t), values[0], denoiser.table)
        if start < logsnr_t:
            assert noise is not None
            x = _churned(x, noise(i), logsnr_t, start)
        x0_hat, _ = evaluate(denoiser, x, start, cond, clip)
        from_x_t, from_x0 = ode_step(start, logsnr_s)
        ahead = torch.mul(x, from_x_t).add_(x0_hat, alpha=from_x0)
        if math.isinf(logsnr_s):
            yield SampleStep(i, logsnr_s, ahead, x0_hat)
            return
        second, _ = evaluate(denoiser, ahead, logsnr_s, cond, clip)
        # the mean of both slopes, multiplied out: Euler's step with a weighted estimate
        weight = math.exp((logsnr_s - start) / 2) / 2  # 1 / (2 r), r = sigma_s / sigma_t
        x = torch.mul(x, from_x_t).add_(x0_hat, alpha=from_x0 * (1 - weight)).add_(second, alpha=from_x0 * weight)
        yield SampleStep(i, logsnr_s, x, second)


def _raised(logsnr: float, by: float, noisiest: float, table: Float64[Tensor, " T"] | None) -> float:
    """Level to which fresh noise takes ``logsnr``: an entry, where there is a table."""
    low, high = CHURN_SIGMA
    if not 0 < by < math.inf or not low <= math.exp(-logsnr / 2) <= high:
        return logsnr
    raised = max(logsnr - min(by, math.log(2)), noisiest)
    return raised if table is None else float(table[(table - raised).abs().argmin()])


def _churned(x: Image, noise: Image, logsnr: float, raised: float) -> Image:
    """alpha_raised (x / alpha + sqrt(sigma_raised^2 - sigma^2) z), sigma here that of x / alpha."""
    alpha, alpha_raised = (math.sqrt(1 / (1 + math.exp(-value))) for value in (logsnr, raised))
    added = math.sqrt(math.exp(-raised) - math.exp(-logsnr))
    return torch.mul(x, alpha_raised / alpha).add_(noise, alpha=alpha_raised * added)
