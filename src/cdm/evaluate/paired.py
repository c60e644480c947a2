"""Which of two sets of images made from the same seeds is farther from the real ones: what seeds share cancels."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from cdm.errors import UserError
from cdm.evaluate.frechet import GROUPS, Strata, frechet_estimate, groups_of
from cdm.evaluate.frechet_ratio import frechet_log_ratio
from cdm.evaluate.intervals import Estimate, jackknife
from cdm.evaluate.kid import kid
from cdm.evaluate.stats import FeatureStats, Rows

AT_ONCE = 2**24
"""Numbers of a kernel's matrix in the memory: 128 MB."""


@dataclass(frozen=True)
class Fd:
    """The Fréchet distance to ``real``. ``strata``: class of each generated image.

    worse: the logarithm of the ratio, with a 95 % interval; above 0: farther. Row i of both has the same seed and
        class. moved: the distance that is so much worse. told: a ``worse`` for people.
    """

    real: FeatureStats
    strata: Strata | None = None

    def value(self, rows: Rows) -> Estimate:
        return frechet_estimate(self.real, rows, self.strata)

    def worse(self, rows: Rows, than: Rows) -> Estimate:
        return frechet_log_ratio(self.real, rows, than, self.strata)

    def moved(self, distance: float, gap: float) -> float:
        return distance * exp(gap)

    def told(self, gap: Estimate) -> str:
        assert gap.low is not None and gap.high is not None
        return f"{exp(gap.value):.2f} times as far ({exp(gap.low):.2f} to {exp(gap.high):.2f})"


@dataclass(frozen=True)
class Kid:
    """The same by the kernel distance, whose estimate has no bias and may be below 0; ``worse`` is the difference."""

    real: Rows
    strata: Strata | None = None

    def value(self, rows: Rows) -> Estimate:
        return kid(self.real, rows)

    def worse(self, rows: Rows, than: Rows) -> Estimate:
        groups = groups_of(len(rows), self.strata)
        sides = [_KernelSums(self.real, each, groups) for each in (rows, than)]
        gaps = [sides[0].without(group) - sides[1].without(group) for group in (None, *range(GROUPS))]
        return jackknife(gaps[0], gaps[1:], "seeds")

    def moved(self, distance: float, gap: float) -> float:
        return distance + gap

    def told(self, gap: Estimate) -> str:
        return f"farther by {gap.value:.3g} ({gap.low:.3g} to {gap.high:.3g})"


def paired_metric(name: str, stats: FeatureStats, rows: Rows, strata: Strata | None = None) -> Fd | Kid:
    """``fd`` or ``kid``. ``stats`` and ``rows``: of the real images. ``strata``: class of each generated image; a set
    may be the first so many."""
    return Fd(stats, strata) if name == "fd" else Kid(rows, strata)


def least_reference(name: str, dim: int) -> int:
    """Real images without which a metric on ``dim`` features says nothing: a covariance of fewer is singular."""
    return dim + 1 if name == "fd" else 50


class _KernelSums:
    """Unbiased MMD^2 to ``real`` (Binkowski et al. 2018, eq. 4) but for what the real images add to every set, with the
    rows of a group left out: sums of KID's kernel by group."""

    def __init__(self, real: Rows, rows: Rows, groups: Strata) -> None:
        if len(rows) < 2 * GROUPS:
            raise UserError(f"got {len(rows)} images to compare; expected at least {2 * GROUPS}: give more.")
        x = torch.from_numpy(np.asarray(rows, dtype=np.float64))
        y = torch.from_numpy(np.asarray(real, dtype=np.float64))
        member = torch.nn.functional.one_hot(torch.from_numpy(groups), GROUPS).double()  # [n, GROUPS]
        self._own: Float64[Tensor, "g g"] = torch.zeros(GROUPS, GROUPS, dtype=torch.float64)
        self._cross: Float64[Tensor, " g"] = torch.zeros(GROUPS, dtype=torch.float64)
        step = max(1, AT_ONCE // max(len(x), len(y)))
        for begin in range(0, len(x), step):
            part, its = x[begin : begin + step], member[begin : begin + step]
            own = _kernel(part, x)
            own.diagonal(begin).zero_()  # of an image with itself
            self._own += its.T @ (own @ member)
            self._cross += its.T @ _kernel(part, y).mean(dim=1)
        self._counts = member.sum(dim=0)

    def without(self, group: int | None) -> float:
        kept = torch.ones(GROUPS, dtype=torch.float64)
        if group is not None:
            kept[group] = 0
        count = float(kept @ self._counts)
        return float(kept @ self._own @ kept) / (count * (count - 1)) - 2 * float(kept @ self._cross) / count


def _kernel(x: Float64[Tensor, "a d"], y: Float64[Tensor, "b d"]) -> Float64[Tensor, "a b"]:
    return (x @ y.T / x.shape[1] + 1) ** 3
