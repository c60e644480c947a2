"""Precision, recall, density and coverage against a direct implementation and in closed situations."""

import numpy as np
import pytest

from cdm.errors import UserError
from cdm.evaluate import prdc as module
from cdm.evaluate.prdc import prdc


def distances(x, y):
    return np.sqrt(((x[:, None, :].astype(np.float64) - y[None, :, :]) ** 2).sum(axis=2))


def direct(real, fake, k, density_k):
    """The four definitions, word by word, in float64."""
    between = distances(real, fake)
    radius = lambda x, k: np.sort(distances(x, x), axis=1)[:, k]  # noqa: E731
    wide = between <= radius(real, density_k)[:, None]
    return (
        (between <= radius(real, k)[:, None]).any(axis=0).mean(),
        (between <= radius(fake, k)[None, :]).any(axis=1).mean(),
        wide.sum(axis=0).mean() / density_k,
        wide.any(axis=1).mean(),
    )


def four(got):
    return got.precision.value, got.recall.value, got.density.value, got.coverage.value


@pytest.mark.parametrize("tile", [2048, 64])
@pytest.mark.parametrize("counts", [(300, 200), (101, 350)])
def test_direct_implementation_agrees(monkeypatch, tile, counts):
    monkeypatch.setattr(module, "TILE", tile)
    rng = np.random.default_rng(sum(counts))
    real = (rng.normal(size=(counts[0], 6)) + 50).astype(np.float32)  # far from the origin: squares cancel
    fake = (rng.normal(0.4, 0.8, size=(counts[1], 6)) + 50).astype(np.float32)
    for k, density_k in ((3, 5), (5, 5), (4, 2)):
        got = prdc(real, fake, neighbours=k, density_neighbours=density_k)
        assert four(got) == pytest.approx(direct(real, fake, k, density_k), abs=1e-12)
        assert (got.neighbours, got.density_neighbours) == (k, density_k)


def test_identical_sets():
    x = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    got = prdc(x, x.copy())
    assert four(got) == (1, 1, pytest.approx(6 / 5), 1)  # each ball holds its centre and 5 neighbours


def test_far_apart():
    x = np.random.default_rng(1).normal(size=(100, 4)).astype(np.float32)
    assert four(prdc(x, x + 1000)) == (0, 0, 0, 0)


def test_equal_distributions_have_density_one():
    rng = np.random.default_rng(2)
    got = prdc(rng.normal(size=(4000, 2)).astype(np.float32), rng.normal(size=(4000, 2)).astype(np.float32))
    assert got.density.value == pytest.approx(1, abs=0.05)
    # a fresh sample misses a ball of k neighbours with probability 2^-k: coverage is 1 - 2^-5 (Naeem et al., eq. 10)
    assert got.coverage.value == pytest.approx(1 - 2**-5, abs=0.01)


def test_a_generator_of_one_image():
    """Mode collapse: precise, without recall, and one small part is covered."""
    rng = np.random.default_rng(3)
    real = rng.normal(size=(400, 3)).astype(np.float32)
    got = prdc(real, np.repeat(real[:1], 200, axis=0))
    assert got.precision.value == 1
    assert got.recall.value == pytest.approx(1 / 400)  # only the image itself lies in balls of radius zero
    assert got.coverage.value < 0.05


def test_copies_far_from_the_origin_count_as_inside():
    """Real images that are all there six times have balls of radius zero; rounding must not push their copies out."""
    rng = np.random.default_rng(4)
    real = np.repeat((rng.normal(size=(50, 32)) * 30 + 1000).astype(np.float32), 6, axis=0)
    got = prdc(real, real[::6].copy())
    assert (got.precision.value, got.coverage.value) == (1, 1)


def test_intervals_hold_the_value():
    rng = np.random.default_rng(5)
    got = prdc(rng.normal(size=(300, 4)), rng.normal(size=(200, 4)))
    for estimate in (got.precision, got.recall, got.density, got.coverage):
        assert estimate.low < estimate.value < estimate.high
    assert got.precision.method == "20 random splits of both sides into 2"
    few = prdc(rng.normal(size=(11, 4)), rng.normal(size=(200, 4))).recall
    assert few.low is None and "too few images" in few.method


@pytest.mark.parametrize(("counts", "group"), [((300, 300), 1000), ((150, 450), 1000), ((400, 400), 80)])
def test_intervals_are_as_wide_as_figures_scatter(monkeypatch, counts, group):
    """Both sides drawn anew each time: neighbourhoods move too. Of 60 draws a standard deviation errs by a tenth."""
    monkeypatch.setattr(module, "GROUP", group)
    rng = np.random.default_rng(sum(counts))
    shape = (counts[0], 16), (counts[1], 16)
    got = [prdc(rng.normal(size=shape[0]), rng.normal(0.3, 0.9, size=shape[1])) for _ in range(60)]
    for name in ("precision", "recall", "density", "coverage"):
        values = np.array([getattr(each, name).value for each in got])
        claimed = np.mean([(getattr(each, name).high - getattr(each, name).low) / 2 for each in got])
        assert 0.75 < claimed / (1.96 * values.std()) < 1.35, name


def test_bad_input_is_refused():
    x = np.random.default_rng(6).normal(size=(30, 4))
    with pytest.raises(UserError, match="5 generated images; expected more than 5"):
        prdc(x, x[:5])
    with pytest.raises(UserError, match="4 and 3 features"):
        prdc(x, x[:, :3])
    with pytest.raises(UserError, match="not finite"):
        prdc(x, x * np.nan)
