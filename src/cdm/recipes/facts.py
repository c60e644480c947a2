"""What a recipe is told."""

from __future__ import annotations

from dataclasses import dataclass

from cdm.config import DataConfig


@dataclass(frozen=True)
class Facts:
    """``sizes``: of the stages, base first. ``num_images``: training images."""

    sizes: tuple[int, ...]
    class_names: tuple[str, ...]
    data: DataConfig
    num_images: int
    seed: int = 0
