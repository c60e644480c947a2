"""Images to what networks of natural photographs take."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float32, UInt8
from torch import Tensor

from cdm.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def as_rgb(images: UInt8[Tensor, "b c h w"], name: str) -> UInt8[Tensor, "b 3 h w"]:
    """Grey images are repeated thrice; ``UserError`` for other than 1 or 3 channels."""
    channels = images.shape[1]
    if channels not in (1, 3):
        raise UserError(
            f"{name} looks at images of 1 or 3 channels; got {channels}: use the domain extractor, or one of your own."
        )
    return images.expand(-1, 3, -1, -1)


def imagenet_input(images: UInt8[Tensor, "b 3 h w"], side: int) -> Float32[Tensor, "b 3 s s"]:
    """Resized to ``side`` by antialiased bicubic interpolation, less ImageNet's mean, by its standard deviation."""
    x = images.float()
    if x.shape[2:] != (side, side):
        x = F.interpolate(x, size=(side, side), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (x / 255 - mean) / std
