"""Calls the GPU kernels of group norm, scale and shift, SiLU (``gpu_norm_kernels.py``), where Triton is there.

Without them torch's operations serve (``plain_norm.py``): some twenty launches, which read and write the memory nine
times, in place of one or two. A GPU that launches hundreds of small kernels does little else.
"""

from __future__ import annotations

import subprocess
import warnings
from functools import cache
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cdm.nn import plain_norm
from cdm.nn.plain_norm import PerSample, Pixels, dense, rows
from cdm.runtime import is_eager

KINDS = ("cuda",)
"""Devices that the kernels are for; the first question everywhere, as it costs a CPU next to nothing."""
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
    if x.device.type not in KINDS:
        return False
    wide = weight.dtype == bias.dtype == torch.float32
    return wide and weight.shape == bias.shape == x.shape[:2] and _can_run(groups, x, weight, bias)


def can_fold(x: Tensor, weight: Tensor, bias: Tensor, scale_shift: Tensor | None, groups: int) -> bool:
    """The same for ``folded``."""
    if x.device.type not in KINDS:
        return False
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
        is_eager(x, *more)
        and all(each.device == x.device for each in more)
        and x.dtype in DTYPES
        and groups > 0
        and x.shape[1] % groups == 0
        and x.numel() > 0
        and x[0].numel() < 2**31
        and _padded(x.shape[1], groups) <= WIDEST
        and is_there(x.device.type)
    )


def is_there(device: str) -> bool:
    return device in devices() and device not in given_up and works(device)


@cache
def devices() -> tuple[str, ...]:
    """Those of them that are here with Triton; torch's builds for a CPU come without it."""
    return KINDS if torch.cuda.is_available() and find_spec("triton") is not None else ()


given_up = set[str]()
"""Kinds of devices for which a kernel could not be built; torch's operations serve there from then on."""


@cache
def works(device: str) -> bool:
    """Whether the kernels can be built and do what torch does: of samples in many tiles and in one, and with scale and
    shift inside. Says what is wrong, once. Other shapes are built when they are met."""
    kernels = SimpleNamespace(forward=_forward, backward=_backward)
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
            right = all(plain_norm.agrees(kernels, torch.bfloat16, True, device, pixels) for pixels in (400, 40))
            if right and _folds(device):
                return True
        say("is wrong as Triton builds it")
    except Exception as error:  # Triton, or the compiler that it calls, may raise anything
        _give_up(device, error)
    return False


def _folds(device: str) -> bool:
    """Whether scale and shift inside are those outside."""
    b, n, c = 2, 40, 44
    numbers = torch.linspace(0, 999, b * n * c + 2 * c, dtype=torch.float32, device=device).sin()
    pixels, weight, bias = numbers.split((b * n * c, c, c))
    pixels, scale_shift = pixels.view(b, n, c).bfloat16(), numbers[: b * 2 * c].view(b, 2 * c)
    scale, shift = (1 + scale_shift[:, :c]), scale_shift[:, c:]
    want = _forward(pixels, weight * scale, bias * scale + shift, c // 4, 1e-5, True)[0]
    got = _folded(pixels, weight, bias, scale_shift, c // 4, 1e-5, True)
    return float((got - want).norm()) <= 1e-2 * float(want.norm())


def _give_up(device: str, error: Exception) -> None:
    """Raises again what is no fault of the kernels."""
    if isinstance(error, (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError))):
        raise error
    if device not in given_up:
        given_up.add(device)
        say(f"could not be built ({_told(error)})")


def _told(error: Exception) -> str:
    """Kind of an error, and the line of it that tells most."""
    if isinstance(error, subprocess.CalledProcessError):
        return "the C compiler that Triton needs failed; expected one that works ($CC), and the headers of Python"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    line = next((line for line in lines if "error" in line.lower() or "fatal" in line.lower()), lines[0])
    return f"{type(error).__name__}: {line[:200]}"


def say(what: str) -> None:
    warnings.warn(f"the GPU kernel of the norm {what}: going on without, which is slower.", stacklevel=2)


def forward(
    pixels: Pixels, weight: PerSample, bias: PerSample, groups: int, eps: float, act: bool
) -> tuple[Pixels, tuple[Tensor, ...]]:
    """The output, and what ``backward`` needs: inputs, mean and inverse standard deviation of each group."""
    try:
        return _forward(pixels, weight, bias, groups, eps, act)
    except Exception as error:
        _give_up(pixels.device.type, error)
        return plain_norm.forward(pixels, weight, bias, groups, eps, act)


def backward(saved: tuple[Tensor, ...], dy: Pixels, act: bool) -> tuple[Pixels, PerSample, PerSample]:
    """Gradients of pixels, weight and bias by that of the output."""
    if len(saved) != 5:  # of a forward pass by torch's operations
        return plain_norm.backward(saved, dy, act)
    try:
        return _backward(saved, dy, act)
    except Exception as error:
        _give_up(dy.device.type, error)
        pixels, weight, bias, mean, rstd = saved
        mean, rstd = mean[..., None], rstd[..., None]
        a, shift = plain_norm.affine(weight, bias, mean, rstd, pixels.dtype)
        return plain_norm.backward((pixels, weight, a, shift, mean, rstd), dy, act)


def folded(*given: Any) -> Pixels | None:
    """The output alone, as ``_folded`` makes it of ``given``. None: it could not be built."""
    try:
        return _folded(*given)
    except Exception as error:
        return _give_up(given[0].device.type, error)


# ---- calls -----------------------------------------------------------------------------------------------------------


def _forward(
    pixels: Pixels, weight: PerSample, bias: PerSample, groups: int, eps: float, act: bool
) -> tuple[Pixels, tuple[Tensor, ...]]:
    pixels, weight, bias = dense(pixels), rows(weight), rows(bias)
    y, mean, rstd = _normalise(pixels, weight, bias, None, groups, eps, act)
    return y, (pixels, weight, bias, mean, rstd)


def _folded(
    pixels: Pixels,
    weight: Float[Tensor, " c"],
    bias: Float[Tensor, " c"],
    scale_shift: Float[Tensor, "b c2"] | None,
    groups: int,
    eps: float,
    act: bool,
) -> Pixels:
    """Scale and shift are put into the weights inside the kernel."""
    weight, bias = (t.contiguous().expand(len(pixels), -1) for t in (weight, bias))
    scale_shift = None if scale_shift is None else rows(scale_shift)
    return _normalise(dense(pixels), weight, bias, scale_shift, groups, eps, act)[0]


def _normalise(
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
    mean, rstd = torch.empty(2, len(pixels), groups, dtype=torch.float32, device=pixels.device)
    call = _Call(pixels, groups)
    moments = call.partial(2, groups)
    more = weight if scale_shift is None else scale_shift
    given = weight, weight.stride(0), bias, bias.stride(0), more, more.stride(0)
    call("moments", pixels, moments)
    call("normalise", pixels, moments, *given, eps, y, mean, rstd, SCALE=scale_shift is not None, ACT=act)
    return y, mean, rstd


def _backward(saved: tuple[Tensor, ...], dy: Pixels, act: bool) -> tuple[Pixels, PerSample, PerSample]:
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
        parts = 0 if self._whole else self._parts
        return torch.empty(self._b, parts, *shape, dtype=torch.float32, device=self._device)

    def __call__(self, name: str, *given: Any, **how: Any) -> None:
        from cdm.nn import gpu_norm_kernels as kernels  # Triton is asked for here alone

        if name in ("moments", "sums"):
            if self._whole:
                return  # the other kernel does it itself
            programs, given, how = self._parts, (*given, self._parts), how | {"LOOKS": self._looks}
        else:
            programs, how = self._tiles, how | {"PP": _power(self._parts)}
            given = *given, self._parts, self._looks * self._fixed["ROWS"], self._tiles
        with torch.cuda.device_of(given[0]):
            getattr(kernels, name)[(self._b * programs,)](*given, self._n, **how, **self._fixed)


def _padded(channels: int, groups: int) -> int:
    return _power(groups) * _power(channels // groups)


def _power(n: int) -> int:
    """The next power of two."""
    return 1 << (n - 1).bit_length()
