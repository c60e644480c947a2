"""The images that a run holds out: their names in its ``held_out.txt``, by which judging agrees with training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cdm.artifacts import told_by_path
from cdm.data.split import Rows, rows_by_name
from cdm.errors import UserError

HELD_OUT = "held_out.txt"


def read_held_out(run: Path) -> frozenset[str]:
    """Names below the data's top, one per line of the file; empty where the run holds none out or does not tell."""
    path = run / HELD_OUT
    with told_by_path(path):
        text = path.read_bytes().decode("utf-8", "surrogateescape") if path.exists() else ""
    return frozenset(text.split("\n")[:-1])


def recorded_rows(run: Path, names: Sequence[str]) -> tuple[Rows, Rows]:
    """Rows of ``names`` that the run trains on, and rows that it holds out.

    Raises:
        UserError: the file is not of these images: it holds out all of them, or names others only.
    """
    held_out = read_held_out(run)
    train, val = rows_by_name(names, held_out)
    if not len(train) or (held_out and not len(val)):
        raise UserError(
            f"{run / HELD_OUT} names {len(held_out)} images, {len(val)} of the {len(names)} in the data; expected some "
            "of them and not all: put back the file that training wrote."
        )
    return train, val
