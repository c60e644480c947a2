"""A peer's net that brings no trainer of its own for this: updates and passes around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from peers.cases import Case, Contender, inputs

EMA_RATE = 0.9999
MODES = {
    "documented": "float32, as documented",
    "best": "bf16 channels-last",
    "compiled": "bf16, compiled",
    "cast": "bf16 weights, channels-last",
    "cast, compiled": "bf16 weights, compiled",
}
FORWARD_ONLY = ("cast", "cast, compiled")


def modes(compiled: bool) -> tuple[str, ...]:
    return tuple(mode for mode in MODES if compiled or "compiled" not in mode)


def contender(
    peer: str,
    net: nn.Module,
    case: Case,
    device: torch.device,
    mode: str,
    image: Callable[[Any], Tensor],
    *,
    mixed: bool = False,
) -> Contender:
    """``mode``: "documented" (float32), "best" (bf16 autocast, channels-last, fused AdamW), "compiled" (the same,
    compiled), or one of ``FORWARD_ONLY``. ``image``: the tensor in what the net returns. ``mixed``: with weights in
    bf16 it needs autocast still, as what it makes of t is float32."""
    if mode in FORWARD_ONLY:
        amp = torch.autocast(device.type, torch.bfloat16, enabled=mixed)

        def one_pass(run: Any, x: Tensor, t: Tensor) -> Tensor:
            with amp:
                return image(run(x.bfloat16(), t))

        return cast_once(peer, net.to(torch.bfloat16), case, device, mode, one_pass)
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


def cast_once(
    peer: str, net: nn.Module, case: Case, device: torch.device, mode: str, one_pass: Callable[..., Tensor]
) -> Contender:
    """Forward only, as ours samples: ``net`` has weights in bf16 already, where autocast casts them in every pass. On a
    GPU its compiled form records the pass as a CUDA graph. ``one_pass``: of the net, x_t and what it is told."""
    net.to(device, memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]
    x, told, _ = inputs(case, device)
    recorded = "reduce-overhead" if device.type == "cuda" else None
    run: Any = torch.compile(net, mode=recorded) if mode == "cast, compiled" else net

    @torch.no_grad()
    def forward() -> object:
        return one_pass(run, x, told)

    return Contender(f"{peer}, {MODES[mode]}", None, forward, net, case.batch)
