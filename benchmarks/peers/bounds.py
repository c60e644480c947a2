"""What the machine could do at best, as contenders that take turns with the others."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from peers import ours
from peers.cases import Case, Contender, inputs
from peers.timing import timed

SIDES = {"cuda": 8192, "cpu": 2048}  # of the matrices


def matrix_product(device: torch.device, dtype: torch.dtype) -> Contender:
    """A large matrix product on random data. Its ``batch`` is FLOPs, so its rate is FLOPs per second."""
    side = SIDES[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def call() -> object:
        return a @ b

    return Contender("a large matrix product", call, call, nn.Identity(), 2 * side**3)


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs per second of the fastest of a few."""
    product = matrix_product(device, dtype)
    timed(product.forward, 3, device)
    return max(product.batch / timed(product.forward, 3, device) * 3 for _ in range(3))


def convolutions_alone(case: Case, device: torch.device, dtype: torch.dtype) -> Contender:
    """Nothing but the net's convolutions and linear layers, each as often as the net has it in a row, with its own
    shapes, channels-last: forward with weights as sampling keeps them, and with the backward pass."""
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
    steps, passes = list[Callable[[], object]](), list[Callable[[], object]]()
    for module, given, count in met.values():
        module._forward_hooks.clear()
        step, passed = _calls(module.to(dtype), given.to(dtype))
        steps += [step] * count
        passes += [passed] * count
    return Contender(
        "convolutions and linear layers alone", lambda: [call() for call in steps], lambda: [call() for call in passes],
        net, case.batch,
    )  # fmt: skip


def _calls(module: Any, x: torch.Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    """One layer forward and backward, and forward in the form that is sampled from."""
    x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
    still = deepcopy(module).eval().requires_grad_(False)
    still.freeze()
    with torch.no_grad():
        grad = torch.randn_like(still(x))
    leaf = x.detach().requires_grad_(True)

    def step() -> None:
        for each in (leaf, *module.parameters()):
            each.grad = None
        module(leaf).backward(grad)

    @torch.no_grad()
    def passed() -> object:
        return still(x)

    return step, passed
