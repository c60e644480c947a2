"""What all samplers share: the step they yield, and the exact coefficients of one step.

A sampler is a pure function of a denoiser, initial noise, a grid, ``cond`` and randomness. It yields after every step,
so progress, previews and cancelling use one generator; draining it gives the image. Gradient mode is the caller's.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from jaxtyping import Float64
from torch import Tensor

from cdm.denoiser import Denoiser
from cdm.errors import UserError
from cdm.types import Cond, Image, Prediction

Clip = Callable[[Image], Image]
"""Acts on x0_hat, after guidance."""
StepNoise = Callable[[int], Image]
"""``noise(i)``: the standard normal of step i, in the shape and dtype of x_t."""


@dataclass(frozen=True)
class SampleStep:
    """The state after step ``i``.

    i: 0 to num_steps - 1.
    logsnr: level of ``x_t``, the grid's entry i + 1; +inf for a finished image.
    x_t: ``[B, C, H, W]`` at that level.
    x0_hat: ``[B, C, H, W]``, the (clipped) clean estimate that the step was made from.
    """

    i: int
    logsnr: float
    x_t: Image
    x0_hat: Image


class Sampler(Protocol):
    """``grid``: float64 ``[num_steps + 1]``, strictly rising; the last may be +inf (the result is then x0_hat)."""

    def __call__(
        self,
        denoiser: Denoiser,
        x: Image,
        grid: Float64[Tensor, " n"],
        cond: Cond,
        *,
        clip: Clip | None = None,
        noise: StepNoise | None = None,
    ) -> Iterator[SampleStep]: ...


def drain(steps: Iterator[SampleStep]) -> Image:
    """Runs a sampler to its end and returns the last x_t."""
    return deque(steps, maxlen=1).pop().x_t


def levels(grid: Float64[Tensor, " n"]) -> list[float]:
    """The grid as Python floats, checked.

    Raises:
        UserError: fewer than two entries, a fall, NaN, or an infinite start.
    """
    values = [float(value) for value in grid.double().tolist()]
    rising = all(low < high for low, high in pairwise(values))
    if len(values) < 2 or not rising or not math.isfinite(values[0]):
        raise UserError(f"a grid needs at least two strictly rising log-SNRs from a finite start; got {values}.")
    return values


def clip_to_range(x0: Image) -> Image:
    """Static thresholding: to [-1, 1]."""
    return x0.clamp(-1, 1)


def clip_dynamically(x0: Image, percentile: float) -> Image:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3): clipped to the ``percentile`` of each image's absolute
    values where that is over 1, and brought back to [-1, 1]."""
    limit = torch.quantile(x0.abs().flatten(1).float(), percentile, dim=1).to(x0.dtype).clamp(min=1.0).view(-1, 1, 1, 1)
    return torch.maximum(torch.minimum(x0, limit), -limit) / limit


def evaluate(denoiser: Denoiser, x: Image, logsnr: float, cond: Cond, clip: Clip | None) -> tuple[Image, Prediction]:
    """Clean estimate (clipped if asked) and the whole prediction at one level shared by the batch."""
    prediction = denoiser(x, torch.full((len(x),), logsnr, dtype=x.dtype, device=x.device), cond)
    return prediction.x0 if clip is None else clip(prediction.x0), prediction


def sde_step(logsnr_t: float, logsnr_s: float, tau: float) -> tuple[float, float, float]:
    """Factors of x_t and x0_hat, and the standard deviation of fresh noise, in a step with x0_hat held.

    The exact solution of the SDE whose noise is ``tau`` times the reverse one's (Xue et al. 2023, SA-Solver). 0 is the
    ODE's, alpha_s x0_hat + sigma_s eps with eps = (x_t - alpha_t x0_hat) / sigma_t, so eps always belongs to the
    x0_hat in use, clipped or not; 1 is the posterior q(x_s | x_t, x0_hat). (0, 1, 0) at logsnr_s = +inf.
    """
    if math.isinf(logsnr_s):
        return 0.0, 1.0, 0.0
    gap, share = (logsnr_t - logsnr_s) / 2, tau**2
    var_s, var_t = _sigmoid(-logsnr_s), _sigmoid(-logsnr_t)
    from_x_t = math.sqrt(var_s / var_t) * math.exp(gap * share)
    from_x0 = -math.sqrt(_sigmoid(logsnr_s)) * math.expm1(gap * (1 + share))
    return from_x_t, from_x0, math.sqrt(-var_s * math.expm1(2 * gap * share))


def ode_step(logsnr_t: float, logsnr_s: float) -> tuple[float, float]:
    """Factors of x_t and x0_hat in a step without fresh noise."""
    return sde_step(logsnr_t, logsnr_s, 0.0)[:2]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
