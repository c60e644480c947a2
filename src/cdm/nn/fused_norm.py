"""Group norm, scale and shift, SiLU as one differentiable function for channels-last tensors.

torch 2.13's own group norm is slow on these (on a CPU in bfloat16 tenfold; on CUDA it copies), and the chain of four
operations keeps four activations for the backward pass; this keeps one, the input, and computes the rest again. There
are kernels for a CPU and for a GPU; where neither can run, torch's operations serve.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from cdm.nn import cpu_norm, gpu_norm, plain_norm
from cdm.types import Image


class _GroupNormAct(torch.autograd.Function):
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
        ctx.by = _by(x, weight, bias, groups)
        y, saved = _forward(ctx.by, x, weight, bias, groups, eps, act)
        ctx.act = act
        ctx.save_for_backward(*saved)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (dy,) = grad_outputs
        dx, dweight, dbias = ctx.by.backward(ctx.saved_tensors, _pixels(dy), ctx.act)
        return _image(dx, *dy.shape[2:]), dweight, dbias, None, None, None


def has_kernel(device: torch.device) -> bool:
    """Whether there is one for this device."""
    return cpu_norm.works() if device.type == "cpu" else gpu_norm.is_there(device.type)


def _by(x: Image, weight: Float[Tensor, "b c"], bias: Float[Tensor, "b c"], groups: int) -> ModuleType:
    """Who computes it."""
    kernels = (by for by in (cpu_norm, gpu_norm) if by.can_run(x, weight, bias, groups))
    return next(kernels, plain_norm)


def _forward(
    by: ModuleType, x: Image, weight: Float[Tensor, "b c"], bias: Float[Tensor, "b c"], groups: int, eps: float,
    act: bool,
) -> tuple[Image, tuple[Tensor, ...]]:  # fmt: skip
    """The output, and what the backward pass needs."""
    y, saved = by.forward(_pixels(x), weight, bias, groups, eps, act)
    return _image(y, *x.shape[2:]), saved


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
    if torch.is_grad_enabled():
        return _GroupNormAct.apply(x, weight, bias, groups, eps, act)
    by = _by(x, weight, bias, groups)
    return _forward(by, x, weight, bias, groups, eps, act)[0]  # what autograd keeps costs as much as a small image


def modulated_norm_act(
    x: Image,
    weight: Float[Tensor, " c"],
    bias: Float[Tensor, " c"],
    scale_shift: Float[Tensor, "b c2"] | None,
    groups: int,
    *,
    act: bool,
    eps: float = 1e-5,
) -> Image:
    """``act(norm(x) * (1 + scale) + shift)``; ``scale_shift`` is scale | shift, ``[B, 2 C]``. Channels-last."""
    if not torch.is_grad_enabled() and gpu_norm.can_fold(x, weight, bias, scale_shift, groups):
        y = gpu_norm.folded(_pixels(x), weight, bias, scale_shift, groups, eps, act)
        if y is not None:
            return _image(y, *x.shape[2:])
    return group_norm_act(x, *_fold(len(x), weight, bias, scale_shift), groups, act=act, eps=eps)


def _fold(
    b: int, weight: Float[Tensor, " c"], bias: Float[Tensor, " c"], scale_shift: Float[Tensor, "b c2"] | None
) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b c"]]:
    """Weight and bias per sample, with scale and shift in them, in at least float32."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    weight, bias = weight.to(wide), bias.to(wide)
    if scale_shift is None:
        return weight.expand(b, -1), bias.expand(b, -1)
    scale, shift = scale_shift.to(wide).chunk(2, dim=1)
    scale = 1 + scale
    return weight * scale, torch.addcmul(shift, bias, scale)
