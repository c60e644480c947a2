"""Times calls in turns, and counts FLOPs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from peers.cases import Contender


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(call: Callable[[], object], count: int, device: torch.device) -> float:
    """Seconds of ``count`` calls."""
    synchronise(device)
    begin = time.perf_counter()
    for _ in range(count):
        call()
    synchronise(device)
    return time.perf_counter() - begin


def alternate(
    contenders: list[Contender], what: str, rounds: int, seconds: float, device: torch.device
) -> dict[str, list[float]]:
    """Images per second of each round, of those that can; ``seconds`` of each contender in each."""
    able = [c for c in contenders if getattr(c, what) is not None]
    calls = {c.name: getattr(c, what) for c in able}
    counts = {}
    for name, call in calls.items():
        timed(call, 5, device)  # compiles, records, fills caches
        counts[name] = max(1, round(seconds / (timed(call, 2, device) / 2)))
    rates: dict[str, list[float]] = {c.name: [] for c in able}
    for _ in range(rounds):
        for c in able:
            rates[c.name].append(counts[c.name] * c.batch / timed(calls[c.name], counts[c.name], device))
    return rates


def spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


@torch.no_grad()
def counted(call: Callable[[], Any]) -> tuple[Any, int]:
    """What the call returns, and its FLOPs: two for each product in matrix products, convolutions and attention."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        out = call()
    return out, counter.get_total_flops()


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())
