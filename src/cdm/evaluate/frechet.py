"""Fréchet distance between two sets of features: FID, sFID, FD-DINOv2, FD-domain, by the extractor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from cdm.errors import UserError
from cdm.evaluate.intervals import Estimate, jackknife
from cdm.evaluate.stats import FeatureStats, Rows, blocks, feature_stats

GROUPS = 20
"""Of the jackknife."""
INTERVALS = "groups by class"
"""How they are made: part of the keys that figures are kept under."""
Strata = Int64[np.ndarray, "_"]
"""Class of each image, or its group."""


def frechet_distance(a: FeatureStats, b: FeatureStats) -> float:
    """``|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2))`` (Heusel et al. 2017, eq. 6).

    With ``cov = R^T R`` the last trace is the sum of the singular values of ``R_a R_b^T``, for any factor R of any
    rank: nothing that ought to be zero is put under a square root, so a covariance need not have full rank.

    Raises:
        UserError: the statistics are of features of different widths.
    """
    _check_same_width(a, b)
    return _distance(a, b, symmetric_root(a.cov), symmetric_root(b.cov))


def frechet_estimate(
    real: FeatureStats, fake: Rows, strata: Strata | None = None, groups: Strata | None = None
) -> Estimate:
    """Fréchet distance to ``real`` with an interval for the chance in which images were generated.

    The interval is a jackknife over 20 groups of the generated images; the reference stands still. It does not cover
    the bias that every Fréchet distance has from finite samples: compare equal counts.

    Args:
        strata: class of each image, where so many of each were asked for: how many there are is then no chance.
        groups: of the jackknife, instead: for images that hang together, which must fall into one (``groups_of``).

    Raises:
        UserError: different widths, fewer than 2 images, values that are not finite.
    """
    stats = feature_stats(fake)
    _check_same_width(real, stats)
    root = symmetric_root(real.cov)
    own_root = _rows_assymmetric_root(fake, stats) if len(fake) <= stats.dim else symmetric_root(stats.cov)
    value = _distance(real, stats, root, own_root)
    if len(fake) < 2 * GROUPS:
        return Estimate(value, None, None, f"no interval from {len(fake)} images, fewer than {2 * GROUPS}")
    left_out = leave_out(fake, stats, groups_of(len(fake), strata) if groups is None else groups)
    estimate = jackknife(value, [quick_distance(real, left, root) for left in left_out], "images")
    assert estimate.low is not None
    return replace(estimate, low=max(0.0, estimate.low))


def _check_same_width(a: FeatureStats, b: FeatureStats) -> None:
    if a.dim != b.dim:
        raise UserError(
            f"got statistics of {a.dim} and of {b.dim} features; expected the same extractor on both sides: "
            "compute both with one extractor."
        )


def _distance(a: FeatureStats, b: FeatureStats, root_a: Tensor, root_b: Tensor) -> float:
    shift = float(((a.mean - b.mean) ** 2).sum())
    product = root_a @ root_b.T
    cross = float(torch.linalg.svdvals(product).sum()) if product.numel() else 0.0
    return max(0.0, shift + float(np.trace(a.cov) + np.trace(b.cov)) - 2 * cross)


def symmetric_root(cov: Float64[np.ndarray, "d d"]) -> Float64[Tensor, "rank d"]:
    """R with ``R^T R = cov``, from the symmetric eigendecomposition; directions without variance are left out."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(cov))
    noise = len(cov) * torch.finfo(torch.float64).eps * float(values.abs().max())
    kept = values > noise
    return values[kept].sqrt()[:, None] * vectors[:, kept].T


def _rows_assymmetric_root(features: Rows, stats: FeatureStats) -> Float64[Tensor, "n d"]:
    """The centred rows themselves: for fewer images than features, no decomposition of ``[D, D]`` is needed."""
    return (torch.cat(list(blocks(features))) - torch.from_numpy(stats.mean)) / (stats.count - 1) ** 0.5


# ---- the jackknife ---------------------------------------------------------------------------------------------------


def groups_of(count: int, strata: Strata | None = None) -> Strata:
    """Group of each image: as many in each, and of each class as many in each. Without classes image i falls into
    ``i % GROUPS``, which classes in turn would share a divisor with."""
    groups = np.arange(count) % GROUPS
    if strata is None:
        return groups
    dealt = np.empty_like(groups)
    dealt[np.argsort(strata[:count], kind="stable")] = groups
    return dealt


def leave_out(features: Rows, stats: FeatureStats, groups: Strata) -> Iterator[FeatureStats]:
    """Statistics without the images of each group in turn."""
    mean, place = torch.from_numpy(stats.mean), torch.from_numpy(groups)
    counts = np.bincount(groups, minlength=GROUPS).tolist()
    sums = torch.zeros(GROUPS, stats.dim, dtype=torch.float64)
    squares = torch.zeros(GROUPS, stats.dim, stats.dim, dtype=torch.float64)
    start = 0
    for block in blocks(features):
        centred = block - mean
        for group in range(GROUPS):
            rows = centred[place[start : start + len(block)] == group]
            sums[group] += rows.sum(dim=0)
            squares[group].addmm_(rows.T, rows)
        start += len(block)
    total = torch.from_numpy(stats.cov) * (stats.count - 1)
    for group, count in enumerate(counts):  # one at a time: each is [D, D]
        yield _without(stats, total, count, sums[group], squares[group])


def _without(stats: FeatureStats, total: Tensor, count: int, shift: Tensor, squares: Tensor) -> FeatureStats:
    """``stats`` without ``count`` rows; ``shift`` and ``squares`` are sums of these rows less the mean."""
    left = stats.count - count
    moved = -shift / left
    cov = (total - squares - left * torch.outer(moved, moved)) / (left - 1)
    return FeatureStats(left, stats.mean + moved.numpy(), cov.numpy())


def quick_distance(real: FeatureStats, fake: FeatureStats, root: Tensor) -> float:
    """The same distance by eigenvalues of ``R cov R^T``: four times as fast, exact enough for an interval."""
    inner = root @ torch.from_numpy(fake.cov) @ root.T
    cross = float(torch.linalg.eigvalsh(inner).clamp(min=0).sqrt().sum()) if len(root) else 0.0
    shift = float(((real.mean - fake.mean) ** 2).sum())
    return shift + float(np.trace(real.cov) + np.trace(fake.cov)) - 2 * cross
