"""A figure with its 95 % interval, and the ways to get one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
from jaxtyping import Float64

Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Estimate:
    """A figure and where its true value lies with 95 % confidence.

    low, high: None where there is no interval; ``method`` then says why.
    method: how the interval was found and which error it covers, in words.
    """

    value: float
    low: float | None
    high: float | None
    method: str


def student_95(degrees: int) -> float:
    """The 97.5 % quantile of Student's t, to 1e-3 from 4 degrees of freedom up (Abramowitz & Stegun 26.7.5)."""
    assert degrees >= 4
    z = Z95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees ** (i + 1) for i, term in enumerate(terms))


def jackknife(value: float, left_out: Sequence[float], what: str) -> Estimate:
    """Delete-a-group jackknife (Efron & Tibshirani 1993, ch. 11; Student's t with one degree less than groups).

    Args:
        value: the figure from all samples.
        left_out: the same figure with each of the equal groups left out; at least 5.
        what: what the groups are of, for ``method``: ``"generated images"``.
    """
    groups = len(left_out)
    spread = np.asarray(left_out, dtype=np.float64)
    error = sqrt((groups - 1) / groups * float(((spread - spread.mean()) ** 2).sum()))
    reach = student_95(groups - 1) * error
    return Estimate(value, value - reach, value + reach, f"jackknife over {groups} groups of {what}")


def proportion(hits: int, count: int, what: str) -> Estimate:
    """A share of independent trials with Wilson's interval (1927), which holds near 0 and 1 too."""
    assert 0 <= hits <= count and count > 0
    share, shrink = hits / count, 1 + Z95**2 / count
    centre = (share + Z95**2 / (2 * count)) / shrink
    reach = Z95 * sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2)) / shrink
    low, high = min(share, max(0.0, centre - reach)), max(share, min(1.0, centre + reach))
    return Estimate(share, low, high, f"Wilson interval over {count} {what}")


def mean(values: Float64[np.ndarray, " n"], what: str) -> Estimate:
    """The mean of independent values, with a normal interval; none for fewer than 5 values."""
    value = float(values.mean())
    if len(values) < 5:
        return Estimate(value, None, None, f"no interval from {len(values)} {what}")
    reach = student_95(len(values) - 1) * float(values.std(ddof=1)) / sqrt(len(values))
    return Estimate(value, value - reach, value + reach, f"normal interval over {len(values)} {what}")
