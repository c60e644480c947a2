"""The networks that are timed, and what a contender is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A U-Net of the ADM architecture, unconditional, three channels. ``attention``: at these sides."""

    name: str
    size: int
    batch: int
    width: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    head_channels: int = 64
    residual: bool = False  # resampling inside residual blocks


CASES = (
    Case("base64-32px", 32, 16, 64, (1, 2, 2), 2, (16, 8), residual=True),
    Case("base32-16px", 16, 64, 32, (1, 2, 2), 1, (8,), head_channels=32),
    Case("adm64", 64, 2, 192, (1, 2, 3, 4), 3, (32, 16, 8), residual=True),
)


@dataclass(frozen=True)
class Contender:
    """train: one update (forward, backward, AdamW, average of the weights); None: in settings for sampling only.
    forward: one pass without gradients. net: the module, for its parameters and FLOPs. batch: images in each call."""

    name: str
    train: Callable[[], object] | None
    forward: Callable[[], object]
    net: nn.Module
    batch: int


def inputs(case: Case, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, what the net is told of its level, and the target."""
    generator = torch.Generator().manual_seed(0)
    shape = (case.batch, 3, case.size, case.size)
    x, target = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
    return x, (torch.rand(case.batch, generator=generator) * 1000).to(device), target


def wake(net: nn.Module) -> None:
    """Fresh random weights everywhere, so that nothing is multiplied by 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.02 if p.ndim > 1 else 0.1) + (p.ndim == 1) * 0.5)


def layers(net: Any) -> list[Any]:
    """Residual blocks, attentions and resampling layers of our net, in the order in which they run."""
    found: list[Any] = []
    for block in (*net.encoder, *net.middle, *net.decoder):
        is_block = hasattr(block, "res")
        found += [block.res, *([block.attention] if block.attention else [])] if is_block else [block]
    return found


@torch.no_grad()
def copy_pairs(pairs: Sequence[tuple[Any, Any]]) -> None:
    """Weight and bias of the second of each pair into the first."""
    for own, theirs in pairs:
        for name in ("weight", "bias"):
            getattr(own, name).copy_(getattr(theirs, name).reshape(getattr(own, name).shape))
