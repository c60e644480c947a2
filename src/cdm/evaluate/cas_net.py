"""The networks of the classification accuracy score, and one training of them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from math import cbrt
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from cdm.errors import UserError
from cdm.evaluate.extractors.domain import net_side
from cdm.nn.classifier import Classifier, Progress, classification, fit, initialised, to_float
from cdm.types import Image

RECIPE = "cas 1"
"""Part of the names of kept results: change it whenever anything here changes what a net becomes."""

SMALL_SIDE, LARGE_SIDE = 64, 224  # the most that the small ResNet, and ResNet-50, read
SMALL_EFFORT, LARGE_EFFORT = 3000, 60_000  # images seen at first: this times the third root of their number
MOST_RANK = 9  # ranks are kept as one digit


@dataclass(frozen=True)
class CasNet:
    """Which network, at which side of its images, and why."""

    name: Literal["small ResNet", "ResNet-50"]
    side: int
    patch: int
    channels: int
    classes: int
    device: torch.device
    why: str

    @property
    def recipe(self) -> str:
        return f"{RECIPE} {self.name} {self.side} {self.channels} {self.classes}"

    @property
    def lr(self) -> float:
        return 2e-3 if self.name == "small ResNet" else 1e-3

    def batch_size(self, images: int) -> int:
        return min(128 if self.name == "small ResNet" else 256, images)

    def first_steps(self, images: int) -> int:
        """Where the search for the schedule starts."""
        effort = SMALL_EFFORT if self.name == "small ResNet" else LARGE_EFFORT
        return max(1, round(effort * cbrt(images)) // self.batch_size(images))

    def build(self) -> nn.Module:
        if self.name == "small ResNet":
            return Classifier(self.channels, self.classes, self.patch)
        return _ResNet50(self.channels, self.classes)


def choose_net(
    asked: Literal["auto", "small", "resnet50"],
    size: tuple[int, int],
    channels: int,
    classes: int,
    device: torch.device,
) -> CasNet:
    """``auto``: the small ResNet for images up to 64 pixels; for larger ones ResNet-50 on a GPU with transformers, else
    the small one on images brought to 64 pixels.

    Args:
        size: height and width of the images.
    """
    largest, has_resnet50 = max(size), find_spec("transformers") is not None
    if asked == "resnet50" or (asked == "auto" and largest > SMALL_SIDE and device.type == "cuda" and has_resnet50):
        why = "asked for" if asked == "resnet50" else f"images of {largest} pixels, on a GPU"
        return CasNet("ResNet-50", min(largest, LARGE_SIDE), 1, channels, classes, device, why)
    side, patch = net_side(*size)
    why = f"images of {largest} pixels"
    if asked == "small":
        why = "asked for"
    elif largest > SMALL_SIDE:
        lack = "takes too long on a CPU" if device.type == "cpu" else "needs transformers (the extra [eval])"
        why += f", but ResNet-50 {lack}: they are read at {side} pixels"
    return CasNet("small ResNet", side, patch, channels, classes, device, why)


class _ResNet50(nn.Module):
    """ResNet-50 (He et al. 2016) as transformers builds it, with random weights."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        try:
            transformers: Any = import_module("transformers")
        except ImportError as error:
            raise UserError(
                "ResNet-50 needs the package transformers, which is not there: pip install 'cascaded-diffusion[eval]'."
            ) from error
        config = transformers.ResNetConfig(num_channels=channels, num_labels=classes)
        self.net = transformers.ResNetForImageClassification(config)

    def forward(self, x: Image) -> Float[Tensor, "b classes"]:
        return self.net(x).logits


def train_ranks(
    net: CasNet,
    images: UInt8[Tensor, "n c s s"],
    labels: Int64[Tensor, " n"],
    val_images: UInt8[Tensor, "m c s s"],
    val_labels: Int64[Tensor, " m"],
    *,
    seed: int,
    steps: int,
    progress: Progress | None = None,
) -> Int64[np.ndarray, " m"]:
    """Train on ``images`` and tell, per validation image, how many classes come before the right one (at most 9)."""
    built = initialised(net.build, seed, net.device)
    loss = classification(built, images, labels, seed=seed, device=net.device)
    batch_size = net.batch_size(len(images))
    fit(built, loss, len(images), steps=steps, batch_size=batch_size, seed=seed, lr=net.lr, progress=progress)
    ranks = []
    with torch.no_grad():
        for part, right in zip(val_images.split(256), val_labels.split(256), strict=True):
            logits = built(to_float(part.to(net.device))).float().cpu()
            own = logits.gather(1, right[:, None])
            ranks.append((~(logits < own)).sum(dim=1).sub(1).clamp(max=MOST_RANK))  # ties and NaN come before
    return torch.cat(ranks).numpy()
