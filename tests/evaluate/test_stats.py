"""Mean and covariance of features."""

import numpy as np
import pytest

from cdm.errors import UserError
from cdm.evaluate.stats import check_features, feature_stats, is_constant


def features(count, dim=16, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, dim)) @ rng.normal(size=(dim, dim)) + 100).astype(np.float32)


@pytest.mark.parametrize("count", [2, 1023, 1024, 1025, 3000])
def test_numpy_agrees(count):
    x = features(count)
    stats = feature_stats(x)
    assert stats.count == count and stats.dim == 16
    np.testing.assert_allclose(stats.mean, x.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(stats.cov, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-9, atol=1e-9)


def test_a_mapped_file_gives_the_same_bits(tmp_path):
    x = features(2500)
    x.tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", np.float32, mode="r", shape=x.shape)
    assert np.array_equal(feature_stats(mapped).cov, feature_stats(x).cov)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    x = features(1500)
    x[1200, 3] = bad
    with pytest.raises(UserError, match="features of image 1200 are not finite"):
        feature_stats(x)


def test_one_image_is_refused():
    with pytest.raises(UserError, match="at least 2"):
        check_features(features(1))


def test_constant_features_are_known():
    x = features(1500)
    assert not is_constant(x)
    assert is_constant(np.repeat(x[:1], 1500, axis=0))
