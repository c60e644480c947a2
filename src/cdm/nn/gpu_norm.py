"""Calls the GPU kernels of group norm, scale and shift, SiLU (``gpu_norm_kernels.py``), where Triton is there.

Without them torch's operations serve (``plain_norm.py``): some twenty launches, which read and write the memory nine
times, in place of one or two. A GPU that launches hundreds of small kernels does little else.
"""

from __future__ import annotations

import sys
import warnings
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cdm.nn import plain_norm
from cdm.nn.plain_norm import PerSample, Pixels, dense, rows
from cdm.runtime import is_eager

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WHOLE = 16384
"""Elements of a sample up to which one program has all of it in its registers: one launch in place of two."""
TILE = 8192
"""Elements of a larger one that a program has at once."""
SPLITS = 16
"""Parts of a sample whose statistics are taken side by side, at most."""
WIDEST = 2048
"""Channels, where groups and channels of a group are rounded up to powers of two."""


def can_run(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> bool:
    """Whether the kernels are there and take these; what is wrong with others, torch's operations say."""
    wide = weight.dtype == bias.dtype == torch.float32
    return wide and weight.shape == bias.shape == x.shape[:2] and _can_run(groups, x, weight, bias)


def can_fold(x: Tensor, weight: Tensor, bias: Tensor, scale_shift: Tensor | None, groups: int) -> bool:
    """The same for ``folded``."""
    b, c = x.shape[:2]
    more = [] if scale_shift is None else [scale_shift]
    shapes = weight.shape == bias.shape == (c,) and all(each.shape == (b, 2 * c) for each in more)
    return (
        shapes
        and all(each.dtype in DTYPES for each in (weight, bias, *more))
        and _can_run(groups, x, weight, bias, *more)
    )


def _can_run(groups: int, x: Tensor, *more: Tensor) -> bool:
    return (
        x.device.type in devices()
        and all(each.device == x.device for each in more)
        and x.dtype in DTYPES
        and groups > 0
        and x.shape[1] % groups == 0
        and x.numel() > 0
        and _padded(x.shape[1], groups) <= WIDEST
        and x[0].numel() < 2**31
        and is_eager(x, *more)
        and works(x.device.type)
    )


@cache
def devices() -> tuple[str, ...]:
    """Those that Triton has kernels for; torch's builds for a CPU come without it."""
    return ("cuda",) if torch.cuda.is_available() and find_spec("triton") is not None else ()


@cache
def works(device: str) -> bool:
    """Whether the kernels can be built and do what torch does. Says what is wrong, once."""
    try:
        with torch.autocast(device, enabled=False), torch.inference_mode(False), torch.no_grad():
            if plain_norm.agrees(sys.modules[__name__], torch.bfloat16, True, device):
                return True
        wrong = "is wrong as Triton builds it"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Triton, or the compiler that it calls, may raise anything
        lines = str(error).strip().splitlines() or [""]
        wrong = f"could not be built ({type(error).__name__}: {lines[-1]})"
    warnings.warn(f"the GPU kernel of the norm {wrong}: going on without, which is slower.", stacklevel=2)
    return False


def forward(
    pixels: Pixels, weight: PerSample, bias: PerSample, groups: int, eps: float, act: bool
) -> tuple[Pixels, tuple[Tensor, ...]]:
    """The output, and what ``backward`` needs: inputs, mean and inverse standard deviation of each group."""
    pixels, weight, bias = dense(pixels), rows(weight), rows(bias)
    y, mean, rstd = _forward(pixels, weight, bias, None, groups, eps, act)
    return y, (pixels, weight, bias, mean, rstd)


def folded(
    pixels: Pixels,
    weight: Float[Tensor, " c"],
    bias: Float[Tensor, " c"],
    scale_shift: Float[Tensor, "b c2"] | None,
    groups: int,
    eps: float,
    act: bool,
) -> Pixels:
    """The output alone: scale and shift are put into the weights inside the kernel."""
    weight, bias = (t.contiguous().expand(len(pixels), -1) for t in (weight, bias))
    scale_shift = None if scale_shift is None else rows(scale_shift)
    return _forward(dense(pixels), weight, bias, scale_shift, groups, eps, act)[0]


def _forward(
    pixels: Pixels,
    weight: PerSample,
    bias: PerSample,
    scale_shift: Float[Tensor, "b c2"] | None,
    groups: int,
    eps: float,
    act: bool,
) -> tuple[Pixels, Tensor, Tensor]:
    """The output, mean and inverse standard deviation."""
    y = torch.empty_like(pixels)
    mean, rstd = torch.empty(2, len(pixels), groups, device=pixels.device)
    call = _Call(pixels, groups)
    moments = call.partial(2, groups)
    more = weight if scale_shift is None else scale_shift
    given = weight, weight.stride(0), bias, bias.stride(0), more, more.stride(0)
    call("moments", pixels, moments)
    call("normalise", pixels, moments, *given, eps, y, mean, rstd, SCALE=scale_shift is not None, ACT=act)
    return y, mean, rstd


def backward(saved: tuple[Tensor, ...], dy: Pixels, act: bool) -> tuple[Pixels, PerSample, PerSample]:
    """Gradients of pixels, weight and bias by that of the output."""
    pixels, weight, bias, mean, rstd = saved
    dy, dx = dense(dy), torch.empty_like(pixels)
    dweight, dbias = weight.new_empty(2, *weight.shape)
    call = _Call(pixels, mean.shape[1])
    sums = call.partial(2, weight.shape[1])
    given = pixels, dy, weight, weight.stride(0), bias, bias.stride(0), mean, rstd
    call("sums", *given, sums, ACT=act)
    call("gradient", *given, sums, dx, dweight, dbias, ACT=act)
    return dx, dweight, dbias


class _Call:
    """One sample after the other in tiles of pixels, all channels of each. Tiles depend on a sample's shape alone, so
    does rounding: a sample is the same in any batch."""

    def __init__(self, pixels: Pixels, groups: int) -> None:
        self._b, self._n, c = pixels.shape
        self._device = pixels.device
        wide = _padded(c, groups)
        self._whole = _power(self._n) * wide <= WHOLE
        tile = _power(self._n) if self._whole else max(1, TILE // wide)
        tiles = -(-self._n // tile)
        self._looks = -(-tiles // SPLITS)  # tiles of one part
        self._parts = -(-tiles // self._looks)
        self._tiles = tiles
        elements = tile * wide
        self._fixed: dict[str, Any] = {
            "G": groups, "CG": c // groups, "GP": _power(groups), "CP": _power(c // groups), "ROWS": tile,
            "WHOLE": self._whole, "num_warps": 4 if elements <= 4096 else 8,
        }  # fmt: skip

    def partial(self, *shape: int) -> Tensor:
        """Room for what each part of each sample adds up to."""
        return torch.empty(self._b, 0 if self._whole else self._parts, *shape, device=self._device)

    def __call__(self, name: str, *given: Any, **how: Any) -> None:
        from cdm.nn import gpu_norm_kernels as kernels  # Triton is asked for here alone

        by_parts = name in ("moments", "sums")
        if by_parts and self._whole:
            return  # the other kernel does it itself
        grid = (self._b, self._parts if by_parts else self._tiles)
        how |= {"LOOKS": self._looks} if by_parts else {}
        if not by_parts:
            how |= {"PP": _power(self._parts)}
            given = (*given, self._parts, self._looks * self._fixed["ROWS"])
        with torch.cuda.device_of(given[0]):
            getattr(kernels, name)[grid](*given, self._n, **how, **self._fixed)


def _padded(channels: int, groups: int) -> int:
    return _power(groups) * _power(channels // groups)


def _power(n: int) -> int:
    """The next power of two."""
    return 1 << (n - 1).bit_length()
