"""A peer's net that brings no trainer of its own for this: updates and passes around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from peers.cases import Case, Contender, inputs

EMA_RATE = 0.9999
MODES = {"documented": "float32, as documented", "best": "bf16 channels-last", "compiled": "bf16, compiled"}


def contender(
    peer: str, net: nn.Module, case: Case, device: torch.device, mode: str, image: Callable[[Any], Tensor]
) -> Contender:
    """``mode``: "documented" (float32), "best" (bf16 autocast, channels-last, fused AdamW) or "compiled" (the same,
    compiled). ``image``: the tensor in what the net returns."""
    documented = mode == "documented"
    net.to(device)
    if not documented:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, told, target = inputs(case, device)
    amp = torch.autocast(device.type, torch.bfloat16, enabled=not documented)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=None if documented else True)
    params = list(net.parameters())
    averages = [p.detach().clone() for p in params]
    run: Any = torch.compile(net) if mode == "compiled" else net

    def train() -> None:
        optimizer.zero_grad()
        with amp:
            out = image(run(x, told))
        (out.float() - target).square().mean().backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        torch._foreach_lerp_(averages, [p.detach() for p in params], 1 - EMA_RATE)

    @torch.no_grad()
    def forward() -> object:
        with amp:
            return image(run(x, told))

    return Contender(f"{peer}, {MODES[mode]}", train, forward, net, case.batch)
