"""Builds and calls the CPU kernel of group norm, scale and shift, SiLU (``cpu_norm.cpp``), where there is a compiler.

torch has no such kernel for channels-last tensors: its operations one after the other (``plain_norm.py``) read and
write the memory ten times and take a fifth of a forward pass. Without a compiler they serve: slower, nothing else.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdm.nn import cpu_kernels, plain_norm
from cdm.nn.plain_norm import PerSample, Pixels, dense, rows
from cdm.runtime import is_eager

SOURCE = Path(__file__).with_name("cpu_norm.cpp")
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
CHUNK = 16384
"""Elements of one sample that are summed at once: they stay in a fast cache between two looks."""
ALONE = 16384
"""Elements up to which one thread is as fast as many."""


def can_run(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> bool:
    """Whether the kernel is there and takes these; what is wrong with others, torch's operations say."""
    b, c = x.shape[:2]
    tensors = (x, weight, bias)
    return (
        all(each.device.type == "cpu" for each in tensors)
        and x.dtype in NAMES
        and weight.dtype == bias.dtype == torch.float32
        and weight.shape == bias.shape == (b, c)
        and groups > 0
        and c % groups == 0
        and x.numel() > 0
        and is_eager(*tensors)
        and works()
    )


def forward(
    pixels: Pixels, weight: PerSample, bias: PerSample, groups: int, eps: float, act: bool
) -> tuple[Pixels, tuple[Tensor, ...]]:
    """The output, and what ``backward`` needs: inputs, mean and inverse standard deviation of each group."""
    pixels, weight, bias = dense(pixels), rows(weight), rows(bias)
    y, (mean, rstd) = torch.empty_like(pixels), weight.new_empty(2, len(weight), groups)
    partial, room = _scratch(pixels, weight, 2)
    _call("forward", act, pixels, groups, weight, weight.stride(0), bias, bias.stride(0), eps, y, mean, rstd, partial,
          room)  # fmt: skip
    return y, (pixels, weight, bias, mean, rstd)


def backward(saved: tuple[Tensor, ...], dy: Pixels, act: bool) -> tuple[Pixels, PerSample, PerSample]:
    """Gradients of pixels, weight and bias by that of the output."""
    pixels, weight, bias, mean, rstd = saved
    dy, dx = dense(dy), torch.empty_like(pixels)
    dweight, dbias = weight.new_empty(weight.shape), weight.new_empty(weight.shape)
    partial, room = _scratch(pixels, weight, 5)
    _call("backward", act, pixels, mean.shape[1], dy, weight, weight.stride(0), bias, bias.stride(0), mean, rstd, dx,
          dweight, dbias, partial, room)  # fmt: skip
    return dx, dweight, dbias


def _chunk(n: int, c: int) -> int:
    return max(1, min(n, CHUNK // c))


def _scratch(pixels: Pixels, weight: PerSample, rows: int) -> tuple[Tensor, Tensor]:
    b, n, c = pixels.shape
    return weight.new_empty(b, -(-n // _chunk(n, c)), 2, c), weight.new_empty(b, rows, c)


def _call(what: str, act: bool, pixels: Pixels, groups: int, *arguments: Any) -> None:
    lib = kernel()
    assert lib is not None
    b, n, c = pixels.shape
    threads = torch.get_num_threads() if pixels.numel() > ALONE else 1
    function = getattr(lib, f"{what}_{NAMES[pixels.dtype]}{'_silu' if act else ''}")
    given = (pixels, *arguments)
    function(b, n, c, groups, _chunk(n, c), *[t.data_ptr() if isinstance(t, Tensor) else t for t in given], threads)


LONG, POINTER = ctypes.c_long, ctypes.c_void_p
ROWS = [POINTER, LONG, POINTER, LONG]  # weight and bias, each with the distance of its rows
ARGUMENTS = {
    "forward": [*[LONG] * 5, POINTER, *ROWS, ctypes.c_float, *[POINTER] * 5, ctypes.c_int],
    "backward": [*[LONG] * 5, POINTER, POINTER, *ROWS, *[POINTER] * 7, ctypes.c_int],
}
"""As cpu_norm.cpp declares them."""


def _declared(lib: ctypes.CDLL) -> ctypes.CDLL:
    for what, arguments in ARGUMENTS.items():
        for name in NAMES.values():
            for act in ("", "_silu"):
                function = getattr(lib, f"{what}_{name}{act}")
                function.argtypes, function.restype = arguments, None
    return lib


@cache
def works() -> bool:
    """Whether the kernel is there and does what torch does: no compiler is trusted unseen. Says what is wrong, once."""
    if kernel() is None:
        return False
    if all(plain_norm.agrees(sys.modules[__name__], dtype, act, "cpu") for dtype in NAMES for act in (True, False)):
        return True
    cpu_kernels.say("norm", "is wrong as this compiler builds it")
    return False


@cache
def kernel() -> ctypes.CDLL | None:
    return cpu_kernels.load(SOURCE, "norm", _declared)
