"""Tensor aliases and the small dataclasses that travel between floors.

Dimensions: ``b`` batch, ``c`` channels, ``h w`` height and width. All images inside the library are float32 in
[-1, 1]; ``images`` (uint8 or uint16) exist only in ``data``, in saved files and in metrics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

Image = Float[Tensor, "b c h w"]
"""A batch of images or noise, float."""
LogSNR = Float[Tensor, " b"]
"""Noise level per sample: ln(alpha^2 / sigma^2), variance preserving."""
Labels = Int64[Tensor, " b"]
"""Class index per sample; ``num_classes`` itself is the null label (unconditional)."""

Dropout = Callable[[Tensor, int, float], Tensor]
"""``dropout(activations, layer, probability)``: zeroes and rescales, a pure function of its key and ``layer``."""


@dataclass(frozen=True)
class Cond:
    """All that a denoiser is conditioned on.

    labels: int64 ``[B]``, or None for a model without classes.
    low_res: float32 ``[B, C, H, W]`` at the *stage's* resolution: the image of the stage before, augmented and
        upsampled; None for a base stage.
    aug_logsnr: float32 ``[B]``, noise level of ``low_res``; None for a base stage or one without Gaussian augmentation.
    """

    labels: Labels | None = None
    low_res: Image | None = None
    aug_logsnr: LogSNR | None = None

    def __getitem__(self, rows: slice | Tensor) -> Cond:
        """The same conditioning for some rows of the batch."""
        pick = lambda x: None if x is None else x[rows]  # noqa: E731
        return Cond(pick(self.labels), pick(self.low_res), pick(self.aug_logsnr))

    def to(self, device: torch.device | str) -> Cond:
        move = lambda x: None if x is None else x.to(device)  # noqa: E731
        return Cond(move(self.labels), move(self.low_res), move(self.aug_logsnr))

    def with_labels(self, labels: Labels | None) -> Cond:
        return replace(self, labels=labels)


@dataclass(frozen=True)
class Prediction:
    """What a denoiser says about ``x_t``: both estimates, each computed directly from the raw output.

    x0, eps: float32 ``[B, C, H, W]``, never clipped here.
    var_fraction: float32 or None; where the reverse variance lies between the small (0) and the large (1) one, in the
        log domain (Nichol & Dhariwal 2021, eq. 15). A network may leave [0, 1].
    """

    x0: Image
    eps: Image
    var_fraction: Image | None = None


@dataclass(frozen=True)
class Batch:
    """One training batch of one stage.

    x0: float32 ``[B, C, H, W]`` in [-1, 1], the stage's clean target.
    labels: int64 ``[B]`` or None.
    index: int64 ``[B]``, global position in the training stream (the key of all randomness).
    """

    x0: Image
    labels: Labels | None
    index: Int64[Tensor, " b"]
