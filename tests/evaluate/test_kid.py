"""KID against its definition, and its interval."""

import numpy as np
import pytest
import torch

from cdm.errors import UserError
from cdm.evaluate.kid import kid, mmd


def test_mmd_is_its_definition():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 3)), rng.normal(0.5, 1, size=(6, 3))
    k = lambda a, b: (a @ b / 3 + 1) ** 3  # noqa: E731
    want = sum(k(x[i], x[j]) + k(y[i], y[j]) for i in range(6) for j in range(6) if i != j) / 30
    want -= 2 * sum(k(a, b) for a in x for b in y) / 36
    assert mmd(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(want, rel=1e-12)


def moments(mean, sigma):
    """E k(x, y) for x and y independent, normal, one feature: (x y + 1)^3 term by term."""
    m1, m2 = mean, mean**2 + sigma**2
    m3 = mean**3 + 3 * mean * sigma**2
    return np.array([1, m1, m2, m3])


def test_no_bias_and_an_interval_that_holds():
    """The expectation of the cubic kernel's MMD^2 between two normals is known in closed form."""
    a, b = moments(0, 1), moments(0.2, 1.1)
    want = (np.array([1, 3, 3, 1]) * (a - b) ** 2).sum()
    rng = np.random.default_rng(1)
    got = [
        kid(rng.normal(size=(300, 1)), rng.normal(0.2, 1.1, size=(300, 1)), subsets=40, subset_size=100)
        for _ in range(200)
    ]
    values = np.array([e.value for e in got])
    assert values.mean() == pytest.approx(want, abs=4 * values.std() / np.sqrt(200))
    assert np.mean([e.low <= want <= e.high for e in got]) > 0.9


def test_equal_distributions_are_near_zero():
    rng = np.random.default_rng(2)
    got = kid(rng.normal(size=(2000, 8)), rng.normal(size=(2000, 8)), subsets=20, subset_size=500)
    assert got.low < 0 < got.high


def test_small_sets_use_subsets_of_half():
    rng = np.random.default_rng(3)
    got = kid(rng.normal(size=(90, 4)), rng.normal(size=(60, 4)))
    assert got.method == "subsampling jackknife, 100 subsets of 30"


def test_subsets_of_all_images_have_no_interval():
    rng = np.random.default_rng(4)
    got = kid(rng.normal(size=(50, 4)), rng.normal(size=(50, 4)), subsets=2, subset_size=50)
    assert got.low is None and "all images of a side" in got.method


def test_bad_input_is_refused():
    x = np.zeros((50, 4))
    with pytest.raises(UserError, match="at least 8"):
        kid(x[:7], x)
    with pytest.raises(UserError, match="4 and 3 features"):
        kid(x, x[:, :3])
    with pytest.raises(UserError, match="not finite"):
        kid(x, x + np.nan)
