"""KID against its definition, and its interval."""

import numpy as np
import pytest
import torch

from cdm.errors import UserError
from cdm.evaluate.kid import kid, mmd_parts


def test_mmd_is_its_definition():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 3)), rng.normal(0.5, 1, size=(6, 3))
    k = lambda a, b: (a @ b / 3 + 1) ** 3  # noqa: E731
    want = sum(k(x[i], x[j]) + k(y[i], y[j]) for i in range(6) for j in range(6) if i != j) / 30
    want -= 2 * sum(k(a, b) for a in x for b in y) / 36
    assert mmd_parts(torch.from_numpy(x), torch.from_numpy(y)).value == pytest.approx(want, rel=1e-12)


def moments(mean, sigma):
    """E k(x, y) for x and y independent, normal, one feature: (x y + 1)^3 term by term."""
    m1, m2 = mean, mean**2 + sigma**2
    m3 = mean**3 + 3 * mean * sigma**2
    return np.array([1, m1, m2, m3])


def test_no_bias():
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


def test_equal_distributions_are_near_zero():
    rng = np.random.default_rng(2)
    got = kid(rng.normal(size=(2000, 8)), rng.normal(size=(2000, 8)), subsets=20, subset_size=500)
    assert got.low < 0 < got.high


def test_small_sets_use_subsets_of_half():
    rng = np.random.default_rng(3)
    got = kid(rng.normal(size=(90, 4)), rng.normal(size=(60, 4)))
    assert got.method == "variance of MMD^2 for 90 and 60 images, from 100 subsets of 30"


@pytest.mark.parametrize(
    ("real", "fake", "shift"),
    [(300, 300, 0.3), (300, 300, 0.0), (105, 400, 0.3), (100, 400, 0.3)],
)
def test_interval_is_as_wide_as_values_scatter(real, fake, shift):
    """Equal sides and unequal ones, equal distributions and different ones, and all images of the smaller side in each
    subset. Of 150 draws a standard deviation errs by 6 %."""
    rng = np.random.default_rng(real + fake)
    got = [
        kid(rng.normal(size=(real, 32)), rng.normal(shift, 1, size=(fake, 32)), subsets=20, subset_size=100)
        for _ in range(150)
    ]
    claimed = np.mean([(each.high - each.low) / 2 for each in got])  # type: ignore[operator]
    values = np.array([each.value for each in got])
    assert claimed == pytest.approx(1.96 * values.std(), rel=0.25)
    assert np.mean([each.low <= values.mean() <= each.high for each in got]) > 0.88  # no bias: the mean is the truth


def test_bad_input_is_refused():
    x = np.zeros((50, 4))
    with pytest.raises(UserError, match="at least 8"):
        kid(x[:7], x)
    with pytest.raises(UserError, match="4 and 3 features"):
        kid(x, x[:, :3])
    with pytest.raises(UserError, match="not finite"):
        kid(x, x + np.nan)
