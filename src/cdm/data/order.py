"""Which image stands at which position of the training stream: a pure function, so nothing has to be saved."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from cdm.rng import Purpose, Rng


class Order:
    """The order of ``n`` training images.

    Plain: each epoch is a fresh permutation of all images. Balanced: every class comes once in each round of as many
    positions as there are classes, in a fresh order, and each class goes through its own images epoch by epoch.
    """

    def __init__(self, n: int, labels: Int64[np.ndarray, " n"] | None = None, *, balanced: bool = False) -> None:
        """``labels``: the class of each image; only used if ``balanced``, and without classes that is plain order."""
        present = np.unique(labels) if balanced and labels is not None else []
        self.members = [np.flatnonzero(labels == label) for label in present] or [np.arange(n)]
        # a batch may straddle two epochs of each class; this caches, it does not decide
        self._permutation = lru_cache(maxsize=2 * len(self.members))(_permutation)

    def position_to_index(self, rng: Rng, positions: Int64[Tensor, " b"]) -> Int64[Tensor, " b"]:
        """Image number in [0, n) for each global position of the stream."""
        turn, place = np.divmod(positions.cpu().numpy(), len(self.members))
        group = np.zeros_like(turn)
        if len(self.members) > 1:
            for one in np.unique(turn).tolist():
                here = turn == one
                group[here] = _permutation(rng, len(self.members), 0, one)[place[here]]
        index = np.empty_like(turn)
        for one in np.unique(group).tolist():
            rows, here = self.members[one], group == one
            epoch, place = np.divmod(turn[here], len(rows))
            order = {e: self._permutation(rng, len(rows), one + 1, e) for e in np.unique(epoch).tolist()}
            index[here] = rows[[order[e][p] for e, p in zip(epoch.tolist(), place.tolist(), strict=True)]]
        return torch.from_numpy(index)


def _permutation(rng: Rng, n: int, key: int, epoch: int) -> Int64[np.ndarray, " n"]:
    """``key`` 0: order of the classes in round ``epoch``; ``key`` c + 1: order of class c in its ``epoch``."""
    return rng.permutation(Purpose.ORDER, n, step=(key << 40) | epoch).numpy()
