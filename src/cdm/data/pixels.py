"""Stored intensities to floats in [-1, 1] and back: the only place that knows how."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from jaxtyping import Float, UInt8, UInt16
from torch import Tensor

from cdm.types import Image

Window = tuple[int, int]
"""Intensities (low, high) that become -1 and 1; (0, 255) for 8-bit images."""

FULL_8: Window = (0, 255)


def num_levels(window: Window) -> int:
    """Number of distinct stored intensities: the ``levels`` of ``cdm.conditioning.quantise``."""
    return window[1] - window[0] + 1


def to_float(images: np.ndarray | Tensor, window: Window = FULL_8) -> Image:
    """uint8 or uint16 ``[B, C, H, W]`` to float32 in [-1, 1]; intensities outside the window are clipped.

    The same arithmetic as ``cdm.conditioning.quantise``, so that stored images and quantised floats are equal bitwise.
    """
    low, high = window
    images = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
    x = images.to(torch.float32)
    if window != FULL_8 or images.dtype != torch.uint8:
        x = x.clamp_(low, high).sub_(low)
    return x.div_((high - low) / 2).sub_(1)


def to_float_on(device: torch.device, images: np.ndarray, window: Window = FULL_8) -> Image:
    """``to_float`` on another device, bit for bit: intensities travel as they are stored, without waiting for the
    device, and are looked up there."""
    stored = torch.from_numpy(images)
    if device.type == "cpu":
        return to_float(stored, window)
    table = _float_table(window, stored.dtype, device)
    codes = send(stored.view(torch.int16) if stored.dtype == torch.uint16 else stored, device).int()
    return table[codes & (len(table) - 1)]


def send(x: Tensor, device: torch.device) -> Tensor:
    """To ``device`` through pinned memory: the copy waits its turn there, and nobody waits for it here."""
    return x if device.type == "cpu" else x.pin_memory().to(device, non_blocking=True)


@cache
def _float_table(window: Window, dtype: torch.dtype, device: torch.device) -> Float[Tensor, " levels"]:
    levels = 256 if dtype == torch.uint8 else 65536
    return to_float(torch.arange(levels, dtype=torch.int32).to(dtype).view(1, 1, 1, -1), window).flatten().to(device)


def to_images(x: Image, window: Window = FULL_8) -> UInt8[Tensor, "b c h w"] | UInt16[Tensor, "b c h w"]:
    """Float ``[B, C, H, W]`` to stored intensities, clipped and rounded, on the CPU: uint8 if they fit, else uint16."""
    low, high = window
    codes = ((x.detach().float().clamp(-1, 1) + 1) * ((high - low) / 2)).round().add_(low)
    return codes.to(torch.uint8 if high <= 255 else torch.uint16).cpu()
