"""Comparisons on the same seeds: which way they point, how often their intervals hold, and what cancels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cdm.errors import UserError
from cdm.evaluate import paired
from cdm.evaluate.frechet import GROUPS, groups_of
from cdm.evaluate.intervals import jackknife
from cdm.evaluate.paired import Fd, Kid, least_reference, paired_metric
from cdm.evaluate.stats import feature_stats

DIM = 6


def rows(rng: np.random.Generator, count: int, by: float = 0.0) -> np.ndarray:
    return rng.normal(size=(count, DIM)) + by * np.eye(DIM)[0]


@pytest.fixture(params=["fd", "kid"])
def metric(request: pytest.FixtureRequest):
    real = rows(np.random.default_rng(99), 2000)
    return paired_metric(request.param, feature_stats(real), real)


def test_the_sign_tells_which_is_farther(metric) -> None:
    rng = np.random.default_rng(0)
    near, far = rows(rng, 400, 0.3), rows(rng, 400, 1.5)
    assert metric.value(far).value > metric.value(near).value
    worse, better = metric.worse(far, near), metric.worse(near, far)
    assert worse.low > 0 and better.high < 0
    assert worse.value == pytest.approx(-better.value, rel=1e-9)
    assert metric.worse(near, near).value == 0


def test_what_seeds_share_cancels(metric) -> None:
    rng = np.random.default_rng(1)
    one = rows(rng, 400, 0.5)
    alike = metric.worse(one + 0.02 * rng.normal(size=one.shape), one)
    apart = metric.worse(rows(rng, 400, 0.5), one)
    assert alike.high - alike.low < (apart.high - apart.low) / 4


@pytest.mark.parametrize(("dim", "count"), [(DIM, 120), (48, 48)])
def test_of_equal_ones_few_seem_worse(metric, dim: int, count: int) -> None:
    """Two sets of one law, with as few images as features too: the lower end of a 95 % interval should be above 0 in
    2.5 % of cases, which 11 of 150 would exceed by chance once in 500 times; 132 of 150 is 3.4 errors below 95 %."""
    rng = np.random.default_rng(2)
    real = rng.normal(size=(2000, dim))
    own = paired_metric("fd" if isinstance(metric, Fd) else "kid", feature_stats(real), real)
    shared = 1.2 * rng.normal(size=(150, count, dim))
    sets = [shared + 0.3 * rng.normal(size=shared.shape) for _ in range(2)]
    found = [own.worse(one, other) for one, other in zip(*sets, strict=True)]
    assert sum(gap.low > 0 for gap in found) <= 10
    assert sum(gap.low <= 0 <= gap.high for gap in found) >= 132


def unbiased(x: Tensor, y: Tensor) -> float:
    """MMD^2 (Binkowski et al. 2018, eq. 4), term by term."""
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3  # noqa: E731
    n, m = len(x), len(y)
    own, other = kernel(x, x), kernel(y, y)
    inner = (own.sum() - own.trace()) / (n * (n - 1)) + (other.sum() - other.trace()) / (m * (m - 1))
    return float(inner - 2 * kernel(x, y).mean())


@pytest.mark.parametrize("at_once", [1, 300 * 7, 2**24], ids=["row by row", "seven rows", "whole"])
def test_kid_is_the_difference_of_unbiased_estimates(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(paired, "AT_ONCE", at_once)
    rng = np.random.default_rng(3)
    real, one, other = rows(rng, 300), rows(rng, 90, 0.7), rows(rng, 90, 0.2)
    groups = groups_of(90, None)

    def gap(kept: np.ndarray) -> float:
        near, far, against = (torch.from_numpy(each) for each in (one[kept], other[kept], real))
        return unbiased(near, against) - unbiased(far, against)

    found = Kid(real).worse(one, other)
    expected = jackknife(gap(groups >= 0), [gap(groups != group) for group in range(GROUPS)], "seeds")
    assert [found.value, found.low, found.high] == pytest.approx(
        [expected.value, expected.low, expected.high], rel=1e-9
    )


def test_fd_is_the_logarithm_of_the_ratio() -> None:
    rng = np.random.default_rng(4)
    fd = Fd(feature_stats(rows(rng, 500)))
    one, other = rows(rng, 300, 1.0), rows(rng, 300, 0.4)
    assert fd.worse(one, other).value == pytest.approx(np.log(fd.value(one).value / fd.value(other).value), rel=1e-6)


def test_too_few() -> None:
    assert least_reference("fd", 128) == 129 and least_reference("kid", 128) == 50
    with pytest.raises(UserError, match="got 30 images to compare; expected at least 40"):
        Kid(rows(np.random.default_rng(0), 100)).worse(*[rows(np.random.default_rng(0), 30)] * 2)
