"""DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order, one evaluation per step; for the ODE, the reverse SDE
(section 5), and all between."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from jaxtyping import Float64
from torch import Tensor

from cdm.denoiser import Denoiser
from cdm.errors import UserError
from cdm.samplers.base import Clip, SampleStep, StepNoise, evaluate, levels, sde_step
from cdm.types import Cond, Image


def dpmpp(
    denoiser: Denoiser,
    x: Image,
    grid: Float64[Tensor, " n"],
    cond: Cond,
    *,
    clip: Clip | None = None,
    noise: StepNoise | None = None,
    tau: float = 0.0,
) -> Iterator[SampleStep]:
    """Extrapolates x0_hat half a step ahead from the last two estimates (midpoint). See ``base.Sampler``.

    The first step is first order, having no past, and so is one to +inf, which has no half way.

    tau: noise that is drawn anew on the way, as a multiple of the reverse SDE's coefficient (Xue et al. 2023,
        SA-Solver): 0 is the ODE, without noise; at 1 the first-order steps are ancestral ones with the small variance.
        Long steps forget more of their start, so at 1/2 they draw more than half of what the SDE does. All have the
        same law for an exact denoiser and many steps. Noise mends errors of earlier steps, and wants shorter steps.

    Raises:
        UserError: ``tau`` below 0, or above 0 without ``noise``.
    """
    if not 0 <= tau < math.inf:
        raise UserError(f"tau is a multiple of the reverse SDE's noise; got {tau}: expected 0 (the ODE) or more.")
    if tau and noise is None:
        raise UserError("this sampler needs fresh noise; got noise=None: pass noise(i), or tau=0 (dpmpp).")
    past: tuple[Image, float] | None = None  # x0_hat and length of the step before
    for i, (logsnr_t, logsnr_s) in enumerate(pairwise(levels(grid))):
        x0_hat, _ = evaluate(denoiser, x, logsnr_t, cond, clip)
        from_x_t, from_x0, std = sde_step(logsnr_t, logsnr_s, tau)
        length = logsnr_s - logsnr_t
        x = torch.mul(x, from_x_t)
        if past is None or math.isinf(length):
            x.add_(x0_hat, alpha=from_x0)
        else:
            ahead = length / (2 * past[1])  # 1 / (2 r) of the paper; its lambda is logsnr / 2, the ratio is the same
            x.add_(x0_hat, alpha=from_x0 * (1 + ahead)).add_(past[0], alpha=-from_x0 * ahead)
        if std:
            assert noise is not None
            x.add_(noise(i), alpha=std)
        past = x0_hat, length
        yield SampleStep(i, logsnr_s, x, x0_hat)
