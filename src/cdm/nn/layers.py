"""Layers of the U-Net: norms, resampling, attention, embeddings."""

from __future__ import annotations

from math import gcd, log
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cdm.nn import cpu_attention
from cdm.nn.fused_norm import modulated_norm_act
from cdm.nn.packed import Linear
from cdm.types import Image

Layer = TypeVar("Layer", bound=nn.Module)
Features = Float[Tensor, "b _ _ _"]
"""Activations on their way through the net, channels-last; channels and sides change."""


def sinusoids(value: Float[Tensor, " b"], dims: int, max_period: float = 10000.0) -> Float[Tensor, "b dims"]:
    """[cos, sin] of ``value`` at ``dims / 2`` log-spaced frequencies from 1 down to 1 / max_period, float32."""
    half = dims // 2
    exponents = torch.arange(half, dtype=torch.float32, device=value.device) / half
    angles = value.float()[:, None] * torch.exp(-log(max_period) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class LevelEmbedding(nn.Module):
    """A scalar per sample -> sinusoids -> two linear layers, ``[B] -> [B, out]``."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.width = width
        self.hidden = Linear(width, out)
        self.out = Linear(out, out)

    def forward(self, value: Float[Tensor, " b"]) -> Float[Tensor, "b out"]:
        return self.out(F.silu(self.hidden(sinusoids(value, self.width).to(self.hidden.weight.dtype))))


class Norm(nn.Module):
    """Group norm or per-pixel layer norm, optional scale and shift per sample, SiLU.

    Group norm has 32 groups, fewer where a group would have under 4 channels.
    """

    def __init__(self, kind: Literal["group", "layer"], channels: int) -> None:
        super().__init__()
        self.groups = gcd(channels, min(32, max(1, channels // 4))) if kind == "group" else 0
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Image, scale_shift: Float[Tensor, "b c2"] | None = None, *, act: bool = True) -> Image:
        """``act(norm(x) * (1 + scale) + shift)``; ``scale_shift`` is scale | shift, ``[B, 2 C]``."""
        if self.groups:
            return modulated_norm_act(x, self.weight, self.bias, scale_shift, self.groups, act=act)
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        y = F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias).permute(0, 3, 1, 2)
        if scale_shift is not None:
            scale, shift = scale_shift.to(y.dtype)[:, :, None, None].chunk(2, dim=1)
            y = torch.addcmul(shift, y, 1 + scale)
        return F.silu(y) if act else y


PLAIN_UP_TO = 512
"""Pixels up to which attention on a CPU is plain matrix products."""


def attend(
    q: Float[Tensor, "b heads n d"],
    k: Float[Tensor, "b heads n d"],
    v: Float[Tensor, "b heads n d"],
    plain_up_to: int = PLAIN_UP_TO,
) -> Float[Tensor, "b heads n d"]:
    """softmax(q k^T / sqrt(d)) v, by the kernel that is fast here.

    On a CPU torch 2.13's fused kernel loses to plain matrix products up to a few hundred pixels (fivefold in the
    backward pass in bfloat16); above, the n x n matrix costs too much memory. (In sampling see ``cpu_attention``.)
    """
    if q.device.type == "cpu" and q.shape[2] <= plain_up_to:
        return torch.softmax((q * q.shape[3] ** -0.5) @ k.transpose(2, 3), dim=3) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Residual self-attention between pixels. Channels of ``qkv`` are q | k | v, each split into heads after."""

    def __init__(self, channels: int, num_heads: int, norm: Literal["group", "layer"]) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.plain_up_to = PLAIN_UP_TO  # 0 where a CPU stands for a GPU (train/memory.py)
        self.norm = Norm(norm, channels)
        self.qkv = Linear(channels, 3 * channels)
        self.out = zero(Linear(channels, channels))

    def forward(self, x: Image) -> Image:
        b, c, height, width = x.shape
        pixels = self.norm(x, act=False).permute(0, 2, 3, 1).reshape(b, height * width, c)
        y = self.out.plus(self.mix(self.qkv(pixels)), x.permute(0, 2, 3, 1).reshape(b, height * width, c))
        return y.reshape(b, height, width, c).permute(0, 3, 1, 2)

    def mix(self, qkv: Float[Tensor, "b n c3"]) -> Float[Tensor, "b n c"]:
        """Values of all pixels, weighed."""
        if cpu_attention.can_run(qkv, self.num_heads):
            return cpu_attention.attend(qkv, self.num_heads)
        q, k, v = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return attend(q, k, v, self.plain_up_to).transpose(1, 2).flatten(2)


def halve(x: Features) -> Features:
    """Mean of each 2x2 square."""
    return F.avg_pool2d(x, 2)


def double(x: Features) -> Features:
    """Every pixel becomes a 2x2 square."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def zero(layer: Layer) -> Layer:
    """The same layer with all parameters 0: its block starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
