"""Does a generator copy? Nearest training neighbours of samples, beside those of real images it was not trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, lgamma

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from cdm.errors import UserError
from cdm.evaluate.area import Pixels, take
from cdm.evaluate.intervals import Estimate, proportion
from cdm.evaluate.stats import Rows

CLOSEST = 0.01
"""Share of real images that are nearer than the threshold: few enough that usual look-alikes stay out, enough that with
a few hundred images the threshold does not hang on one of them."""
SAME = 0.5
"""Root mean square difference in 8-bit units below which two images are one: no more than rounding."""
FEWEST = 10  # validation images that are no training images, for a threshold
TILE = 2048  # rows and columns of the distance matrix at a time: 16 MB, whatever the number of images
PAIRS = 16


@dataclass(frozen=True)
class Neighbours:
    """Per image, its nearest training image. ``index``; ``distance``: Euclidean, of features; ``pixels``: root mean
    square difference of the two in 8-bit units."""

    index: Int64[np.ndarray, " n"]
    distance: Float64[np.ndarray, " n"]
    pixels: Float64[np.ndarray, " n"]


@dataclass(frozen=True)
class CopyRate:
    """Share of samples nearer to a training image than ``threshold``, or one themselves.

    threshold: the k-th smallest distance of those real validation images that are no training images.
    rate: with an interval.
    expected: k / (their number + 1), the rate of a generator that draws new images from the real distribution.
    chance: probability that such a generator comes out at this rate or above.
    left_out: validation images that are training images.
    """

    threshold: float
    rate: Estimate
    expected: float
    chance: float
    left_out: int = 0


@dataclass(frozen=True)
class Pair:
    """A sample and its nearest training image, by their numbers."""

    sample: int
    train: int
    distance: float
    pixels: float


@dataclass(frozen=True)
class Memorisation:
    """by_features, by_pixels: copy rates by either distance between a sample and its nearest training image in
    feature space.

    samples, val: quartiles of the distances in feature space.
    pairs: the closest, nearest first, one for each training image.
    val_in_train, samples_in_train: validation images, and samples, that are training images, pixel for pixel.
    """

    by_features: CopyRate
    by_pixels: CopyRate
    samples: tuple[float, float, float]
    val: tuple[float, float, float]
    sample_count: int
    val_count: int
    train_count: int
    pairs: tuple[Pair, ...]
    val_in_train: int
    samples_in_train: int = 0


@dataclass(frozen=True)
class Known:
    """Images and their features, row by row."""

    images: Pixels
    features: Rows


def memorisation(samples: Known, val: Known, train: Known) -> Memorisation:
    """Compare samples with real validation images; all of one size and of one extractor. Memory does not grow with the
    numbers of images.

    Raises:
        UserError: nothing to compare, images or features of different shapes, or hardly any validation image that is no
            training image.
    """
    _check(samples, val, train)
    of_samples, of_val = nearest(samples, train), nearest(val, train)
    same = of_samples.pixels < SAME, of_val.pixels < SAME
    order = np.argsort(of_samples.distance, kind="stable")
    _, first = np.unique(of_samples.index[order], return_index=True)
    closest = order[np.sort(first)][:PAIRS]
    return Memorisation(
        by_features=copy_rate(of_samples.distance, of_val.distance, *same),
        by_pixels=copy_rate(of_samples.pixels, of_val.pixels, *same),
        samples=_quartiles(of_samples.distance),
        val=_quartiles(of_val.distance),
        sample_count=len(of_samples.index),
        val_count=len(of_val.index),
        train_count=len(train.features),
        pairs=tuple(
            Pair(int(i), int(of_samples.index[i]), float(of_samples.distance[i]), float(of_samples.pixels[i]))
            for i in closest
        ),
        val_in_train=int(same[1].sum()),
        samples_in_train=int(same[0].sum()),
    )


def _check(samples: Known, val: Known, train: Known) -> None:
    named = {"generated": samples, "validation": val, "training": train}
    for name, known in named.items():
        if not len(known.features):
            raise UserError(f"there are no {name} images to look for copies among; expected at least one: give some.")
        if known.images.shape[1:] != train.images.shape[1:] or known.features.shape[1] != train.features.shape[1]:
            raise UserError(
                f"got {name} images of shape {tuple(known.images.shape[1:])} with {known.features.shape[1]} features; "
                f"expected {tuple(train.images.shape[1:])} with {train.features.shape[1]}, as the training images: "
                "bring them to one size."
            )


def nearest(images: Known, train: Known) -> Neighbours:
    """The nearest training image of each in feature space, tile by tile."""
    index, distance, pixels = [], [], []
    centre = np.array(train.features[:TILE], dtype=np.float32).mean(axis=0)
    for start, x in _tiles(images.features, centre):
        best = torch.full((len(x),), torch.inf)
        where = torch.zeros(len(x), dtype=torch.int64)
        for at, y in _tiles(train.features, centre):
            least, place = (y.square().sum(1) - 2 * x @ y.T).min(dim=1)
            nearer = least < best
            best, where = torch.where(nearer, least, best), torch.where(nearer, place + at, where)
        index.append(where)
        rows = torch.arange(start, start + len(x))
        distance.append(_feature_distance(images.features, rows, train.features, where))
        pixels.append(_pixel_distance(images.images, rows, train.images, where))
    return Neighbours(torch.cat(index).numpy(), np.concatenate(distance), torch.cat(pixels).numpy())


def _tiles(features: Rows, centre: np.ndarray) -> Iterator[tuple[int, Tensor]]:
    """Centred, so that squares do not lose the distances in their rounding."""
    for start in range(0, len(features), TILE):
        yield start, torch.from_numpy(np.array(features[start : start + TILE], dtype=np.float32) - centre)


def _feature_distance(a: Rows, rows: Tensor, b: Rows, others: Tensor) -> Float64[np.ndarray, " n"]:
    """Exact, from the pair itself: the products above lose small distances."""
    difference = np.asarray(a[rows.numpy()], dtype=np.float64) - np.asarray(b[others.numpy()], dtype=np.float64)
    return np.sqrt((difference**2).sum(axis=1))


def _pixel_distance(a: Pixels, rows: Tensor, b: Pixels, others: Tensor) -> Tensor:
    parts = []
    for mine, other in zip(rows.split(128), others.split(128), strict=True):
        difference = take(a, mine).double() - take(b, other).double()
        parts.append(difference.square().mean(dim=(1, 2, 3)).sqrt())
    return torch.cat(parts)


def _quartiles(distances: Float64[np.ndarray, " n"]) -> tuple[float, float, float]:
    low, middle, high = np.quantile(distances, (0.25, 0.5, 0.75))
    return float(low), float(middle), float(high)


# ---- the copy rate ---------------------------------------------------------------------------------------------------


def copy_rate(
    samples: Float64[np.ndarray, " n"],
    val: Float64[np.ndarray, " m"],
    same_samples: Bool[np.ndarray, " n"],
    same_val: Bool[np.ndarray, " m"],
) -> CopyRate:
    """Share of sample distances below the closest hundredth of those of validation images.

    Images that are training images (``same_...``, or a distance of 0) always count among samples, and never among
    validation images: these leaked, and would put the threshold to 0.

    Where both come from one distribution, a new value is below the k-th smallest of m with probability k / (m + 1),
    and the number of n new ones that are is beta-binomial: the threshold's own chance is in it.

    Raises:
        UserError: too few validation images are left.
    """
    unseen = np.sort(val[~same_val & (val > 0)])
    copied = same_samples | (samples == 0)
    m, n = len(unseen), len(samples)
    if m < min(FEWEST, len(val)):
        raise UserError(
            f"{len(val) - m:,} of {len(val):,} validation images are training images themselves, so that nothing tells "
            f"how near unseen images come; expected at least {FEWEST} others: give other validation images. "
            f"{int(copied.sum()):,} of {n:,} samples are training images."
        )
    k = max(1, round(CLOSEST * (m + 1)))
    threshold = float(unseen[k - 1])
    hits = int((copied | (samples < threshold)).sum())
    return CopyRate(threshold, proportion(hits, n, "samples"), k / (m + 1), _chance(hits, n, k, m), len(val) - m)


def _chance(hits: int, n: int, k: int, m: int) -> float:
    """P(X >= hits) for X beta-binomial with n draws and a = k, b = m + 1 - k."""
    below = sum(exp(_log_beta_binomial(i, n, k, m + 1 - k)) for i in range(hits))
    return min(1.0, max(0.0, 1.0 - below))


def _log_beta_binomial(i: int, n: int, a: int, b: int) -> float:
    choose = lgamma(n + 1) - lgamma(i + 1) - lgamma(n - i + 1)
    return choose + _log_beta(i + a, n - i + b) - _log_beta(a, b)


def _log_beta(a: int, b: int) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)
