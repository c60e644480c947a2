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


def estimate_forward_memory(config: NetConfig, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of activations alive at the worst moment of a forward pass of one image that keeps nothing for a backward
    pass: a little more than there are. Weights and temporary buffers of kernels come on top.

    By arithmetic, for the meta device takes seconds to start. Activations count as ``dtype``, as under autocast.
    """
    sides = [config.image_size // config.patch >> level for level in range(len(config.multipliers))]
    widths = [config.width * multiplier for multiplier in config.multipliers]
    channels, skips, most = config.width, [config.width * sides[0] ** 2], 0

    def run(elements: int, out: int, side: int, attends: bool = False) -> None:
        """A block: its input; two copies of it and the result while it is normalised and convolved; or the result four
        times while it is added to the input, which itself is the fourth if that goes straight through."""
        nonlocal channels, most
        channels, after = out, out * side**2
        added = elements + (3 if elements == after else 4) * after
        attention = _attention_elements(config, out, side) if attends or side in config.attention else 0
        most = max(most, sum(skips) + max(3 * elements + after, added, after + attention))

    for level, (out, side) in enumerate(zip(widths, sides, strict=True)):
        for _ in range(config.num_blocks):
            run(channels * side**2, out, side)
            skips.append(out * side**2)
        if level < len(sides) - 1:
            run(channels * side**2, channels, sides[level + 1])
            skips.append(channels * sides[level + 1] ** 2)
    run(channels * sides[-1] ** 2, channels, sides[-1], config.middle_attention)
    for level, out in reversed(list(enumerate(widths))):
        for _ in range(config.num_blocks + 1):
            run(channels * sides[level] ** 2 + skips.pop(), out, sides[level])
        if level:
            run(channels * sides[level] ** 2, channels, sides[level - 1])
    return dtype.itemsize * (most + 8 * config.width)  # the embedding, its parts


def _attention_elements(config: NetConfig, channels: int, side: int) -> int:
    """Beside the input: what it is normalised to, q, k, v, the result three times, and matrices of pairs where
    ``attend`` builds them."""
    pairs = side**4 if side**2 <= 512 else 0
    heads = config.num_heads or max(1, channels // config.head_channels)
    return 7 * channels * side**2 + 2 * heads * pairs


def _build(config: NetConfig) -> UNet:
    with torch.device("meta"):
        return UNet(config)


def _inputs(config: NetConfig, batch_size: int, size: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    x = torch.empty(batch_size, config.in_channels, size, size, device="meta")
    level = torch.empty(batch_size, device="meta")
    labels = torch.empty(batch_size, dtype=torch.int64, device="meta")
    return x, level, labels if config.num_labels else None, level if config.has_aug_level else None
