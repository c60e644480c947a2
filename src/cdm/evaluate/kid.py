"""Kernel Inception Distance: a distance whose estimate has no bias, for small sample counts too."""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from cdm.errors import UserError
from cdm.evaluate.intervals import Estimate, student_95
from cdm.evaluate.stats import Rows, check_features

SEED = 2020
"""torch-fidelity's default; with it the same features give the same number there and here."""
LEAST = 8
"""Images on a side."""


def kid(real: Rows, fake: Rows, *, subsets: int = 100, subset_size: int = 1000, seed: int = SEED) -> Estimate:
    """Mean over random subsets of the unbiased MMD^2 with the kernel ``(x.y / D + 1)^3`` (Binkowski et al. 2018,
    section 4).

    The subsets are those that torch-fidelity draws. With fewer than ``subset_size`` images on a side, a subset has half
    as many as the smaller side. The interval covers the choice of images on both sides, each with its own count, see
    ``_Parts.error``, and the finite number of subsets. It is symmetric: with a handful of features of heavy tails, for
    which the cubic kernel is skewed, the truth lies above it in up to one case of six.

    Raises:
        UserError: different widths, fewer than 8 images on a side, values that are not finite.
    """
    smaller = min(len(real), len(fake))
    if smaller < LEAST:
        raise UserError(
            f"KID needs at least {LEAST} images on both sides; got {len(real)} real, {len(fake)} judged: give more."
        )
    if real.shape[1] != fake.shape[1]:
        raise UserError(
            f"got {real.shape[1]} and {fake.shape[1]} features per image; expected the same extractor on both sides."
        )
    check_features(real)
    check_features(fake)
    m = subset_size if subset_size <= smaller else smaller // 2
    draw = np.random.RandomState(seed)  # torch-fidelity's generator, so that numbers agree
    parts = []
    for _ in range(subsets):
        rows = draw.choice(len(real), m, replace=False), draw.choice(len(fake), m, replace=False)
        parts.append(mmd_parts(_pick(real, rows[0]), _pick(fake, rows[1])))
    values = np.array([part.value for part in parts])
    variance = _Parts(*np.mean(parts, axis=0)).error(m, len(real), len(fake)) + float(values.var(ddof=1)) / subsets
    reach = student_95(smaller - 1) * sqrt(variance)
    mean = float(values.mean())
    told = f"variance of MMD^2 for {len(real):,} and {len(fake):,} images, from {subsets} subsets of {m}"
    return Estimate(mean, mean - reach, mean + reach, told)


def _pick(features: Rows, rows: np.ndarray) -> Float64[Tensor, "m d"]:
    return torch.from_numpy(features[rows].astype(np.float64))


class _Parts(NamedTuple):
    """MMD^2 of one subset and what its variance is made of.

    x, y: variance over the images of a side of their mean kernel with their own side, less that with the other.
    xx, yy, xy: variance of the kernel between images once the means of both are taken off.
    """

    value: float
    x: float
    y: float
    xx: float
    yy: float
    xy: float

    def error(self, m: int, real: int, fake: int) -> float:
        """Variance of MMD^2 from ``real`` and ``fake`` images, these being the parts of subsets of ``m``.

        Hoeffding's decomposition of a U-statistic (Lee 1990, section 1.6): the linear terms count where the
        distributions differ, the others where they are equal. A mean kernel over m images holds the m-th part of the
        others, which is taken off.
        """
        x = self.x - self.xx / (m - 1) - self.xy / m
        y = self.y - self.yy / (m - 1) - self.xy / m
        own = 2 * self.xx / (real * (real - 1)) + 2 * self.yy / (fake * (fake - 1))
        return max(0.0, 4 * x / real + 4 * y / fake) + own + 4 * self.xy / (real * fake)


def mmd_parts(x: Float64[Tensor, "m d"], y: Float64[Tensor, "m d"]) -> _Parts:
    """Unbiased estimate of MMD^2 (Gretton et al. 2012, eq. 3) with the cubic kernel, and the parts of its variance."""
    m = len(x)
    within, between = (_kernel(x, x), _kernel(y, y)), _kernel(x, y)
    sums = [kernel.sum(dim=1) - kernel.diagonal() for kernel in within]
    value = (sums[0].sum() + sums[1].sum()) / (m * (m - 1)) - 2 * between.mean()
    linear = [own / (m - 1) - between.mean(dim=1 - side) for side, own in enumerate(sums)]
    rest = [_interaction(kernel, own / (m - 1)) for kernel, own in zip(within, sums, strict=True)]
    crossed = between - between.mean(dim=1, keepdim=True) - between.mean(dim=0) + between.mean()
    parts = (value, *(own.var() for own in linear), *rest, crossed.square().sum() / (m - 1) ** 2)
    return _Parts(*map(float, parts))


def _interaction(kernel: Float64[Tensor, "m m"], means: Float64[Tensor, " m"]) -> Float64[Tensor, ""]:
    """Mean square of what is left between two different images of a side beside the means of both."""
    m = len(means)
    left = kernel - means[:, None] - means + means.mean()
    return (left.square().sum() - left.diagonal().square().sum()) / (m * max(1, m - 3))


def _kernel(x: Float64[Tensor, "m d"], y: Float64[Tensor, "m d"]) -> Float64[Tensor, "m m"]:
    inner = (x @ y.T).div_(x.shape[1]).add_(1)
    return inner * inner * inner
