"""What the CPU kernels gain: norm and attention alone, and whole nets, with them and by torch's operations.

    python benchmarks/kernels.py [--out benchmarks/results/kernels.json]

Shapes and nets are those of throughput.py, in the precision that the machine is fast at; both take turns, so that a
busy moment hits both, and ratios are of one round's pairs. Needs Linux and a C++ compiler; attention also AVX512-BF16.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peers import ours
from peers.cases import CASES, Case, Contender
from peers.timing import alternate, spread
from record import check_out, made, one_sentence, save
from torch import nn

from cdm.errors import UserError
from cdm.nn import cpu_attention, cpu_norm
from cdm.nn.fused_norm import group_norm_act
from cdm.nn.layers import Attention
from cdm.runtime import choose_dtype, precision_name, set_threads

SCRIPT = "kernels.py"
KERNEL, TORCH = "kernel", "torch"
ROUNDS, SECONDS, GROUPS = 7, 1.0, 32
SHAPES = ((16, 64, 32, 32), (16, 128, 8, 8), (64, 64, 8, 8))
ATTENTION = ((64, 2, 64, 32), (16, 2, 256, 64), (2, 6, 1024, 64))  # images, heads, pixels, channels of a head
NETS = CASES[:2]


@contextmanager
def without_kernel() -> Iterator[None]:
    with patch.object(cpu_norm, "can_run", lambda *_: False), patch.object(cpu_attention, "can_run", lambda *_: False):
        yield


def pair(contender: Contender) -> list[Contender]:
    """The contender with the kernels, and without."""

    def slow(call: Callable[[], object] | None) -> Callable[[], object] | None:
        if call is None:
            return None

        def run() -> object:
            with without_kernel():
                return call()

        return run

    other = replace(contender, name=TORCH, train=slow(contender.train), forward=slow(contender.forward) or object)
    return [replace(contender, name=KERNEL), other]


def norm_alone(shape: tuple[int, ...], dtype: torch.dtype) -> Contender:
    """train: forward and backward. batch: one, so that rates are of whole calls."""
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(shape, generator=generator).to(dtype).to(memory_format=torch.channels_last) for _ in range(2))
    leaves = [t.requires_grad_() for t in (x, *torch.randn(2, *shape[:2], generator=generator))]

    def train() -> object:
        return torch.autograd.grad(group_norm_act(*leaves, GROUPS, act=True), leaves, dy)

    @torch.no_grad()
    def forward() -> object:
        return group_norm_act(*leaves, GROUPS, act=True)

    return Contender("", train, forward, nn.Identity(), 1)


def attention_alone(shape: tuple[int, int, int, int]) -> Contender:
    """From q, k and v as the layer has them to its mixed values. Without gradients only."""
    images, heads, pixels, channels = shape
    layer = Attention(heads * channels, heads, "group")
    qkv = torch.randn(images, pixels, 3 * heads * channels, generator=torch.Generator().manual_seed(0)).bfloat16()

    @torch.no_grad()
    def forward() -> object:
        return layer.mix(qkv)

    return Contender("", None, forward, nn.Identity(), 1)


def compared(contender: Contender, unit: str, per: Callable[[float], float]) -> dict[str, Any]:
    """Of both, ``per`` of the rate, and how many times as fast the kernels make it."""
    told: dict[str, Any] = {}
    for what in ("forward",) if contender.train is None else ("forward", "train"):
        rates = alternate(pair(contender), what, ROUNDS, SECONDS, torch.device("cpu"))
        told[what] = {unit: {name: spread([per(rate) for rate in found]) for name, found in rates.items()}}
        told[what]["times"] = spread([a / b for a, b in zip(rates[KERNEL], rates[TORCH], strict=True)])
    return told


def tell(name: str, told: dict[str, Any], unit: str) -> None:
    for what, each in told.items():
        kernel, torchs = (each[unit][who]["median"] for who in (KERNEL, TORCH))
        times = "{median:.2f} times ({min:.2f} to {max:.2f})".format(**each["times"])
        print(f"{name:24}{what:9}{kernel:9.2f} {unit}, by torch {torchs:9.2f}: {times}", flush=True)


def measure() -> dict[str, Any]:
    cpu = torch.device("cpu")
    dtype = choose_dtype("auto", cpu)
    results: dict[str, Any] = {"precision": precision_name(dtype), "norm": {}, "attention": {}, "nets": {}}
    for shape in SHAPES:
        name = "x".join(map(str, shape))
        results["norm"][name] = compared(norm_alone(shape, dtype), "ms", lambda rate: 1000 / rate)
        tell(name, results["norm"][name], "ms")
    for shape in ATTENTION if cpu_attention.works() else ():
        name = "x".join(map(str, shape))
        results["attention"][name] = compared(attention_alone(shape), "ms", lambda rate: 1000 / rate)
        tell(f"attention {name}", results["attention"][name], "ms")
    for case in NETS:
        results["nets"][case.name] = net_compared(case, dtype)
        tell(case.name, results["nets"][case.name], "images/s")
    return results


def net_compared(case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """Training: the whole update of ``cdm train``; forward: a pass without gradients."""
    return compared(ours.contender(case, torch.device("cpu"), dtype), "images/s", lambda rate: rate)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kernels.json")
    options = parser.parse_args(argv)
    with one_sentence(SCRIPT):
        check_out(options.out)
        threads = set_threads(options.threads)
        if not cpu_norm.works():
            raise UserError("there is no kernel of the norm to measure; expected Linux and a C++ compiler ($CXX).")
    how = made(SCRIPT, argv, torch.device("cpu")) | {"threads": threads}
    save(options.out, measure(), how)


if __name__ == "__main__":
    main()
