"""Intervals against closed forms, and by how often they hold."""

from math import sqrt

import numpy as np
import pytest
import scipy.stats

from cdm.evaluate.intervals import Estimate, jackknife, mean, proportion, student_95


@pytest.mark.parametrize("degrees", [4, 5, 9, 19, 99, 10_000])
def test_student_quantile(degrees):
    assert student_95(degrees) == pytest.approx(scipy.stats.t.ppf(0.975, degrees), rel=1e-3)


def test_jackknife_of_a_mean_is_its_standard_error():
    x = np.random.default_rng(0).normal(size=30)
    left_out = [(x.sum() - value) / 29 for value in x]
    got = jackknife(x.mean(), left_out, "numbers")
    reach = scipy.stats.t.ppf(0.975, 29) * x.std(ddof=1) / sqrt(30)
    assert got.low == pytest.approx(x.mean() - reach, rel=1e-4)
    assert got.high == pytest.approx(x.mean() + reach, rel=1e-4)
    assert got.method == "jackknife over 30 groups of numbers"


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (3, 17), (9_000, 10_000)])
def test_wilson_interval_is_scipys(hits, count):
    oracle = scipy.stats.binomtest(hits, count).proportion_ci(method="wilson")
    got = proportion(hits, count, "images")
    assert (got.value, got.low, got.high) == pytest.approx((hits / count, oracle.low, oracle.high), abs=1e-12)


def test_mean_interval_holds_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(2000):
        got = mean(rng.exponential(size=200), "numbers")
        held += got.low < 1 < got.high
    assert 0.92 < held / 2000 < 0.97  # 95 %, a little less for skewed numbers; 4 standard errors are 2 %


def test_mean_of_few_has_no_interval():
    assert mean(np.array([1.0, 3.0]), "numbers") == Estimate(2.0, None, None, "no interval from 2 numbers")
