"""Fréchet distance against closed forms, and its interval."""

import numpy as np
import pytest

from cdm.errors import UserError
from cdm.evaluate import frechet
from cdm.evaluate.frechet import frechet_distance, frechet_estimate, groups_of
from cdm.evaluate.stats import FeatureStats, feature_stats


def rotation(dim, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]


def stats(mean, cov):
    return FeatureStats(1000, np.asarray(mean, np.float64), np.asarray(cov, np.float64))


@pytest.mark.parametrize("rank", [(40, 40), (40, 7), (7, 40), (9, 5), (1, 1), (0, 40), (0, 0)])
def test_covariances_that_commute(rank):
    """Along common axes the distance is |mean difference|^2 + the sum of (sigma_a - sigma_b)^2."""
    rng, axes = np.random.default_rng(1), rotation(40, 2)
    sigma = [np.where(np.arange(40) < r, rng.uniform(0.5, 3, size=40), 0) for r in rank]
    mean = rng.normal(size=(2, 40))
    a, b = (stats(m, (axes * s**2) @ axes.T) for m, s in zip(mean, sigma, strict=True))
    want = ((mean[0] - mean[1]) ** 2).sum() + ((sigma[0] - sigma[1]) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(want, rel=1e-9)


def test_covariances_that_do_not_commute():
    """An image of a Gaussian under a symmetric positive map T: the distance is tr((T - 1) cov (T - 1)), since T is the
    optimal transport (Knott & Smith 1984)."""
    rng = np.random.default_rng(3)
    root = rng.normal(size=(30, 30))
    cov = root @ root.T
    axes = rotation(30, 4)
    transport = (axes * rng.uniform(0.2, 4, size=30)) @ axes.T
    step = transport - np.eye(30)
    want = np.trace(step @ cov @ step)
    got = frechet_distance(stats(np.zeros(30), cov), stats(np.zeros(30), transport @ cov @ transport))
    assert got == pytest.approx(want, rel=1e-9)


def test_one_direction_each():
    """Ranks of 1: tr (cov_a cov_b)^(1/2) is |u.v| for cov_a = u u^T and cov_b = v v^T."""
    u, v = np.random.default_rng(5).normal(size=(2, 50))
    want = u @ u + v @ v - 2 * abs(u @ v)
    got = frechet_distance(stats(np.zeros(50), np.outer(u, u)), stats(np.zeros(50), np.outer(v, v)))
    assert got == pytest.approx(want, rel=1e-9)


def test_the_same_statistics_are_at_distance_zero():
    x = np.random.default_rng(6).normal(size=(20, 60)).astype(np.float32)  # fewer images than features
    assert frechet_distance(feature_stats(x), feature_stats(x)) == pytest.approx(0, abs=1e-9)


def test_a_few_images_need_no_large_decomposition():
    """With fewer images than features the centred rows are the factor; the same distance comes out."""
    rng = np.random.default_rng(7)
    real, fake = rng.normal(size=(300, 64)).astype(np.float32), rng.normal(size=(25, 64)).astype(np.float32)
    reference = feature_stats(real)
    assert frechet_estimate(reference, fake).value == pytest.approx(
        frechet_distance(reference, feature_stats(fake)), rel=1e-9
    )


def test_leaving_a_group_out_is_computing_without_it():
    x = np.random.default_rng(8).normal(3, 1, size=(2111, 5)).astype(np.float32)  # over several blocks, uneven groups
    groups = frechet.groups_of(len(x), np.random.default_rng(1).integers(3, size=len(x)))
    for group, left in enumerate(frechet.leave_out(x, feature_stats(x), groups)):
        direct = feature_stats(x[groups != group])
        assert left.count == direct.count
        np.testing.assert_allclose(left.mean, direct.mean, rtol=1e-10)
        np.testing.assert_allclose(left.cov, direct.cov, rtol=1e-8, atol=1e-10)


def test_the_interval_covers_what_other_images_would_have_given():
    """The mean distance over many sets of the same size lies in 95 % of the intervals."""
    rng = np.random.default_rng(9)
    reference = stats(np.zeros(4), np.eye(4))
    estimates = [frechet_estimate(reference, rng.normal(0.3, 1.2, size=(390, 4))) for _ in range(200)]
    centre = np.mean([e.value for e in estimates])
    held = np.mean([e.low <= centre <= e.high for e in estimates])
    assert held > 0.9  # 3 standard errors below 95 %
    assert "jackknife over 20 groups of images" == estimates[0].method


@pytest.mark.parametrize("classes", [1, 7, 10, 26])
def test_groups_hold_as_many_of_every_class(classes: int):
    for labels in (np.arange(1037) % classes, np.sort(np.arange(1037) % classes)):
        groups = frechet.groups_of(len(labels), labels)
        assert np.ptp(np.bincount(groups, minlength=frechet.GROUPS)) <= 1
        table = np.zeros((classes, frechet.GROUPS), int)
        np.add.at(table, (labels, groups), 1)
        assert np.ptp(table, axis=1).max() <= 1
        np.testing.assert_array_equal(frechet.groups_of(len(labels)), np.arange(1037) % frechet.GROUPS)


def test_the_interval_of_classes_in_turn_is_of_chance_within_them():
    """Ten classes far apart, as many images of each: by class the interval covers and is as narrow as chance is; every
    twentieth image is of two classes only, which made it several times as wide."""
    rng, labels = np.random.default_rng(10), np.arange(400) % 10
    centres = np.random.default_rng(11).normal(0, 4, size=(10, 4))
    reference = feature_stats((centres[:, None] + rng.normal(size=(10, 4000, 4))).reshape(-1, 4))
    sets = [centres[labels] + rng.normal(0.2, 1, size=(400, 4)) for _ in range(200)]
    estimates = [frechet_estimate(reference, rows, labels) for rows in sets]
    values = np.array([e.value for e in estimates])
    assert np.mean([e.low <= values.mean() <= e.high for e in estimates]) > 0.9
    width = np.mean([e.high - e.low for e in estimates])
    assert width < 1.4 * 2 * 2.09 * values.std()
    unaware = np.mean([e.high - e.low for e in (frechet_estimate(reference, rows) for rows in sets[:20])])
    assert unaware > 3 * width


def test_too_few_for_an_interval_is_said():
    got = frechet_estimate(stats(np.zeros(4), np.eye(4)), np.random.default_rng(0).normal(size=(39, 4)))
    assert got.low is got.high is None
    assert got.method == "no interval from 39 images, fewer than 40"


def test_different_widths_are_refused():
    with pytest.raises(UserError, match="4 and of 5 features"):
        frechet_distance(stats(np.zeros(4), np.eye(4)), stats(np.zeros(5), np.eye(5)))


def test_images_that_hang_together_are_left_out_together() -> None:
    """Every image twice says no more than once, which groups of the jackknife must know."""
    rng = np.random.default_rng(3)
    real, fake = feature_stats(rng.normal(size=(2000, 4))), rng.normal(0.3, 1.2, size=(390, 4))
    once, groups = frechet_estimate(real, fake), groups_of(390)
    twice = frechet_estimate(real, np.concatenate([fake, fake]), groups=np.tile(groups, 2))
    apart = frechet_estimate(real, np.concatenate([fake, fake]))
    assert twice.high is not None and once.high is not None and apart.high is not None
    assert twice.high - twice.value == pytest.approx(once.high - once.value, rel=0.02)
    assert apart.high - apart.value < 0.85 * (once.high - once.value)
