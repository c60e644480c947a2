"""What our kernels gain: norm and attention alone, and whole nets, with them and by torch's operations.

    python benchmarks/kernels.py [--device cuda] [--out benchmarks/results/kernels.json]

Shapes and nets are those of throughput.py, in the precision that the machine is fast at; both take turns, so that a
busy moment hits both, and ratios are of one round's pairs. On a CPU it needs Linux and a C++ compiler, attention also
AVX512-BF16. On a GPU it needs Triton; there is none for attention, and the norm alone is replayed as a CUDA graph.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peers import ours
from peers.cases import CASES, Case, Contender
from peers.timing import alternate, spread
from record import check_out, made, one_sentence, save, short_name
from torch import nn

from cdm.errors import UserError
from cdm.nn import cpu_attention, cpu_norm, gpu_norm
from cdm.nn.fused_norm import group_norm_act, has_kernel
from cdm.nn.layers import Attention
from cdm.runtime import choose_device, choose_dtype, precision_name, set_threads

SCRIPT = "kernels.py"
KERNEL, TORCH = "kernel", "torch"
ROUNDS, GROUPS = 7, 32
SECONDS = {"cpu": 1.0, "cuda": 0.1}
SHAPES = ((16, 64, 32, 32), (16, 128, 8, 8), (64, 64, 8, 8))
GPU_SHAPES = (*SHAPES, (256, 64, 16, 16), (128, 64, 64, 64), (2, 192, 64, 64), (2, 768, 8, 8))
ATTENTION = ((64, 2, 64, 32), (16, 2, 256, 64), (2, 6, 1024, 64))  # images, heads, pixels, channels of a head
NETS = CASES[:2]


@contextmanager
def without_kernel() -> Iterator[None]:
    with ExitStack() as stack:
        for module, name in ((cpu_norm, "can_run"), (cpu_attention, "can_run"), (gpu_norm, "_can_run")):
            stack.enter_context(patch.object(module, name, lambda *_: False))
        yield


def pair(make: Callable[[], Contender]) -> list[Contender]:
    """The contender with the kernels, and without: two, as each records its own graphs on a GPU."""

    def slow(call: Callable[[], object] | None) -> Callable[[], object] | None:
        if call is None:
            return None

        def run() -> object:
            with without_kernel():
                return call()

        return run

    with without_kernel():
        other = make()
    other = replace(other, name=TORCH, train=slow(other.train), forward=slow(other.forward) or object)
    return [replace(make(), name=KERNEL), other]


def recorded(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """On a GPU its graph, so that not the launches are timed; on a CPU the call."""
    if device.type != "cuda":
        return call
    for _ in range(3):
        call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def norm_alone(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Contender:
    """train: forward and backward. batch: one, so that rates are of whole calls."""
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(2))
    x, dy = (t.to(memory_format=torch.channels_last) for t in (x, dy))
    leaves = [t.to(device).requires_grad_() for t in (x, *torch.randn(2, *shape[:2], generator=generator))]

    def train() -> object:
        return torch.autograd.grad(group_norm_act(*leaves, GROUPS, act=True), leaves, dy)

    @torch.no_grad()
    def forward() -> object:
        return group_norm_act(*leaves, GROUPS, act=True)

    return Contender("", recorded(train, device), recorded(forward, device), nn.Identity(), 1)


def attention_alone(shape: tuple[int, int, int, int]) -> Contender:
    """From q, k and v as the layer has them to its mixed values. Without gradients only."""
    images, heads, pixels, channels = shape
    layer = Attention(heads * channels, heads, "group")
    qkv = torch.randn(images, pixels, 3 * heads * channels, generator=torch.Generator().manual_seed(0)).bfloat16()

    @torch.no_grad()
    def forward() -> object:
        return layer.mix(qkv)

    return Contender("", None, forward, nn.Identity(), 1)


def compared(
    make: Callable[[], Contender], unit: str, per: Callable[[float], float], device: torch.device
) -> dict[str, Any]:
    """Of both, ``per`` of the rate, and how many times as fast the kernels make it."""
    told: dict[str, Any] = {}
    both = pair(make)
    for what in ("forward",) if both[0].train is None else ("forward", "train"):
        rates = alternate(both, what, ROUNDS, SECONDS[device.type], device)
        told[what] = {unit: {name: spread([per(rate) for rate in found]) for name, found in rates.items()}}
        told[what]["times"] = spread([a / b for a, b in zip(rates[KERNEL], rates[TORCH], strict=True)])
    return told


def tell(name: str, told: dict[str, Any], unit: str) -> None:
    for what, each in told.items():
        kernel, torchs = (each[unit][who]["median"] for who in (KERNEL, TORCH))
        times = "{median:.2f} times ({min:.2f} to {max:.2f})".format(**each["times"])
        print(f"{name:24}{what:9}{kernel:9.3f} {unit}, by torch {torchs:9.3f}: {times}", flush=True)


def measure(device: torch.device) -> dict[str, Any]:
    dtype = choose_dtype("auto", device)
    is_cpu = device.type == "cpu"
    results: dict[str, Any] = {"precision": precision_name(dtype), "norm": {}, "attention": {}, "nets": {}}
    for shape in SHAPES if is_cpu else GPU_SHAPES:
        name = "x".join(map(str, shape))
        results["norm"][name] = compared(partial(norm_alone, shape, dtype, device), "ms", milliseconds, device)
        tell(name, results["norm"][name], "ms")
    for shape in ATTENTION if is_cpu and cpu_attention.works() else ():
        name = "x".join(map(str, shape))
        results["attention"][name] = compared(partial(attention_alone, shape), "ms", milliseconds, device)
        tell(f"attention {name}", results["attention"][name], "ms")
    for case in NETS:
        results["nets"][case.name] = net_compared(case, device, dtype)
        tell(case.name, results["nets"][case.name], "images/s")
    return results


def milliseconds(rate: float) -> float:
    return 1000 / rate


def net_compared(case: Case, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Training: the whole update of ``cdm train``; forward: a pass without gradients."""
    return compared(partial(ours.contender, case, device, dtype), "images/s", lambda rate: rate, device)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/kernels.json, of a GPU with its name")
    options = parser.parse_args(argv)
    with one_sentence(SCRIPT):
        device, threads = choose_device(options.device), set_threads(options.threads)
        if not has_kernel(device):
            needed = "Linux and a C++ compiler ($CXX)" if device.type == "cpu" else "Triton"
            raise UserError(f"there is no kernel of the norm to measure; expected {needed}.")
        name = "kernels.json" if device.type == "cpu" else f"kernels-{short_name(device)}.json"
        out = check_out(options.out or Path(__file__).parent / "results" / name)
    how = made(SCRIPT, argv, device) | {"threads": threads}
    save(out, measure(device), how)


if __name__ == "__main__":
    main()
