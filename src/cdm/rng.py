"""Counter-based randomness: every number is a pure function of (seed, stage, purpose, index, step, element).

No state is saved and nothing is synchronised: a resumed run, another batch size or another device draws the same
numbers. ``index`` is the sample's number when sampling and the position in the training stream when training.

Integers come from SplitMix64's finaliser (Steele, Lea & Flood 2014) applied to key XOR hash(element), so two keys never
share a stream. Normals are the quantile function, piecewise linear on 3,968 log-spaced segments: one table look-up,
one multiplication and one addition, each exact to the last bit by IEEE 754, so floats are equal on every
device and for every batch size too. The interpolation error is below 1e-5; values reach +-6.2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache
from math import prod
from statistics import NormalDist

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor


class Purpose(IntEnum):
    """What a number is for. Values are part of the format: never renumber."""

    START_NOISE = 1  # the initial x_T of a sampler
    SAMPLER_NOISE = 2  # noise of stochastic samplers, step = sampler step
    AUG_NOISE = 3  # conditioning noise on the low-res image, in training
    TRAIN_NOISE = 4  # eps of x_t
    TRAIN_LEVEL = 5  # noise level of x_t
    AUG_LEVEL = 6
    AUG_CLEAN = 7
    BLUR = 8  # element 0: whether, element 1: sigma
    LABEL_DROPOUT = 9
    FLIP = 10
    CROP = 11
    ORDER = 12  # order of the training images
    DROPOUT = 13  # step = layer
    INIT = 14  # weights
    VALIDATION = 15
    LETTERS = 16
    EVALUATE = 17
    AUGMENT = 18  # of a classifier in training: shift and colour
    HAND_OVER_NOISE = 19  # conditioning noise on the low-res image, in sampling


def _signed(x: int) -> int:
    return (x & 0xFFFFFFFFFFFFFFFF) - ((x & 0x8000000000000000) << 1)


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MUL1 = _signed(0xBF58476D1CE4E5B9)
_MUL2 = _signed(0x94D049BB133111EB)


def _mix_(x: Int64[Tensor, "..."]) -> Int64[Tensor, "..."]:
    """SplitMix64's finaliser in place; int64 arithmetic wraps, shifts are made logical by a mask."""
    x ^= (x >> 30) & ((1 << 34) - 1)
    x *= _MUL1
    x ^= (x >> 27) & ((1 << 37) - 1)
    x *= _MUL2
    x ^= (x >> 31) & ((1 << 33) - 1)
    return x


def _mix_int(x: int) -> int:
    """The same finaliser for one Python integer, unsigned."""
    x &= 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return x ^ (x >> 31)


@cache  # never forgotten: a recorded CUDA graph reads it where it stands
def _element_hash(n: int, device: torch.device) -> Int64[Tensor, " n"]:
    return _mix_(torch.arange(1, n + 1, dtype=torch.int64, device=device) * _GOLDEN)


@cache
def _normal_table(device: torch.device) -> tuple[Float[Tensor, " 3969"], Float[Tensor, " 3969"]]:
    """Quantile at the lower end and rise over each segment, for p = k / 2^32 with k a float32 in [1, 2^31]."""
    quantile = NormalDist().inv_cdf
    edges = (torch.arange(31 * 128 + 1, dtype=torch.int32) + (127 << 7)) << 16  # float32 bits, 128 per octave
    p = edges.view(torch.float32).double() / 2**32
    z = torch.tensor([quantile(x) for x in p.tolist()], dtype=torch.float64)
    rise = torch.cat([z[1:] - z[:-1], torch.zeros(1, dtype=torch.float64)])
    return z.float().to(device), rise.float().to(device)


@dataclass(frozen=True)
class Rng:
    """The random numbers of one stage of one run. ``attempt`` counts roll-backs, so none meets the same noise again."""

    seed: int
    stage: int = 0
    attempt: int = 0

    def at_stage(self, stage: int) -> Rng:
        return replace(self, stage=stage)

    def keys(self, purpose: Purpose, index: Int64[Tensor, " b"], step: int = 0) -> Int64[Tensor, " b"]:
        """One well-mixed 64-bit key per sample."""
        head = _mix_int(self.seed + 0x632BE59BD9B4E019)
        for word in (self.stage, self.attempt, int(purpose), step):
            head = _mix_int(head + _mix_int(word * 0x9E3779B97F4A7C15 + 0x2545F4914F6CDD1D))
        keys = _mix_(index.to(torch.int64) * _GOLDEN + _signed(head))
        return _mix_(keys + _signed(head))

    def bits(self, purpose: Purpose, index: Int64[Tensor, " b"], count: int, step: int = 0) -> Int64[Tensor, "b count"]:
        """``count`` uniform 64-bit integers (as int64) per sample; element j does not depend on ``count``."""
        keys = self.keys(purpose, index, step)
        return _mix_(keys[:, None] ^ _element_hash(count, keys.device)[None, :])

    def int32(
        self, purpose: Purpose, index: Int64[Tensor, " b"], shape: tuple[int, ...] = (), step: int = 0
    ) -> Int32[Tensor, "b ..."]:
        """Uniform 32-bit integers, shape ``[B, *shape]``; two per mixed word, the low half first."""
        n = prod(shape)
        words = self.bits(purpose, index, (n + 1) // 2, step)
        halves = words.flatten().view(torch.int32).view(len(index), 2 * words.shape[1])
        return halves[:, :n].reshape(len(index), *shape)

    def uniform(
        self, purpose: Purpose, index: Int64[Tensor, " b"], shape: tuple[int, ...] = (), step: int = 0
    ) -> Float[Tensor, "b ..."]:
        """Float64 in (0, 1), shape ``[B, *shape]``, multiples of 2^-32 plus 2^-33."""
        return (self.int32(purpose, index, shape, step).double() + (2**31 + 0.5)) / 2**32

    def normal(
        self, purpose: Purpose, index: Int64[Tensor, " b"], shape: tuple[int, ...], step: int = 0
    ) -> Float[Tensor, "b ..."]:
        """Standard normal float32, shape ``[B, *shape]``."""
        bits = self.int32(purpose, index, shape, step)
        low, rise = _normal_table(bits.device)
        code = ((bits & 0x7FFFFFFF) | 1).float().view(torch.int32).flatten()  # p * 2^32 in [1, 2^31], one rounding
        segment = (code >> 16) - (127 << 7)
        part = (code & 0xFFFF) * 2.0**-16  # place within the segment, exact
        z = low.index_select(0, segment).add_(part.mul_(rise.index_select(0, segment))).view(bits.shape)
        return torch.where(bits < 0, -z, z)

    def below(self, purpose: Purpose, index: Int64[Tensor, " b"], high: int, step: int = 0) -> Int64[Tensor, " b"]:
        """Uniform integers in [0, high), one per sample (high < 2^31; bias below 2^-32 * high)."""
        return ((self.int32(purpose, index, (1,), step)[:, 0].long() + 2**31) * high) >> 32

    def permutation(self, purpose: Purpose, size: int, step: int = 0) -> Int64[Tensor, " size"]:
        """A permutation of range(size); another one for every ``step`` (epoch)."""
        keys = self.keys(purpose, torch.arange(size), step)
        return torch.argsort(keys, stable=True)

    def torch_seed(self, purpose: Purpose) -> int:
        """A seed for a torch generator (weight initialisation)."""
        return int(self.keys(purpose, torch.zeros(1, dtype=torch.int64))[0]) & 0x7FFFFFFFFFFFFFFF
