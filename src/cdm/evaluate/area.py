"""8-bit images in tensors or arrays, and their resizing by area to any size."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

Pixels = UInt8[Tensor, "_ _ _ _"] | UInt8[np.ndarray, "_ _ _ _"]
"""Images ``[N, C, H, W]`` of one size; an array may be memory-mapped."""
Classes = Int64[Tensor, "_"] | Int64[np.ndarray, "_"]
"""Class index of each image."""


@lru_cache(maxsize=32)
def _shares(old: int, new: int) -> Float64[Tensor, "{new} {old}"]:
    """Row i: how much of new pixel i each old pixel covers, of 1."""
    edges = torch.arange(new + 1, dtype=torch.float64) * old / new
    pixels = torch.arange(old, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return overlap.clamp(min=0) * new / old


def area_resize(images: UInt8[Tensor, "b c _ _"], height: int, width: int) -> UInt8[Tensor, "b c {height} {width}"]:
    """Each new pixel is the mean of what lies under it, rounded; larger or smaller, any ratio.

    In float64, so that the mean of 8-bit values is exact and its rounding does not depend on the batch.
    """
    old = images.shape[-2:]
    if old == (height, width):
        return images
    rows, columns = (_shares(a, b).to(images.device) for a, b in zip(old, (height, width), strict=True))
    return torch.cat([(rows @ part.double() @ columns.T).round().to(torch.uint8) for part in images.split(64)])


def take(images: Pixels, rows: Int64[Tensor, " b"]) -> UInt8[Tensor, "b c h w"]:
    """A copy of some images."""
    return images[rows] if isinstance(images, Tensor) else torch.from_numpy(images[rows.numpy()])


def take_resized(
    images: Pixels, rows: Int64[Tensor, " b"], height: int, width: int
) -> UInt8[Tensor, "b c {height} {width}"]:
    """A copy of some images at another size, in memory for the small ones only."""
    if not len(rows):
        return torch.empty(0, images.shape[1], height, width, dtype=torch.uint8)
    return torch.cat([area_resize(take(images, part), height, width) for part in rows.split(256)])
