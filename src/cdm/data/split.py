"""A held-out share of the images, chosen by the hash of each file: the same on every machine and after every resume."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Set

import numpy as np
from jaxtyping import Int64

DEFAULT_FRACTION = 0.05
DIGITS = 12
Rows = Int64[np.ndarray, "_"]


def short_hash(content: bytes) -> str:
    """The first digits of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[:DIGITS]


def split_rows(
    hashes: Sequence[str], labels: Int64[np.ndarray, " n"] | None, fraction: float = DEFAULT_FRACTION
) -> tuple[Rows, Rows]:
    """Rows to train on and rows to validate on, both sorted.

    An image is held out if the hash of its file, as a number in [0, 1), is below ``fraction``: adding, renaming and
    moving files never moves another one across, and copies of a file lie on one side. Every class keeps at least one
    training image, the one with the largest hash.

    Args:
        hashes: ``short_hash`` of each file's content.
    """
    assert labels is None or len(labels) == len(hashes)
    place = np.array([int(digits, 16) for digits in hashes]) / 16**DIGITS
    held_out = place < fraction
    groups = np.zeros(len(hashes), dtype=np.int64) if labels is None else labels
    for group in np.unique(groups[held_out]):
        rows = np.flatnonzero(groups == group)
        if held_out[rows].all():
            held_out[rows[place[rows] == place[rows].max()]] = False
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def rows_by_name(names: Sequence[str], held_out: Set[str]) -> tuple[Rows, Rows]:
    """The same by what a run recorded: rows whose names are not in ``held_out``, and rows whose names are."""
    marks = np.array([name in held_out for name in names], dtype=bool)
    return np.flatnonzero(~marks), np.flatnonzero(marks)
