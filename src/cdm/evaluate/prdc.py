"""Precision and recall, density and coverage: is what was generated real, and is what is real generated?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from cdm.errors import UserError
from cdm.evaluate.intervals import Estimate, mean, proportion
from cdm.evaluate.stats import Rows, check_features

TILE = 2048
"""Rows and columns of the distance matrix at a time: 16 MB, whatever the number of images."""
SAME = 2e-6
"""Squared distances below this share of both squared lengths are rounding of float32: the images are the same."""


@dataclass(frozen=True)
class Prdc:
    """Each with an interval for the chance in which images were drawn, the neighbourhoods standing still.

    precision: share of generated images within the neighbourhood of some real one.
    recall: share of real images within the neighbourhood of some generated one.
    density: mean number of real neighbourhoods that hold a generated image, by neighbours; 1 for equal distributions.
    coverage: share of real images whose neighbourhood holds a generated one.
    neighbours: of precision and recall.
    density_neighbours: of density and coverage.
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate
    neighbours: int
    density_neighbours: int


def prdc(real: Rows, fake: Rows, *, neighbours: int = 3, density_neighbours: int = 5) -> Prdc:
    """Precision and recall (Kynkaanniemi et al. 2019, eq. 1, k = 3 there, in ADM's evaluator and in torch-fidelity),
    density and coverage (Naeem et al. 2020, eqs. 4 and 6, k = 5).

    A neighbourhood is the closed ball up to the k-th nearest other image of its own side. Distances are computed tile
    by tile in float32, so memory does not grow with the number of pairs.

    Raises:
        UserError: different widths, no more images than neighbours on a side, values that are not finite.
    """
    most = max(neighbours, density_neighbours)
    for side, features in (("real", real), ("generated", fake)):
        if len(features) <= most:
            raise UserError(f"got {len(features)} {side} images; expected more than {most}, the neighbours: give more.")
        check_features(features)
    if real.shape[1] != fake.shape[1]:
        raise UserError(
            f"got {real.shape[1]} and {fake.shape[1]} features per image; expected the same extractor on both sides."
        )
    centre = _mean(real)  # distances do not change, and what is squared gets small
    real_radii = _radii(real, centre, (neighbours, density_neighbours))
    fake_radii = _radii(fake, centre, (neighbours,))[0]
    inside = torch.zeros(len(fake), dtype=torch.bool)
    balls = torch.zeros(len(fake), dtype=torch.int64)
    found = torch.zeros(len(real), dtype=torch.bool)
    covered = torch.zeros(len(real), dtype=torch.bool)
    for rows, x in _tiles(real, centre):
        for columns, y in _tiles(fake, centre):
            squared = _squared_distances(x, y)
            near = squared <= real_radii[1][rows, None]
            balls[columns] += near.sum(dim=0)
            covered[rows] |= near.any(dim=1)
            inside[columns] |= (squared <= real_radii[0][rows, None]).any(dim=0)
            found[rows] |= (squared <= fake_radii[None, columns]).any(dim=1)
    return Prdc(
        precision=proportion(int(inside.sum()), len(fake), "generated images"),
        recall=proportion(int(found.sum()), len(real), "real images"),
        density=mean(balls.numpy() / density_neighbours, "generated images"),
        coverage=proportion(int(covered.sum()), len(real), "real images"),
        neighbours=neighbours,
        density_neighbours=density_neighbours,
    )


def _mean(features: Rows) -> Float32[Tensor, " d"]:
    return torch.from_numpy(np.mean(features, axis=0, dtype=np.float64).astype(np.float32))


def _tiles(features: Rows, centre: Float32[Tensor, " d"]) -> Iterator[tuple[slice, Float32[Tensor, "b d"]]]:
    for start in range(0, len(features), TILE):
        rows = slice(start, start + TILE)
        yield rows, torch.from_numpy(np.array(features[rows], dtype=np.float32)) - centre


def _squared_distances(x: Float32[Tensor, "a d"], y: Float32[Tensor, "b d"]) -> Float32[Tensor, "a b"]:
    """``|x|^2 + |y|^2 - 2 x.y``; 0 where that is no more than rounding."""
    lengths = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)[None, :]
    squared = torch.addmm(lengths, x, y.T, alpha=-2)
    return squared.masked_fill_(squared < SAME * lengths, 0)


def _radii(features: Rows, centre: Float32[Tensor, " d"], neighbours: tuple[int, ...]) -> list[Float32[Tensor, " n"]]:
    """Squared distance of each image to its k-th nearest other one, for each k of ``neighbours``."""
    keep = max(neighbours) + 1  # the image itself is the nearest
    nearest = []
    for _, x in _tiles(features, centre):
        best = torch.full((len(x), keep), torch.inf)
        for _, y in _tiles(features, centre):
            squared = _squared_distances(x, y)
            best = torch.cat([best, squared], dim=1).topk(keep, dim=1, largest=False).values
        nearest.append(best.sort(dim=1).values)
    ordered = torch.cat(nearest)
    return [ordered[:, k] for k in neighbours]
