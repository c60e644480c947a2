"""UniPC (Zhao et al. 2023, algorithms 1 and 2): predicts in second order, corrects in third without an evaluation."""

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

Estimates = list[tuple[float, Image]]
"""Level and x0_hat, the newest first."""


def unipc(
    denoiser: Denoiser,
    x: Image,
    grid: Float64[Tensor, " n"],
    cond: Cond,
    *,
    clip: Clip | None = None,
    noise: StepNoise | None = None,  # every sampler takes it; this one is deterministic
) -> Iterator[SampleStep]:
    """Steps with x0_hat as the polynomial in log-SNR through the last estimates. See ``base.Sampler``.

    The predictor goes through two of them. The estimate at its end is the next step's anyway: with it the step is
    taken once more, through three. Its weights are the polynomial's own, integrated exactly.
    """
    known: Estimates = []
    before: tuple[Image, float] | None = None  # x_t and level that the last step began at
    for i, (logsnr_t, logsnr_s) in enumerate(pairwise(levels(grid))):
        x0_hat, _ = evaluate(denoiser, x, logsnr_t, cond, clip)
        if before is not None:
            x = _step(before[0], before[1], logsnr_t, [(logsnr_t, x0_hat), *known])
        known = [(logsnr_t, x0_hat), *known[:1]]
        before = x, logsnr_t
        x = _step(x, logsnr_t, logsnr_s, known if math.isfinite(logsnr_s) else known[:1])
        yield SampleStep(i, logsnr_s, x, x0_hat)


def _step(x: Image, logsnr_t: float, logsnr_s: float, through: Estimates) -> Image:
    """From level t to s with x0_hat(logsnr) the polynomial through these estimates (Lu et al. 2022, eq. 8)."""
    from_x_t, from_x0 = ode_step(logsnr_t, logsnr_s)
    out = torch.mul(x, from_x_t)
    if len(through) == 1:
        return out.add_(through[0][1], alpha=from_x0)
    span = (logsnr_s - logsnr_t) / 2
    places = [(level - logsnr_s) / 2 for level, _ in through]
    for weight, (_, estimate) in zip(_weights(span, places), through, strict=True):
        out.add_(estimate, alpha=from_x0 * weight)
    return out


def _weights(span: float, places: list[float]) -> list[float]:
    """Mean under the density e^u on -span < u < 0 of each Lagrange polynomial through ``places``; they sum to 1."""
    moments = [-math.expm1(-span)]
    for k in range(1, len(places)):
        moments.append(-((-span) ** k) * math.exp(-span) - k * moments[-1])
    out = []
    for j, own in enumerate(places):
        others = [place for m, place in enumerate(places) if m != j]
        factors, scale = [1.0], 1.0  # of the product of (u - other), the highest power last
        for other in others:
            factors = [a - other * b for a, b in zip([0.0, *factors], [*factors, 0.0], strict=True)]
            scale *= own - other
        out.append(sum(f * m for f, m in zip(factors, moments, strict=True)) / scale / moments[0])
    return out
