"""The images that a run holds out: their names in its ``held_out.txt``, by which judging agrees with training."""

from __future__ import annotations

from pathlib import Path

from cdm.artifacts import told_by_path

HELD_OUT = "held_out.txt"


def read_held_out(run: Path) -> frozenset[str]:
    """Names below the data's top, one per line of the file; empty where the run holds none out or does not tell."""
    path = run / HELD_OUT
    with told_by_path(path):
        text = path.read_bytes().decode("utf-8", "surrogateescape") if path.exists() else ""
    return frozenset(text.split("\n")[:-1])
