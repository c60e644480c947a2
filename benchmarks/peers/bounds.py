"""What the machine could do at best."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from peers import ours
from peers.cases import Case, inputs
from peers.timing import timed

SIDES = {"cuda": 8192, "cpu": 2048}  # of the matrices
SECONDS = 0.1  # of a layer in each of its three goes


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs per second of the fastest of a few large matrix products on random data."""
    side = SIDES[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    timed(lambda: a @ b, 3, device)
    return max(2 * side**3 / timed(lambda: a @ b, 3, device) * 3 for _ in range(3))


def convolutions_alone(case: Case, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Images per second if nothing but the net's convolutions and linear layers ran, each timed by itself with its own
    shapes, channels-last: forward alone, and forward with backward (no input gradient at the first)."""
    net = ours.build(case, device, torch.float32).net
    met: dict[Any, list[Any]] = {}

    def note(module: nn.Module, given: tuple[Any, ...], _: Any) -> None:
        weight: Any = module.weight
        kind = (tuple(given[0].shape), tuple(weight.shape), getattr(module, "stride", None))
        met.setdefault(kind, [module, given[0], 0])[2] += 1

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(note)
    x, told, _ = inputs(case, device)
    with torch.no_grad():
        net(x, told, None, None)
    forward = both = 0.0
    for module, given, count in list(met.values()):
        module._forward_hooks.clear()
        module.to(dtype)
        x = given.detach().to(dtype)
        x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
        x.requires_grad_(True)
        with torch.no_grad():
            out = module(x)
        grad = torch.randn_like(out)

        def step(module: nn.Module = module, x: torch.Tensor = x, grad: torch.Tensor = grad) -> None:
            module(x).backward(grad)

        @torch.no_grad()
        def passed(module: nn.Module = module, x: torch.Tensor = x) -> None:
            module(x)

        for call, which in ((passed, 0), (step, 1)):
            timed(call, 2, device)
            repeats = max(3, round(SECONDS / (timed(call, 2, device) / 2 + 1e-9)))
            best = min(timed(call, repeats, device) / repeats for _ in range(3)) * count
            forward, both = (forward + best, both) if which == 0 else (forward, both + best)
    return {"forward": case.batch / forward, "train": case.batch / both}
