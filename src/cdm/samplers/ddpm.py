"""Ancestral sampling (Ho et al. 2020, algorithm 2), between any two levels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from cdm.denoiser import Denoiser
from cdm.errors import UserError
from cdm.noise.process import posterior_coefficients
from cdm.samplers.base import Clip, SampleStep, StepNoise, evaluate, levels
from cdm.types import Cond, Image

Variance = Literal["small", "large", "learned"]


def ddpm(
    denoiser: Denoiser,
    x: Image,
    grid: Float64[Tensor, " n"],
    cond: Cond,
    *,
    clip: Clip | None = None,
    noise: StepNoise | None = None,
    variance: Variance | None = None,
) -> Iterator[SampleStep]:
    """x_s ~ N(posterior mean of (x_t, x0_hat), variance of this very step). See ``base.Sampler``.

    ``variance``: None is "learned" where the denoiser predicts it, else "small". A step to +inf adds no noise and
    returns x0_hat.

    Raises:
        UserError: no ``noise``, or "learned" with a denoiser that predicts no variance.
    """
    if noise is None:
        raise UserError("ancestral sampling needs fresh noise; got noise=None: pass noise(i), or use ddim.")
    values = levels(grid)
    table = torch.stack(posterior_coefficients(grid[:-1], grid[1:])).T.tolist()
    for i, (from_x_t, from_x0, small, large) in enumerate(table):
        x0_hat, prediction = evaluate(denoiser, x, values[i], cond, clip)
        x = torch.mul(x, from_x_t).add_(x0_hat, alpha=from_x0)
        if math.isfinite(values[i + 1]):
            _add_noise_(x, noise(i), prediction.var_fraction, small, large, variance)
        yield SampleStep(i, values[i + 1], x, x0_hat)


def _add_noise_(
    x: Image, noise: Image, fraction: Image | None, small: float, large: float, variance: Variance | None
) -> None:
    variance = variance or ("small" if fraction is None else "learned")
    if variance != "learned":
        x.add_(noise, alpha=math.exp((small if variance == "small" else large) / 2))
        return
    if fraction is None:
        raise UserError("this denoiser predicts no variance; got variance='learned': use 'small' or 'large'.")
    # Nichol & Dhariwal 2021, eq. 15, as a standard deviation
    x.addcmul_(noise, torch.mul(fraction.to(x.dtype), (large - small) / 2).add_(small / 2).exp_())
