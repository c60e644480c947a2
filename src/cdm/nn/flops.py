"""What a net costs, told from its configuration alone: built on the meta device, nothing is allocated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cdm.config import NetConfig
from cdm.nn.unet import UNet

COPIES = 6
"""Float32 copies of the weights while training: themselves, gradients, two moments of Adam, two EMA profiles."""


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


def estimate_training_memory(
    config: NetConfig,
    batch_size: int,
    size: int | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    checkpointing: bool = False,
) -> int:
    """Bytes held at the end of the forward pass of a training step: weights with gradients, Adam's moments and two EMA
    profiles, and the activations kept for the backward pass.

    Temporary buffers of kernels and the process itself (about 0.4 GB with torch on a CPU) come on top. Where float32
    and ``dtype`` are mixed, as under autocast, activations count as ``dtype``.

    Args:
        batch_size: images per forward pass (of a micro-batch, if there are any).
        size: side of the images or crops; default: the net's own.
        checkpointing: only the inputs of blocks are kept, and what the hungriest block keeps while it is recomputed.
    """
    net = _build(config)
    tally = _Tally(net)
    with torch.autograd.graph.saved_tensors_hooks(tally.keep, lambda kept: kept):
        net(*_inputs(config, batch_size, size or config.image_size))
    elements = tally.outside + sum(tally.inputs) + max(tally.inside) if checkpointing else tally.total
    weights = sum(parameter.numel() for parameter in net.parameters())
    return 4 * COPIES * weights + dtype.itemsize * elements


class _Tally:
    """Counts elements that autograd keeps, each storage once, weights not; tells those kept inside of a block apart."""

    def __init__(self, net: UNet) -> None:
        self.seen = {parameter.untyped_storage()._cdata for parameter in net.parameters()}
        self.held: list[Tensor] = []  # a freed storage's address could come again
        self.inputs: list[int] = []
        self.inside: list[int] = []
        self.outside = 0
        self._in_block = False
        for block in (*net.encoder, *net.middle, *net.decoder):
            block.register_forward_pre_hook(self._enter)
            block.register_forward_hook(self._leave)

    @property
    def total(self) -> int:
        return self.outside + sum(self.inside)

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.seen:
            self.seen.add(storage._cdata)
            self.held.append(tensor)
            count = storage.nbytes() // tensor.element_size()
            if self._in_block:
                self.inside[-1] += count
            else:
                self.outside += count
        return tensor

    def _enter(self, block: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        self._in_block = True
        self.inputs.append(inputs[0].numel())
        self.inside.append(0)

    def _leave(self, block: torch.nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._in_block = False


def _build(config: NetConfig) -> UNet:
    with torch.device("meta"):
        return UNet(config)


def _inputs(config: NetConfig, batch_size: int, size: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    x = torch.empty(batch_size, config.in_channels, size, size, device="meta")
    level = torch.empty(batch_size, device="meta")
    labels = torch.empty(batch_size, dtype=torch.int64, device="meta")
    return x, level, labels if config.num_labels else None, level if config.has_aug_level else None
