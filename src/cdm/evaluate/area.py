"""Resizing 8-bit images by area, to any size."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor


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
