"""Convolutions and linear layers whose weights a CPU keeps as oneDNN reads them, while a net is only sampled from.

Otherwise torch brings them into that order in every call, which takes longer than the convolution itself where images
are few or small and channels many; and a sum after the layer reads and writes the memory once more.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdm.runtime import is_eager

ops: Any = torch.ops.mkldnn
"""What torch's compiler calls; empty where torch was built without oneDNN."""


class _Packs(nn.Module):
    """In bfloat16, without gradients, on a CPU; elsewhere the layer is torch's. Weights are packed at the first call,
    and again when they were moved or written to."""

    weight: Tensor
    bias: Tensor | None
    _packed: Tensor | None = None
    _version = 0

    def forward(self, x: Tensor) -> Tensor:
        packed = self.packed(x)
        return super().forward(x) if packed is None else self._run(x.to(packed.dtype), packed)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """``other + forward(x)``, rounded once where packed."""
        packed = self.packed(x)
        if packed is None or other.dtype != packed.dtype:
            return other + self(x)
        return self._run(x.to(packed.dtype), packed, other)

    def packed(self, x: Tensor) -> Tensor | None:
        """The weights in oneDNN's order, or None: this call is torch's."""
        weight = self.weight
        if weight.dtype != torch.bfloat16 or torch.is_grad_enabled() or x.numel() == 0:
            return None
        if not (x.device.type == weight.device.type == "cpu" and is_eager(x, weight) and works()):
            return None
        version = 0 if weight.is_inference() else weight._version
        if self._packed is None or self._version != version:
            self._packed, self._version = self._pack(x), version
        return self._packed

    def _pack(self, x: Tensor) -> Tensor:
        """The weights in the order that is best for ``x``, right for any input."""
        raise NotImplementedError

    def _run(self, x: Tensor, packed: Tensor, other: Tensor | None = None) -> Tensor:
        """The layer, plus ``other``."""
        raise NotImplementedError

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> _Packs:
        self._packed = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None}  # cannot be copied; a copy packs its own


class Conv2d(_Packs, nn.Conv2d):  # pyright: ignore[reportIncompatibleMethodOverride]  # input is called x
    """nn.Conv2d that pads with zeros."""

    def _pack(self, x: Tensor) -> Tensor:
        return ops._reorder_convolution_weight.default(self.weight, *self._geometry(), x.shape)

    def _run(self, x: Tensor, packed: Tensor, other: Tensor | None = None) -> Tensor:
        given = packed, self.bias, *self._geometry()
        if other is None:
            return ops._convolution_pointwise.default(x, *given, "none", [], "")
        return ops._convolution_pointwise.binary(x, other, *given, "add", 1.0, None, [], None)

    def _geometry(self) -> tuple[Any, ...]:
        return self.padding, self.stride, self.dilation, self.groups


class Linear(_Packs, nn.Linear):  # pyright: ignore[reportIncompatibleMethodOverride]  # the same
    """nn.Linear."""

    def _pack(self, x: Tensor) -> Tensor:
        return ops._reorder_linear_weight.default(self.weight, x.numel() // x.shape[-1])

    def _run(self, x: Tensor, packed: Tensor, other: Tensor | None = None) -> Tensor:
        if other is None:
            return ops._linear_pointwise.default(x, packed, self.bias, "none", [], "")
        return ops._linear_pointwise.binary(x, other, packed, self.bias, "add")


@cache
@torch.no_grad()
def works() -> bool:
    """Whether torch has these operations here and they do what its own layers do."""
    x = torch.linspace(-40, 40, 2 * 3 * 8 * 8, device="cpu").sin().view(2, 3, 8, 8).bfloat16()
    x, pixels = x.to(memory_format=torch.channels_last), x.permute(0, 2, 3, 1).contiguous()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        conv, linear = Conv2d(3, 8, 3, padding=1).bfloat16(), Linear(3, 8).bfloat16()
    for layer, given, want in (
        (conv, x, F.conv2d(x, conv.weight, conv.bias, padding=1)),
        (linear, pixels, F.linear(pixels, linear.weight, linear.bias)),
    ):
        try:
            packed = layer._pack(given)
            got, nothing = layer._run(given, packed), layer._run(given, packed, -want)
        except (AttributeError, RuntimeError):
            return False
        if not torch.allclose(got, want, atol=0.01) or float(nothing.abs().max()) > 0.01:
            return False
    return True
