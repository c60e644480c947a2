"""What a net costs, told from its configuration alone: built on the meta device, nothing is allocated."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cdm.config import NetConfig
from cdm.nn.unet import UNet


def count_parameters(config: NetConfig) -> int:
    """Number of weights, the label table included."""
    return sum(parameter.numel() for parameter in _build(config).parameters())


def count_flops(config: NetConfig, size: int | None = None) -> int:
    """FLOPs of one forward pass of one image at ``size`` x ``size`` (default: the net's own size).

    A multiplication and an addition count as two. Convolutions and matrix products only. A training step costs three
    times as much per image.
    """
    net = _build(config)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(*_inputs(config, 1, size or config.image_size))
    return counter.get_total_flops()


def _build(config: NetConfig) -> UNet:
    with torch.device("meta"):
        return UNet(config)


def _inputs(config: NetConfig, batch_size: int, size: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    x = torch.empty(batch_size, config.in_channels, size, size, device="meta")
    level = torch.empty(batch_size, device="meta")
    labels = torch.empty(batch_size, dtype=torch.int64, device="meta")
    return x, level, labels if config.num_labels else None, level if config.has_aug_level else None
