"""Group norm, scale and shift, SiLU as one differentiable function for channels-last tensors.

torch 2.13's own group norm is slow on these (on a CPU in bfloat16 tenfold; on CUDA it copies), and the chain of four
operations keeps four activations for the backward pass; this keeps one, the input, and computes the rest again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from cdm.types import Image


class _GroupNormAct(torch.autograd.Function):
    """y = act(a x + c) with a, c per sample and channel; dx = a dz + p x + q with p, q per sample and group."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Image,
        weight: Float[Tensor, "b c"],
        bias: Float[Tensor, "b c"],
        groups: int,
        eps: float,
        act: bool,
    ) -> Image:
        b, c, height, width = x.shape
        pixels = _pixels(x)
        if x.device.type == "cpu" and x.dtype == torch.bfloat16:
            mean, rstd = _bf16_statistics(x, pixels, groups, eps)
        else:
            mean, rstd = _statistics(pixels, groups, eps, weight.dtype)
        a = weight.view(b, groups, -1) * rstd
        shift = torch.addcmul(bias.view(b, groups, -1), mean, a, value=-1).view(b, 1, c).to(x.dtype)
        a = a.view(b, 1, c).to(x.dtype)
        y = torch.addcmul(shift, pixels, a)
        if act:
            F.silu(y, inplace=True)
        ctx.save_for_backward(pixels, weight, a, shift, mean, rstd)
        ctx.act = act
        return _image(y, height, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (dy,) = grad_outputs
        pixels, weight, a, shift, mean, rstd = ctx.saved_tensors
        b, c, height, width = dy.shape
        groups, wide = mean.shape[1], weight.dtype
        dz = _pixels(dy)
        if ctx.act:
            dz = torch.ops.aten.silu_backward(dz, torch.addcmul(shift, pixels, a))
        sum_dz = _sum(dz, wide)
        sum_xdz = _sum(dz * pixels, wide)
        by_group = sum_dz.view(b, groups, -1)
        dweight = torch.addcmul(sum_xdz.view(b, groups, -1), mean, by_group, value=-1).mul_(rstd)
        weight = weight.view(b, groups, -1)
        count = height * width * c // groups
        p = (weight * dweight).sum(2, keepdim=True).mul_(rstd.square()).div_(-count)
        q = (weight * by_group).sum(2, keepdim=True).mul_(rstd).div_(-count).addcmul_(p, mean, value=-1)
        spread = (b, groups, c // groups)
        p, q = (t.expand(spread).reshape(b, 1, c).to(dz.dtype) for t in (p, q))
        dx = torch.addcmul(q, pixels, p).addcmul_(dz, a)
        return _image(dx, height, width), dweight.view(b, c), sum_dz, None, None, None


def _statistics(
    pixels: Float[Tensor, "b n c"], groups: int, eps: float, dtype: torch.dtype
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


def _bf16_statistics(
    x: Image, pixels: Float[Tensor, "b n c"], groups: int, eps: float
) -> tuple[Float[Tensor, "b g 1"], Float[Tensor, "b g 1"]]:
    """The same on a CPU, from sums and sums of squares in float32. Within 0.5 % where the mean is 30 deviations off;
    at 100 up to a quarter off, but there one step of bfloat16 is half a deviation."""
    b, n, c = pixels.shape
    if n >= NATIVE_FROM:
        one, nothing = pixels.new_ones(c, dtype=torch.float32), pixels.new_zeros(c, dtype=torch.float32)
        _, mean, rstd = torch.native_group_norm(x, one, nothing, b, c, n, groups, eps)  # statistics in their dtype
        return mean[..., None], rstd[..., None]
    values = pixels.float()
    sums = values.new_empty(2, b, c)
    torch.sum(values, 1, out=sums[0])
    torch.sum(values.square_(), 1, out=sums[1])
    mean, square = sums.view(2, b, groups, -1).sum(3, keepdim=True).div_(n * c // groups)
    return mean, torch.addcmul(square, mean, mean, value=-1).clamp_(min=0).add_(eps).rsqrt_()


def _sum(pixels: Float[Tensor, "b n c"], dtype: torch.dtype) -> Float[Tensor, "b c"]:
    """Sum over pixels. In bfloat16 a CPU adds up in float32 anyway, but would copy its input if asked to."""
    if pixels.device.type == "cpu" and pixels.dtype == torch.bfloat16:
        return pixels.sum(1).to(dtype)
    return pixels.sum(1, dtype=dtype)


def _pixels(x: Image) -> Float[Tensor, "b n c"]:
    """A view of a channels-last tensor (a copy of any other)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _image(pixels: Float[Tensor, "b n c"], height: int, width: int) -> Image:
    return pixels.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def group_norm_act(
    x: Image, weight: Float[Tensor, "b c"], bias: Float[Tensor, "b c"], groups: int, *, act: bool, eps: float = 1e-5
) -> Image:
    """Group norm of ``x`` times ``weight`` plus ``bias``, both per sample, then SiLU if ``act``.

    Statistics are taken in the dtype of ``weight`` and ``bias``: float32 for a bfloat16 ``x``. The result is
    channels-last.
    """
    return _GroupNormAct.apply(x, weight, bias, groups, eps, act)
