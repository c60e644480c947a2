"""The ratio of two Fréchet distances: its value, and how often its interval holds the true one."""

import numpy as np
import pytest

from cdm.errors import UserError
from cdm.evaluate import frechet_ratio as module
from cdm.evaluate.frechet import frechet_distance
from cdm.evaluate.frechet_ratio import frechet_ratio
from cdm.evaluate.stats import FeatureStats, feature_stats

REAL = FeatureStats(100_000, np.zeros(4), np.eye(4))


def shifted(rng: np.random.Generator, count: int, by: float) -> np.ndarray:
    """Their true distance to REAL is ``by`` squared."""
    return rng.normal(size=(count, 4)) + np.array([by, 0, 0, 0])


def test_value_is_the_ratio_of_the_distances() -> None:
    rng = np.random.default_rng(0)
    fake, other = shifted(rng, 400, 1.0), shifted(rng, 400, 0.5)
    ratio = frechet_distance(REAL, feature_stats(fake)) / frechet_distance(REAL, feature_stats(other))
    assert frechet_ratio(REAL, fake, other).value == pytest.approx(ratio, rel=1e-9)


def test_interval_holds_the_true_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAWS", 200)
    rng, held = np.random.default_rng(1), 0
    for _ in range(100):
        found = frechet_ratio(REAL, shifted(rng, 300, 1.0), shifted(rng, 300, 0.5))
        assert found.low is not None and found.high is not None
        held += found.low <= 4.0 <= found.high
    assert 88 <= held <= 100


def test_what_the_seeds_share_cancels() -> None:
    rng = np.random.default_rng(2)
    rows = shifted(rng, 500, 0.5)
    alike = frechet_ratio(REAL, rows + 0.01 * rng.normal(size=rows.shape), rows)
    apart = frechet_ratio(REAL, shifted(rng, 500, 0.5), rows)
    assert alike.low is not None and alike.high is not None and apart.low is not None and apart.high is not None
    assert alike.high - alike.low < (apart.high - apart.low) / 5


def test_rows_are_drawn_within_their_class() -> None:
    labels = np.arange(400) % 2
    rows = np.random.default_rng(3).normal(size=(400, 4)) * 0.1 + labels[:, None] * 10.0
    other = rows + 0.5
    alone, by_class = frechet_ratio(REAL, rows, other), frechet_ratio(REAL, rows, other, labels)
    assert alone.low is not None and alone.high is not None and by_class.low is not None and by_class.high is not None
    assert by_class.high - by_class.low < (alone.high - alone.low) / 2


@pytest.mark.parametrize("shape", [(399, 4), (400, 3)])
def test_sets_that_do_not_match_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="expected three of one width"):
        frechet_ratio(REAL, np.zeros((400, 4)), np.zeros(shape))
