"""Precision and recall, density and coverage: is what was generated real, and is what is real generated?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from cdm.errors import UserError
from cdm.evaluate.intervals import Estimate, mean, proportion, student_95
from cdm.evaluate.stats import Rows, check_features
from cdm.rng import Purpose, Rng

TILE = 2048
"""Rows and columns of the distance matrix at a time: 16 MB, whatever the number of images."""
GROUP, LEAST_GROUP = 1000, 30
"""Images in a group for the intervals: about so many of the larger side, at least so many of the smaller."""
DEGREES = 20  # of freedom of an interval's width: it errs by a sixth
SAME = 2e-6
"""Squared distances below this share of both squared lengths are rounding of float32: the images are the same."""


@dataclass(frozen=True)
class Prdc:
    """Each with an interval for the chance in which images of both sides were drawn, which moves neighbourhoods too.

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
    counts = _counts(real, fake, centre, (neighbours, density_neighbours))
    spread = _spread(real, fake, centre, (neighbours, density_neighbours))
    still = (
        proportion(int(counts.inside.sum()), len(fake), "generated images"),
        proportion(int(counts.found.sum()), len(real), "real images"),
        mean(counts.balls.numpy() / density_neighbours, "generated images"),
        proportion(int(counts.covered.sum()), len(real), "real images"),
    )
    ends = (1.0, 1.0, inf, 1.0)
    estimates = [_moved(*each, i, spread) for i, each in enumerate(zip(still, ends, strict=True))]
    return Prdc(*estimates, neighbours=neighbours, density_neighbours=density_neighbours)


@dataclass(frozen=True)
class _Counts:
    """Which generated images lie in a real neighbourhood (``inside``), and in how many (``balls``); which real ones lie
    in a generated one's (``found``), and which have one in theirs (``covered``)."""

    inside: Bool[Tensor, " fake"]
    balls: Int64[Tensor, " fake"]
    found: Bool[Tensor, " real"]
    covered: Bool[Tensor, " real"]

    def figures(self, density_neighbours: int) -> tuple[float, float, float, float]:
        """Precision, recall, density, coverage."""
        means = [float(of.double().mean()) for of in (self.inside, self.found, self.balls, self.covered)]
        return means[0], means[1], means[2] / density_neighbours, means[3]


def _counts(real: Rows, fake: Rows, centre: Float32[Tensor, " d"], neighbours: tuple[int, int]) -> _Counts:
    real_radii = _radii(real, centre, neighbours)
    fake_radii = _radii(fake, centre, neighbours[:1])[0]
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
    return _Counts(inside, balls, found, covered)


# ---- intervals -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Spread:
    """Standard error of each figure, with degrees of freedom; ``groups`` is 0 where there are too few images."""

    errors: tuple[float, ...]
    groups: int
    partitions: int

    @property
    def degrees(self) -> int:
        return self.partitions * (self.groups - 1)


def _spread(real: Rows, fake: Rows, centre: Float32[Tensor, " d"], neighbours: tuple[int, int]) -> _Spread:
    """Both sides are split at random into as many groups, and every group of the one is measured against one of the
    other: these figures are independent, and their variance by the number of groups is that of the whole, as variances
    of such local figures fall as 1 / n (Penrose & Yukich 2001). Resampling with images left in twice, or a jackknife,
    is not consistent for nearest neighbours (Abadie & Imbens 2008).

    The means of several partitions are taken. Groups have about ``GROUP`` images, so that this costs at most a few
    times the figures themselves.
    """
    smaller, larger = sorted((len(real), len(fake)))
    groups = max(2, min(larger // GROUP, smaller // LEAST_GROUP))
    if smaller // groups <= max(neighbours):
        return _Spread((), 0, 0)
    partitions = -(-DEGREES // (groups - 1))
    rng = Rng(0)
    variances = []
    for partition in range(partitions):
        orders = [rng.permutation(Purpose.EVALUATE, len(side), step=2 * partition + i).numpy()
                  for i, side in enumerate((real, fake))]  # fmt: skip
        figures = [
            _counts(real[np.sort(orders[0][g::groups])], fake[np.sort(orders[1][g::groups])], centre, neighbours)
            .figures(neighbours[1])
            for g in range(groups)
        ]  # fmt: skip
        variances.append(np.var(figures, axis=0, ddof=1) / groups)
    return _Spread(tuple(np.sqrt(np.mean(variances, axis=0)).tolist()), groups, partitions)


def _moved(still: Estimate, most: float, index: int, spread: _Spread) -> Estimate:
    """The interval widened from ``still``, which takes neighbourhoods as given, to what all images' chance makes it."""
    if not spread.groups or still.low is None or still.high is None:
        return Estimate(still.value, None, None, "no interval: too few images to split in two")
    reach = student_95(spread.degrees) * spread.errors[index]
    low, high = min(still.low, max(0.0, still.value - reach)), max(still.high, min(most, still.value + reach))
    return Estimate(still.value, low, high, f"{spread.partitions} random splits of both sides into {spread.groups}")


# ---- distances -------------------------------------------------------------------------------------------------------


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
