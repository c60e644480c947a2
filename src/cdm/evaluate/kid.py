"""Kernel Inception Distance: a distance whose estimate has no bias, for small sample counts too."""

from __future__ import annotations

from math import sqrt

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from cdm.errors import UserError
from cdm.evaluate.intervals import Estimate, student_95
from cdm.evaluate.stats import Rows, check_features

SEED = 2020
"""torch-fidelity's default; with it the same features give the same number there and here."""


def kid(real: Rows, fake: Rows, *, subsets: int = 100, subset_size: int = 1000, seed: int = SEED) -> Estimate:
    """Mean over random subsets of the unbiased MMD^2 with the kernel ``(x.y / D + 1)^3`` (Binkowski et al. 2018,
    section 4).

    The subsets are those that torch-fidelity draws. With fewer than ``subset_size`` images on a side, a subset has half
    as many as the smaller side. The interval covers the choice of images on both sides: drawing subsets of m of N
    images without replacement is the delete-(N - m) jackknife (Shao & Wu 1989), which scales their variance by
    m / (N - m); 1 / subsets is added for their finite number.

    Raises:
        UserError: different widths, fewer than 8 images on a side, values that are not finite.
    """
    smaller = min(len(real), len(fake))
    if smaller < 8:
        raise UserError(f"KID needs at least 8 images on both sides; got {len(real)} and {len(fake)}: give more.")
    if real.shape[1] != fake.shape[1]:
        raise UserError(
            f"got {real.shape[1]} and {fake.shape[1]} features per image; expected the same extractor on both sides."
        )
    check_features(real)
    check_features(fake)
    m = subset_size if subset_size <= smaller else smaller // 2
    draw = np.random.RandomState(seed)  # torch-fidelity's generator, so that numbers agree
    values = np.empty(subsets)
    for i in range(subsets):
        rows = draw.choice(len(real), m, replace=False), draw.choice(len(fake), m, replace=False)
        values[i] = mmd(_pick(real, rows[0]), _pick(fake, rows[1]))
    told = f"{subsets} subsets of {m}"
    if m == smaller:
        return Estimate(float(values.mean()), None, None, f"no interval: {told} are all images of a side")
    error = float(values.std(ddof=1)) * sqrt(m / (smaller - m) + 1 / subsets)
    reach = student_95(subsets - 1) * error
    mean = float(values.mean())
    return Estimate(mean, mean - reach, mean + reach, f"subsampling jackknife, {told}")


def _pick(features: Rows, rows: np.ndarray) -> Float64[Tensor, "m d"]:
    return torch.from_numpy(features[rows].astype(np.float64))


def mmd(x: Float64[Tensor, "m d"], y: Float64[Tensor, "m d"]) -> float:
    """Unbiased estimate of MMD^2 (Gretton et al. 2012, eq. 3) with the cubic kernel."""
    m = len(x)
    within = sum((kernel.sum() - kernel.diagonal().sum() for kernel in (_kernel(x, x), _kernel(y, y))), torch.zeros(()))
    return float(within / (m * (m - 1)) - 2 * _kernel(x, y).mean())


def _kernel(x: Float64[Tensor, "m d"], y: Float64[Tensor, "m d"]) -> Float64[Tensor, "m m"]:
    inner = (x @ y.T).div_(x.shape[1]).add_(1)
    return inner * inner * inner
