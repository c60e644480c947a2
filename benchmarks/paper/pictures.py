"""The same seeds and classes through the arms of an experiment, row by row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from cdm.evaluate.pictures import grid, png_bytes
from paper.cells import GENERATED, Cell, Lab
from paper.plan import PLAN

COLUMNS = 13


def chosen(kinds: list[Cell], base: str, best_of: Callable[[list[Cell]], Cell]) -> list[Cell]:
    """Arms without a level; of the last one with levels, or of all that have one each, the lowest, the best and the
    highest. On generated low-res images, non-truncated."""
    asked = (GENERATED, "non_truncated", base)
    made = [kind for kind in kinds if (kind.source, kind.hand_over, kind.base) == asked]
    plain = [kind for kind in made if kind.level is None]
    levelled = [kind for kind in made if kind.level is not None]
    if not levelled:
        return plain
    fixed = [kind for kind in levelled if "level" in PLAN["arms"][kind.arm]]
    own = fixed if levelled[-1] in fixed else [kind for kind in levelled if kind.arm == levelled[-1].arm]
    own.sort(key=lambda kind: kind.level or 0)
    return [*plain, *dict.fromkeys([own[0], best_of(own), own[-1]])]


def sheet(lab: Lab, kinds: list[Cell]) -> bytes:
    """A row of the first images of each, which share seeds and classes."""
    rows = [np.load(lab.path(kind, "-pictures.npz"))["images"][:COLUMNS] for kind in kinds]
    names = [kind.arm if kind.level is None else f"level {kind.level:g}" for kind in kinds]
    return png_bytes(grid(torch.from_numpy(np.concatenate(rows)), len(rows[0]), names, scale=2))
