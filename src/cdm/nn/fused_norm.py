"""Group norm, scale and shift, SiLU as one differentiable function for channels-last tensors.

torch 2.13's own group norm is slow on these (on a CPU in bfloat16 tenfold; on CUDA it copies), and the chain of four
operations keeps four activations for the backward pass; this keeps one, the input, and computes the rest again.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from cdm.nn import cpu_norm, plain_norm
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
        y, saved, ctx.has_kernel = _forward(x, weight, bias, groups, eps, act)
        ctx.act = act
        ctx.save_for_backward(*saved)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (dy,) = grad_outputs
        backward = cpu_norm.backward if ctx.has_kernel else plain_norm.backward
        dx, dweight, dbias = backward(ctx.saved_tensors, _pixels(dy), ctx.act)
        return _image(dx, *dy.shape[2:]), dweight, dbias, None, None, None


def _forward(
    x: Image, weight: Float[Tensor, "b c"], bias: Float[Tensor, "b c"], groups: int, eps: float, act: bool
) -> tuple[Image, tuple[Tensor, ...], bool]:
    """The output, what the backward pass needs, and whether it is the CPU kernel's."""
    has_kernel = cpu_norm.can_run(x, weight, bias, groups)
    forward = cpu_norm.forward if has_kernel else plain_norm.forward
    y, saved = forward(_pixels(x), weight, bias, groups, eps, act)
    return _image(y, *x.shape[2:]), saved, has_kernel


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
    return _forward(x, weight, bias, groups, eps, act)[0]  # what autograd keeps costs as much as a small image
