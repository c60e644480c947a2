"""Inception Score: how sure a classifier is of each image, and how many classes there are in all."""

from __future__ import annotations

from math import sqrt

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from cdm.errors import UserError
from cdm.evaluate.intervals import Estimate, student_95
from cdm.evaluate.kid import SEED
from cdm.evaluate.stats import Rows, check_features


def inception_score(probabilities: Rows, splits: int = 10) -> Estimate:
    """``exp(E KL(p(y|x) || p(y)))``, the mean over ``splits`` parts (Salimans et al. 2016, section 4).

    Images are shuffled first, as torch-fidelity does: images sorted by class would make every part poor in classes.
    The parts are independent, so their spread gives the interval. The score falls as parts get smaller: compare equal
    counts.

    Args:
        probabilities: ``[N, K]``, each row sums to 1.
        splits: at least 5.

    Raises:
        UserError: fewer than 2 images per part, or rows that are no probabilities.
    """
    count = len(probabilities)
    if count < 2 * splits:
        raise UserError(f"the Inception Score needs at least {2 * splits} images; got {count}: give more.")
    check_features(probabilities)
    order = np.random.RandomState(SEED).permutation(count)  # torch-fidelity's order
    scores = []
    for part in range(splits):
        rows = np.sort(order[part * count // splits : (part + 1) * count // splits])  # sorted: a file is read forwards
        scores.append(_score(torch.from_numpy(probabilities[rows].astype(np.float64))))
    value = float(np.mean(scores))
    reach = student_95(splits - 1) * float(np.std(scores, ddof=1)) / sqrt(splits)
    return Estimate(value, value - reach, value + reach, f"spread of {splits} parts")


def _score(p: Float64[Tensor, "n k"]) -> float:
    if float(p.min()) < 0 or float((p.sum(dim=1) - 1).abs().max()) > 1e-3:
        raise UserError("got rows that do not sum to 1; expected probabilities: check the extractor.")
    entropy_each = -torch.xlogy(p, p).sum(dim=1).mean()
    whole = p.mean(dim=0)
    return float(torch.exp(-torch.xlogy(whole, whole).sum() - entropy_each))
