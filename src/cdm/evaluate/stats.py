"""Mean and covariance of features, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from cdm.errors import UserError

BLOCK = 1024

Rows = Float32[np.ndarray, "_ _"] | Float64[np.ndarray, "_ _"]
"""Features, one row per image; a ``memmap`` is read block by block."""


@dataclass(frozen=True)
class FeatureStats:
    """What the Fréchet distance knows of a set of images.

    count: of images; 0: a file of reference statistics that does not tell it.
    mean: float64 ``[D]``.
    cov: float64 ``[D, D]``, with ``count - 1`` in the denominator.
    """

    count: int
    mean: Float64[np.ndarray, " d"]
    cov: Float64[np.ndarray, "d d"]

    @property
    def dim(self) -> int:
        return len(self.mean)


def feature_stats(features: Rows) -> FeatureStats:
    """Mean and covariance, summed over blocks of 1024 rows in index order: how the rows came about changes no bit.

    Raises:
        UserError: fewer than 2 rows, or a value that is not finite.
    """
    check_features(features)
    count = len(features)
    mean = torch.zeros(features.shape[1], dtype=torch.float64)
    for block in blocks(features):
        mean += block.sum(dim=0)
    mean /= count
    cov = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for block in blocks(features):  # a second pass: centred sums lose no digits where the mean is large
        centred = block - mean
        cov += centred.T @ centred
    return FeatureStats(count, mean.numpy(), cov.div_(count - 1).numpy())


def check_features(features: Rows) -> None:
    """Raises ``UserError`` for fewer than 2 rows and for values that are not finite."""
    if len(features) < 2:
        raise UserError(f"got features of {len(features)} image(s); expected at least 2: give more images.")
    for start in range(0, len(features), BLOCK):
        if not np.isfinite(features[start : start + BLOCK]).all():
            bad = start + int(np.flatnonzero(~np.isfinite(features[start : start + BLOCK]).all(axis=1))[0])
            raise UserError(
                f"the features of image {bad} are not finite numbers; expected finite ones: "
                "check the extractor's weights and that image."
            )


def is_constant(features: Rows) -> bool:
    """Whether every image has the same features, so that nothing can be told from them."""
    return all(
        bool((features[start : start + BLOCK] == features[:1]).all()) for start in range(0, len(features), BLOCK)
    )


def blocks(features: Rows) -> Iterator[Float64[Tensor, "b d"]]:
    """The rows in order as float64 tensors of 1024, the last one shorter."""
    for start in range(0, len(features), BLOCK):
        yield torch.from_numpy(np.array(features[start : start + BLOCK], dtype=np.float64))
