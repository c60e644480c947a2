"""Group norm, scale and shift, SiLU by torch's operations, forward and backward: for CPUs and GPUs without the kernel.

Same functions as ``cpu_norm.py`` and ``gpu_norm.py``, which are held against these.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Pixels = Float[Tensor, "b n c"]
PerSample = Float[Tensor, "b c"]


def forward(
    pixels: Pixels, weight: PerSample, bias: PerSample, groups: int, eps: float, act: bool
) -> tuple[Pixels, tuple[Tensor, ...]]:
    """y = act(a x + shift) with a and shift per sample and channel; and what ``backward`` needs."""
    if pixels.device.type == "cpu" and pixels.dtype == torch.bfloat16:
        mean, rstd = bf16_statistics(pixels, groups, eps)
    else:
        mean, rstd = statistics(pixels, groups, eps, weight.dtype)
    a, shift = affine(weight, bias, mean, rstd, pixels.dtype)
    y = torch.addcmul(shift, pixels, a)
    if act:
        F.silu(y, inplace=True)
    return y, (pixels, weight, a, shift, mean, rstd)


def affine(
    weight: PerSample, bias: PerSample, mean: Float[Tensor, "b g 1"], rstd: Float[Tensor, "b g 1"], dtype: torch.dtype
) -> tuple[Float[Tensor, "b 1 c"], Float[Tensor, "b 1 c"]]:
    """What pixels are multiplied by, and what is added."""
    b, groups, _ = mean.shape
    a = weight.view(b, groups, -1) * rstd
    shift = torch.addcmul(bias.view(b, groups, -1), mean, a, value=-1)
    return a.view(b, 1, -1).to(dtype), shift.view(b, 1, -1).to(dtype)


def backward(saved: tuple[Tensor, ...], dy: Pixels, act: bool) -> tuple[Pixels, PerSample, PerSample]:
    """Gradients of pixels, weight and bias: dx = a dz + p x + q with p, q per sample and group."""
    pixels, weight, a, shift, mean, rstd = saved
    b, n, c = pixels.shape
    groups, wide = mean.shape[1], weight.dtype
    dz = torch.ops.aten.silu_backward(dy, torch.addcmul(shift, pixels, a)) if act else dy
    sum_dz = _sum(dz, wide)
    sum_xdz = _sum(dz * pixels, wide)
    by_group = sum_dz.view(b, groups, -1)
    dweight = torch.addcmul(sum_xdz.view(b, groups, -1), mean, by_group, value=-1).mul_(rstd)
    weight = weight.view(b, groups, -1)
    count = n * c // groups
    p = (weight * dweight).sum(2, keepdim=True).mul_(rstd.square()).div_(-count)
    q = (weight * by_group).sum(2, keepdim=True).mul_(rstd).div_(-count).addcmul_(p, mean, value=-1)
    spread = (b, groups, c // groups)
    p, q = (t.expand(spread).reshape(b, 1, c).to(dz.dtype) for t in (p, q))
    return torch.addcmul(q, pixels, p).addcmul_(dz, a), dweight.view(b, c), sum_dz


def statistics(
    pixels: Pixels, groups: int, eps: float, dtype: torch.dtype
) -> tuple[Float[Tensor, "b g 1"], Float[Tensor, "b g 1"]]:
    """Mean and inverse standard deviation of each group. Centred first: no cancellation in low precision."""
    b, n, _ = pixels.shape
    center = _sum(pixels, dtype) / n
    off = pixels - center.to(pixels.dtype)[:, None]
    variance = _sum(off.mul_(off), dtype) / n
    center = center.view(b, groups, -1)
    mean = center.mean(2, keepdim=True)
    between = (center - mean).square_()  # law of total variance, channels of one group
    return mean, between.add_(variance.view(b, groups, -1)).mean(2, keepdim=True).add_(eps).rsqrt_()


NATIVE_FROM = 1024
"""Pixels from which torch 2.13's own statistics of bfloat16 channels-last tensors are fast on a CPU (a tenth below)."""


def bf16_statistics(pixels: Pixels, groups: int, eps: float) -> tuple[Float[Tensor, "b g 1"], Float[Tensor, "b g 1"]]:
    """The same on a CPU, from sums and sums of squares in float32. Within 0.5 % where the mean is 30 deviations off;
    at 100 up to a quarter off, but there one step of bfloat16 is half a deviation."""
    b, n, c = pixels.shape
    if n >= NATIVE_FROM:
        one, nothing = pixels.new_ones(c, dtype=torch.float32), pixels.new_zeros(c, dtype=torch.float32)
        image = pixels.contiguous().mT.unsqueeze(2)  # channels-last
        _, mean, rstd = torch.native_group_norm(image, one, nothing, b, c, n, groups, eps)  # statistics in their dtype
        return mean[..., None], rstd[..., None]
    values = pixels.float()
    sums = values.new_empty(2, b, c)
    torch.sum(values, 1, out=sums[0])
    torch.sum(values.square_(), 1, out=sums[1])
    mean, square = sums.view(2, b, groups, -1).sum(3, keepdim=True).div_(n * c // groups)
    return mean, torch.addcmul(square, mean, mean, value=-1).clamp_(min=0).add_(eps).rsqrt_()


def _sum(pixels: Pixels, dtype: torch.dtype) -> PerSample:
    """Sum over pixels. In bfloat16 a CPU adds up in float32 anyway, but would copy its input if asked to."""
    if pixels.device.type == "cpu" and pixels.dtype == torch.bfloat16:
        return pixels.sum(1).to(dtype)
    return pixels.sum(1, dtype=dtype)


def dense(x: Tensor) -> Tensor:
    """Its memory is what it says: no gaps, no sign to be put on when it is read."""
    return x.resolve_neg().contiguous()


def rows(x: PerSample) -> PerSample:
    """Rows without gaps inside; all may be one and the same."""
    return x if not x.is_neg() and (x.shape[1] == 1 or x.stride(1) == 1) else dense(x)


def agrees(by: Any, dtype: torch.dtype, act: bool, device: str, pixels_of_each: int = 400) -> bool:
    """Whether the kernels that ``by`` calls do the same: on two samples, of more than they look at at once unless told,
    by many threads, in groups of 4 of 44 channels, so that all loops have tails."""
    b, n, c = 2, pixels_of_each, 44
    grid = torch.linspace(0, 3000, 2 * b * n * c, dtype=torch.float32, device=device).view(2, b, n, c)
    pixels, dy = (3 * grid.sin() + 1).to(dtype)
    weight, bias = (torch.linspace(0, 9, 2 * b * c, dtype=torch.float32, device=device).view(2, b, c) * 7).sin()
    results = []
    for module, like in ((sys.modules[__name__], torch.float32), (by, dtype)):
        y, saved = module.forward(pixels.to(like), weight, bias, c // 4, 1e-5, act)
        results.append((y, *module.backward(saved, dy.to(like), act)))
    limit = 1e-4 if dtype == torch.float32 else 1e-2
    return all(float((got - want).norm()) <= limit * float(want.norm()) for want, got in zip(*results, strict=True))
