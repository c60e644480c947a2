"""Features without a download: a small ResNet trained on the user's own real images.

With two classes and more the net learns the classes; without, to tell every image from all others. The features are
what its last layer sees. Everything is decided by the images, their labels and a seed, so a recipe version, the data's
fingerprint and the seed name a net; its hash is printed with every figure, for figures of two nets cannot be compared.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import cbrt
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from cdm.artifacts import load_tensors, make_folder, save_tensors, weights_hash
from cdm.errors import CorruptError, UserError
from cdm.evaluate.area import Classes, Pixels, area_resize, take_resized
from cdm.evaluate.extractors.base import Features
from cdm.nn.classifier import (
    BATCH_SIZE,
    FEATURES,
    Classifier,
    Progress,
    classification,
    discrimination,
    fit,
    initialised,
    to_float,
)
from cdm.rng import Purpose, Rng

RECIPE = "domain 1"
"""Part of keys and hashes: change it whenever anything below changes what the net becomes."""

MIN_IMAGES = 32  # fewer say nothing about a domain
MAX_IMAGES = 20_000  # more are not looked at
MIN_SIDE, PATCHED_SIDE, MAX_SIDE = 16, 32, 64
EFFORT = 3000  # see ``images_seen``
LR = 2e-3  # 4e-3 does not learn 64x64 letters in 150 steps; this does
PROJECTION = 64  # outputs of the last layer for instance discrimination
CHUNK = 256  # images that go through the net at a time


def images_seen(images: int) -> int:
    """How many images the training takes, repeats counted, for a data set of so many.

    It grows as the third root of their number: a set of 100 is repeated about 140 times, of 1,000 30 times, of 10,000
    6 times, and larger sets than ``MAX_IMAGES`` cost no more than that many.
    """
    return round(EFFORT * cbrt(min(images, MAX_IMAGES)))


def net_side(height: int, width: int) -> tuple[int, int]:
    """Side that images are brought to, and how many pixels a side the net takes at a time, for data of this size.

    Their own larger side between 16 and 64; above 32 pixels the net takes 2x2 of them at a time.
    """
    side = min(max(height, width, MIN_SIDE), MAX_SIDE)
    return (side - side % 2, 2) if side > PATCHED_SIDE else (side, 1)


def domain_key(fingerprint: str, seed: int) -> str:
    """Names the cached net of a data set.

    fingerprint: of everything that decides the images and labels that ``train_domain`` is given: source, size and
        channels, whether it has classes.
    """
    return hashlib.sha256(f"{RECIPE} {fingerprint} {seed}".encode()).hexdigest()[:12]


@dataclass(frozen=True)
class DomainExtractor:
    """A trained net as an ``Extractor``: 128 features in float32.

    net: in evaluation mode, on the device it runs on.
    meta: how it was made (JSON types): ``recipe``, ``side``, ``patch``, ``channels``, ``outputs``, ``objective``
        (``classes`` or ``instances``), ``images``, ``images_seen``, ``seed``.
    """

    net: Classifier
    meta: dict[str, Any]
    hash: str
    name: str = "domain"
    dim: int = FEATURES
    spatial_dim: int = 0
    num_probabilities: int = 0
    verified: bool = True

    @property
    def resize(self) -> str:
        side = self.meta["side"]
        return f"area to {side}x{side}, 8 bit; nothing where images have that size"

    @property
    def recipe(self) -> str:
        """How the net was made, in words."""
        meta = self.meta
        task = f"{meta['outputs']} classes" if meta["objective"] == "classes" else "instance discrimination"
        return (
            f"small ResNet on {meta['images']:,} real images at {meta['side']}x{meta['side']}, {task}, "
            f"{meta['images_seen']:,} images seen, seed {meta['seed']} ({meta['recipe']})"
        )

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "b c h w"]) -> Features:
        if images.shape[1] != self.meta["channels"]:
            raise UserError(
                f"got images with {images.shape[1]} channels; expected {self.meta['channels']}, as the real images "
                "that the domain features were trained on: give images of one kind."
            )
        device = next(self.net.parameters()).device
        side = self.meta["side"]
        parts = []
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            for part in images.split(CHUNK):
                parts.append(self.net.features(to_float(area_resize(part, side, side).to(device))).cpu())
        return Features(torch.cat(parts) if parts else torch.empty(0, self.dim))


def train_domain(
    images: Pixels,
    labels: Classes | None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> DomainExtractor:
    """A net trained on real images; about a minute for 10,000 images of 64x64 on one core.

    Args:
        images: of any size and number of channels; 16-bit data must have been brought to 8 bit by its window before,
            as saved pictures are. May be memory-mapped: what is used is copied, at most ``MAX_IMAGES`` at 64x64.
        labels: None, or less than two classes: instance discrimination.
        progress: called with the share that is done.

    Raises:
        UserError: fewer than ``MIN_IMAGES`` images.
    """
    if len(images) < MIN_IMAGES:
        raise UserError(
            f"domain features need at least {MIN_IMAGES} real images to learn from; got {len(images)}: give more."
        )
    rows = Rng(seed).permutation(Purpose.EVALUATE, len(images))[:MAX_IMAGES].sort().values
    side, patch = net_side(*images.shape[2:])
    small = take_resized(images, rows, side, side)
    targets = None if labels is None else torch.as_tensor(labels)[rows]
    if targets is not None and len(targets.unique()) < 2:
        targets = None
    outputs = PROJECTION if targets is None else int(targets.max()) + 1
    device = torch.device(device)
    net = initialised(lambda: Classifier(images.shape[1], outputs, patch), seed, device)
    if targets is None:
        loss = discrimination(net, small, seed=seed, device=device)
    else:
        loss = classification(net, small, targets, seed=seed, device=device)
    batch_size = min(BATCH_SIZE, len(small))
    steps = max(1, images_seen(len(small)) // batch_size)
    fit(net, loss, len(small), steps=steps, batch_size=batch_size, seed=seed, lr=LR, progress=progress)
    meta = {
        "recipe": RECIPE,
        "side": side,
        "patch": patch,
        "channels": images.shape[1],
        "outputs": outputs,
        "objective": "instances" if targets is None else "classes",
        "images": len(small),
        "images_seen": steps * batch_size,
        "seed": seed,
    }
    return _extractor(net, meta)


def _extractor(net: Classifier, meta: dict[str, Any]) -> DomainExtractor:
    text = f"{meta['recipe']} {meta['side']} {weights_hash(net.state_dict())}"
    net.eval().requires_grad_(False)
    return DomainExtractor(net, meta, hashlib.sha256(text.encode()).hexdigest()[:12])


def save_domain(path: str | Path, extractor: DomainExtractor) -> None:
    """Write the net and how it was made."""
    save_tensors(path, extractor.net.state_dict(), extractor.meta)


def load_domain(path: str | Path, device: torch.device | str = "cpu") -> DomainExtractor:
    """What ``save_domain`` wrote.

    Raises:
        CorruptError: damaged, or not such a file.
        UserError: no such file.
    """
    tensors, meta = load_tensors(path)
    try:
        net = Classifier(meta["channels"], meta["outputs"], meta["patch"])
        net.load_state_dict(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        raise CorruptError(
            f"{path} does not hold domain features of this cdm: delete it, and it is trained anew."
        ) from error
    return _extractor(net.to(device=device, memory_format=torch.channels_last), meta)  # pyright: ignore[reportCallIssue]


def cached_domain(
    folder: str | Path,
    images: Pixels,
    labels: Classes | None,
    *,
    fingerprint: str,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> DomainExtractor:
    """The net for this data from ``folder``, trained and put there if it is not yet there.

    fingerprint: see ``domain_key``.
    """
    path = Path(folder) / f"domain-{domain_key(fingerprint, seed)}.safetensors"
    if path.exists():
        return load_domain(path, device)
    extractor = train_domain(images, labels, seed=seed, device=device, progress=progress)
    make_folder(folder)
    save_domain(path, extractor)
    return extractor
