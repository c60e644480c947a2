"""One U-Net for base and SR stages: the ADM architecture (Dhariwal & Nichol 2021, section 3 and appendix A)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cdm.config import ConfigError, NetConfig
from cdm.errors import UserError
from cdm.nn.layers import Attention, Features, LevelEmbedding, Norm, double, halve, zero
from cdm.nn.packed import Conv2d, Linear
from cdm.types import Dropout, Image, Labels

Resample = Literal["up", "down"]


class ResBlock(nn.Module):
    """norm, SiLU, resample, conv, norm scaled and shifted by the embedding, SiLU, dropout, conv; plus the input."""

    def __init__(self, config: NetConfig, channels: int, out: int, layer: int, resample: Resample | None) -> None:
        super().__init__()
        self.layer, self.dropout = layer, config.dropout
        self.resample = {"up": double, "down": halve, None: nn.Identity()}[resample]
        self.norm_in = Norm(config.norm, channels)
        self.conv_in = Conv2d(channels, out, 3, padding=1)
        self.modulation = Linear(4 * config.width, 2 * out)
        self.norm_out = Norm(config.norm, out)
        self.conv_out = zero(Conv2d(out, out, 3, padding=1))
        self.skip = nn.Identity() if channels == out else Conv2d(channels, out, 1)

    def forward(self, x: Features, embedding: Float[Tensor, "b e"], dropout: Dropout | None) -> Features:
        """``embedding`` has passed its SiLU already, once for all blocks."""
        h = self.conv_in(self.resample(self.norm_in(x)))
        h = self.norm_out(h, self.modulation(embedding))
        if dropout is not None and self.dropout > 0:
            h = dropout(h, self.layer, self.dropout)
        return self.conv_out.plus(h, self.skip(self.resample(x)))


class ConvResample(nn.Module):
    """Strided resampling: a 3x3 convolution of stride 2, or one after doubling."""

    def __init__(self, channels: int, resample: Resample) -> None:
        super().__init__()
        self.up = resample == "up"
        self.conv = Conv2d(channels, channels, 3, padding=1, stride=1 if self.up else 2)

    def forward(self, x: Features, embedding: Float[Tensor, "b e"], dropout: Dropout | None) -> Features:
        return self.conv(double(x) if self.up else x)


class Block(nn.Module):
    """A residual block and, at some resolutions, attention after it."""

    def __init__(self, config: NetConfig, channels: int, out: int, layer: int, attention: bool) -> None:
        super().__init__()
        self.res = ResBlock(config, channels, out, layer, None)
        self.attention = Attention(out, _num_heads(config, out), config.norm) if attention else None

    def forward(self, x: Features, embedding: Float[Tensor, "b e"], dropout: Dropout | None) -> Features:
        x = self.res(x, embedding, dropout)
        return x if self.attention is None else self.attention(x)


def _num_heads(config: NetConfig, channels: int) -> int:
    heads = config.num_heads or max(1, channels // config.head_channels)
    if channels % heads:
        raise ConfigError(
            f"attention over {channels} channels does not divide into {heads} heads: "
            f"use a width that is a multiple of head_channels ({config.head_channels}), or another num_heads."
        )
    return heads


class DirectPath(nn.Module):
    """A few linear filters of the whole input, each times a gain from the embedding, summed: a net with it need not
    carry the noise of every pixel itself, so it may be narrow and take pixels in patches.

    Of the ``FILTERS`` 5x5 filters per output channel the first starts as x_t itself at gain 0, the others as nothing at
    gain 1, so the output starts at exactly 0. The first serves where there is much noise, what the others learn (x_t
    less its surroundings) where there is little.
    """

    FILTERS = 4

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        channels, count = config.out_channels, self.FILTERS * config.out_channels
        self.filters = nn.Conv2d(config.in_channels, count, 5, padding=2, padding_mode="replicate", bias=False)
        nn.init.zeros_(self.filters.weight)
        self.gains = nn.Linear(4 * config.width, count)
        nn.init.normal_(self.gains.weight, std=0.02)
        nn.init.ones_(self.gains.bias)
        with torch.no_grad():
            self.gains.weight[:channels] = 0
            self.gains.bias[:channels] = 0
            for channel in range(channels):
                self.filters.weight[channel, channel, 2, 2] = 1

    def forward(self, x: Image, embedding: Float[Tensor, "b e"]) -> Float[Tensor, "b out h w"]:
        weighed = self.filters(x) * self.gains(embedding)[:, :, None, None]
        return weighed.unflatten(1, (self.FILTERS, -1)).sum(1)


class UNet(nn.Module):
    """The raw network of one stage. It draws no randomness and knows no noise schedule.

    Channels of the input are x_t and, in an SR stage, the low-res image. The last convolution, those that end each
    block and the attention outputs start at 0, so the output starts at exactly 0.

    Attributes:
        checkpointing: recompute each block in the backward pass instead of keeping its activations.
    """

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        if config.width % 2:
            raise ConfigError(f"the width of a net must be even; got {config.width}: use {config.width + 1}.")
        self.config = config
        self.checkpointing = False
        self._layers = 0
        self.embed_noise = LevelEmbedding(config.width, 4 * config.width)
        self.embed_aug = LevelEmbedding(config.width, 4 * config.width) if config.has_aug_level else None
        self.embed_label = nn.Embedding(config.num_labels, 4 * config.width) if config.num_labels else None
        self.first = Conv2d(config.in_channels * config.patch**2, config.width, 3, padding=1)
        self.encoder, self.middle, self.decoder = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self._build()
        channels = config.width * config.multipliers[0]
        self.norm = Norm(config.norm, channels)
        self.last = zero(Conv2d(channels, config.out_channels * config.patch**2, 3, padding=1))
        self.direct = DirectPath(config) if config.direct else None

    def _build(self) -> None:
        config = self.config
        widths = [config.width * multiplier for multiplier in config.multipliers]
        sizes = [config.image_size // config.patch >> level for level in range(len(widths))]
        channels, skips = config.width, [config.width]
        for level, (out, size) in enumerate(zip(widths, sizes, strict=True)):
            for _ in range(config.num_blocks):
                self.encoder.append(Block(config, channels, out, self._next(), size in config.attention))
                channels = out
                skips.append(channels)
            if level < len(widths) - 1:
                self.encoder.append(self._resample(channels, "down"))
                skips.append(channels)
        self.middle.append(Block(config, channels, channels, self._next(), attention=config.middle_attention))
        self.middle.append(Block(config, channels, channels, self._next(), attention=False))
        for level, out in reversed(list(enumerate(widths))):
            for _ in range(config.num_blocks + 1):
                attention = sizes[level] in config.attention
                self.decoder.append(Block(config, channels + skips.pop(), out, self._next(), attention))
                channels = out
            if level:
                self.decoder.append(self._resample(channels, "up"))

    def _next(self) -> int:
        """Number of the next residual block, the key of its dropout."""
        self._layers += 1
        return self._layers - 1

    def _resample(self, channels: int, kind: Resample) -> nn.Module:
        if self.config.resample == "strided":
            return ConvResample(channels, kind)
        return ResBlock(self.config, channels, channels, self._next(), kind)

    def forward(
        self,
        x: Image,
        noise_input: Float[Tensor, " b"],
        labels: Labels | None,
        aug_input: Float[Tensor, " b"] | None,
        dropout: Dropout | None = None,
    ) -> Float[Tensor, "b out h w"]:
        """Raw output ``[B, out_channels, H, W]``; H and W may be smaller than ``image_size`` (crops).

        Args:
            x: ``[B, in_channels, H, W]``.
            noise_input: what the net is told of the noise level of x_t, any float.
            labels: class per sample; None exactly where the net has no label table.
            aug_input: what the net is told of the noise level of the low-res image; None exactly where the net has no
                augmentation level.
            dropout: given in training; None is no dropout.

        Raises:
            UserError: a size that does not halve often enough, or conditioning that the net does not have or lacks.
        """
        self._check(x, labels, aug_input)
        embedding = self.embed_noise(noise_input)
        if self.embed_aug is not None:
            embedding = embedding + self.embed_aug(aug_input)
        if self.embed_label is not None:
            embedding = embedding + self.embed_label(labels)
        embedding = F.silu(embedding)
        whole = x
        if self.config.patch > 1:
            x = F.pixel_unshuffle(x, self.config.patch)
        x = self.first(x.to(memory_format=torch.channels_last))
        skips = [x]
        for block in self.encoder:
            x = self._run(block, x, embedding, dropout)
            skips.append(x)
        for block in self.middle:
            x = self._run(block, x, embedding, dropout)
        for block in self.decoder:
            if isinstance(block, Block):
                x = torch.cat([x, skips.pop()], dim=1)
            x = self._run(block, x, embedding, dropout)
        x = self.last(self.norm(x))
        x = F.pixel_shuffle(x, self.config.patch) if self.config.patch > 1 else x
        return x if self.direct is None else x + self.direct(whole, embedding)

    def _run(self, block: nn.Module, x: Features, embedding: Float[Tensor, "b e"], dropout: Dropout | None) -> Features:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, embedding, dropout, use_reentrant=False, preserve_rng_state=False)
        return block(x, embedding, dropout)

    def _check(self, x: Image, labels: Labels | None, aug_input: Float[Tensor, " b"] | None) -> None:
        factor = self.config.patch * 2 ** (len(self.config.multipliers) - 1)
        if x.shape[1] != self.config.in_channels or x.shape[2] % factor or x.shape[3] % factor:
            raise UserError(
                f"the net expects {self.config.in_channels} channels and sides divisible by {factor}; "
                f"got {tuple(x.shape)}: resize or crop the images."
            )
        for name, given, known in (
            ("labels", labels, self.embed_label),
            ("an augmentation level", aug_input, self.embed_aug),
        ):
            if (given is None) != (known is None):
                verb, fix = ("needs", "give it") if known is not None else ("does not take", "give None")
                raise UserError(f"this net {verb} {name}; got {type(given).__name__}: {fix}.")
