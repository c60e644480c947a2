"""Convolutions and linear layers whose weights a CPU keeps as oneDNN reads them, in a net that is only sampled from.

Otherwise torch brings them into that order in every call, which takes longer than the convolution itself where images
are few or small and channels are many; and a sum after the layer reads and writes the memory once more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from cdm.runtime import is_eager

ops: Any = torch.ops.mkldnn
"""What torch's compiler calls; empty where torch was built without oneDNN."""


class _Packs(nn.Module, ABC):
    """torch's layer until ``freeze``. From then on weights are packed in bfloat16, without gradients, on a CPU: at the
    first call, and again where they were moved, replaced or written to, or the image has another size.

    Not seen are writes past torch's count of them (``.data``, NumPy, fused optimisers): freeze again after those.
    """

    weight: Tensor
    bias: Tensor | None
    _frozen = False
    _packed: tuple[Any, ...] | None = None
    """The packed weights, those they were made of, and for what."""

    def freeze(self) -> None:
        """The weights stay as they are from here on. Training ends it."""
        self._frozen, self._packed = self._can_pack(), None

    def forward(self, x: Tensor) -> Tensor:
        packed = self.packed(x)
        return super().forward(x) if packed is None else self._run(x.to(packed.dtype), packed)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """``other + forward(x)``, rounded once where packed."""
        packed = None if self._forward_hooks or self._forward_pre_hooks else self.packed(x)
        if packed is None or other.dtype != packed.dtype or other.shape != self._shape(x) or not is_eager(other):
            y = self(x)
            del x  # its memory, where nobody else needs it
            return other + y
        return self._run(x.to(packed.dtype), packed, other)

    def packed(self, x: Tensor) -> Tensor | None:
        """The weights in oneDNN's order, or None: this call is torch's."""
        if not self._frozen or torch.is_grad_enabled():
            return None
        weight = self.weight
        if weight.dtype != torch.bfloat16 or not x.device.type == weight.device.type == "cpu":
            return None
        if self.bias is not None and self.bias.dtype != weight.dtype:
            return None
        if weight.is_inference() or not (is_eager(x, weight) and works()):
            return None
        if x.numel() == 0 or not (_is_bf16(x) and self._takes(x)):
            return None
        key = (weight._version, weight.data_ptr(), x.shape[2:])
        if self._packed is None or self._packed[1] is not weight or self._packed[2] != key:
            self._packed = (self._pack(x), weight, key)
        return self._packed[0]

    @abstractmethod
    def _can_pack(self) -> bool:
        """Whether oneDNN has a layer like this."""

    @abstractmethod
    def _takes(self, x: Tensor) -> bool:
        """Whether ``x`` has the shape of an input."""

    @abstractmethod
    def _shape(self, x: Tensor) -> tuple[int, ...]:
        """Of the output."""

    @abstractmethod
    def _pack(self, x: Tensor) -> Tensor:
        """The weights in the order that is best for ``x``, right for any input."""

    @abstractmethod
    def _run(self, x: Tensor, packed: Tensor, other: Tensor | None = None) -> Tensor:
        """The layer, plus ``other``."""

    def train(self, mode: bool = True) -> _Packs:
        if mode:
            self._frozen, self._packed = False, None
        return super().train(mode)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> _Packs:
        self._packed = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None}  # cannot be copied; a copy packs its own


def _is_bf16(x: Tensor) -> bool:
    """By itself or by autocast."""
    autocast = torch.is_autocast_enabled("cpu")
    return x.is_floating_point() and (torch.get_autocast_dtype("cpu") if autocast else x.dtype) == torch.bfloat16


class Conv2d(_Packs, nn.Conv2d):  # pyright: ignore[reportIncompatibleMethodOverride]  # input is called x
    """nn.Conv2d."""

    def _can_pack(self) -> bool:
        return self.padding_mode == "zeros" and not isinstance(self.padding, str)

    def _takes(self, x: Tensor) -> bool:
        return x.ndim == 4 and x.shape[1] == self.in_channels

    def _shape(self, x: Tensor) -> tuple[int, ...]:
        sizes = zip(x.shape[2:], self.padding, self.dilation, self.kernel_size, self.stride, strict=True)
        sides = ((side + 2 * int(p) - d * (k - 1) - 1) // s + 1 for side, p, d, k, s in sizes)
        return (len(x), self.out_channels, *sides)

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

    def _can_pack(self) -> bool:
        return self.out_features > 0

    def _takes(self, x: Tensor) -> bool:
        return x.ndim > 1 and x.shape[-1] == self.in_features

    def _shape(self, x: Tensor) -> tuple[int, ...]:
        return (*x.shape[:-1], self.out_features)

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
    with torch.autocast("cpu", enabled=False), torch.device("cpu"):
        waves = torch.linspace(-99, 99, 600, dtype=torch.float32).sin().bfloat16()
        conv: Any = skip_init(Conv2d, 3, 8, 3, padding=1, dtype=torch.bfloat16)  # nothing is drawn at random
        linear: Any = skip_init(Linear, 3, 8, dtype=torch.bfloat16)
        for parameter in (*conv.parameters(), *linear.parameters()):
            parameter.copy_(waves[: parameter.numel()].view(parameter.shape))
        x = waves[: 2 * 3 * 8 * 8].view(2, 8, 8, 3)
        for layer, given, want in (
            (conv, x.permute(0, 3, 1, 2), F.conv2d(x.permute(0, 3, 1, 2), conv.weight, conv.bias, padding=1)),
            (linear, x, F.linear(x, linear.weight, linear.bias)),
        ):
            try:
                packed = layer._pack(given)
                got, nothing = layer._run(given, packed), layer._run(given, packed, -want)
            except (AttributeError, RuntimeError):
                return False
            if not torch.allclose(got, want, atol=0.02) or float(nothing.abs().max()) > 0.02:
                return False
    return True
