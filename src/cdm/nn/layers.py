"""Layers of the U-Net: norms, resampling, attention, embeddings."""

from __future__ import annotations

from math import gcd, log

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cdm.types import Image


def sinusoids(value: Float[Tensor, " b"], dims: int, max_period: float = 10000.0) -> Float[Tensor, "b dims"]:
    """[cos, sin] of ``value`` at ``dims / 2`` log-spaced frequencies from 1 down to 1 / max_period, float32."""
    half = dims // 2
    exponents = torch.arange(half, dtype=torch.float32, device=value.device) / half
    angles = value.float()[:, None] * torch.exp(-log(max_period) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class LevelEmbedding(nn.Sequential):
    """A scalar per sample -> sinusoids -> two linear layers, ``[B] -> [B, out]``."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(nn.Linear(width, out), nn.SiLU(), nn.Linear(out, out))
        self.width = width

    def forward(self, value: Float[Tensor, " b"]) -> Float[Tensor, "b out"]:
        return super().forward(sinusoids(value, self.width).to(self[0].weight.dtype))


class GroupNorm(nn.Module):
    """32 groups, fewer where a group would have under 4 channels; optional scale and shift per sample."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.groups = gcd(channels, min(32, max(1, channels // 4)))
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Image) -> Image:
        return F.group_norm(x, self.groups, self.weight.to(x.dtype), self.bias.to(x.dtype))


class LayerNorm(nn.Module):
    """Layer norm over the channels of each pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Image) -> Image:
        pixels = x.permute(0, 2, 3, 1)
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(pixels, weight.shape, weight, bias).permute(0, 3, 1, 2)


def make_norm(kind: str, channels: int) -> nn.Module:
    return GroupNorm(channels) if kind == "group" else LayerNorm(channels)


def attend(
    q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads n d"], v: Float[Tensor, "b heads n d"]
) -> Float[Tensor, "b heads n d"]:
    """Softmax attention."""
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Residual self-attention between pixels. Channels of ``qkv`` are q | k | v, each split into heads after."""

    def __init__(self, channels: int, num_heads: int, norm: str) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = make_norm(norm, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zero(nn.Linear(channels, channels))

    def forward(self, x: Image) -> Image:
        b, c, height, width = x.shape
        pixels = self.norm(x).permute(0, 2, 3, 1).reshape(b, height * width, c)
        qkv = self.qkv(pixels).reshape(b, height * width, 3, self.num_heads, c // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = self.out(attend(q, k, v).transpose(1, 2).reshape(b, height * width, c))
        return x + mixed.reshape(b, height, width, c).permute(0, 3, 1, 2)


def halve(x: Image) -> Image:
    """Mean of each 2x2 square."""
    return F.avg_pool2d(x, 2)


def double(x: Image) -> Image:
    """Every pixel becomes a 2x2 square."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def zero(layer: nn.Module) -> nn.Module:
    """The same layer with all parameters 0: its block starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
