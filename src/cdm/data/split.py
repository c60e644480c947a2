"""A held-out share of the images, chosen by the hash of each name: the same on every machine and after every resume."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

DEFAULT_FRACTION = 0.05


def split_rows(
    names: Sequence[str], labels: Int64[np.ndarray, " n"] | None, fraction: float = DEFAULT_FRACTION
) -> tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " val"]]:
    """Rows to train on and rows to validate on, both sorted.

    An image is held out if the hash of its name, as a number in [0, 1), is below ``fraction``: adding images never
    moves another one across. Every class keeps at least one training image, the one with the largest hash.
    """
    place = np.array([_place(name) for name in names])
    held_out = place < fraction
    groups = np.zeros(len(names), dtype=np.int64) if labels is None else labels
    for group in np.unique(groups[held_out]):
        rows = np.flatnonzero(groups == group)
        if held_out[rows].all():
            held_out[rows[np.argmax(place[rows])]] = False
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _place(name: str) -> float:
    """In [0, 1). File names are bytes: those that are no UTF-8 reach Python with surrogates in place of them."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:6], "big") / 2**48
