"""Inception Score in closed situations."""

import numpy as np
import pytest

from cdm.errors import UserError
from cdm.evaluate.inception_score import inception_score


def test_a_classifier_that_knows_nothing_scores_one():
    got = inception_score(np.full((100, 7), 1 / 7))
    assert got.value == pytest.approx(1, rel=1e-12)
    assert got.low == pytest.approx(1) and got.high == pytest.approx(1)


def test_a_sure_classifier_scores_the_exponential_of_the_entropy_of_classes():
    """Probabilities of 0 and 1: the score of each part is exp H of its class counts, zeros and all."""
    labels = np.random.default_rng(0).integers(0, 4, size=1000)
    got = inception_score(np.eye(6, dtype=np.float32)[labels])
    order = np.random.RandomState(2020).permutation(1000)
    scores = []
    for part in order.reshape(10, 100):
        share = np.bincount(labels[part]) / 100
        scores.append(np.exp(-(share * np.log(share)).sum()))
    assert got.value == pytest.approx(np.mean(scores), rel=1e-9)
    assert got.low < got.value < got.high


def test_sorted_images_do_not_change_the_picture():
    labels = np.repeat(np.arange(5), 200)
    assert inception_score(np.eye(5)[labels]).value > 4.8  # parts of single classes would score 1


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="at least 20 images"):
        inception_score(np.full((19, 2), 0.5))
    with pytest.raises(UserError, match="sum to 1"):
        inception_score(np.full((40, 2), 0.7))
