"""``cdm info --bits-per-dim``: the variational bound on held-out images (Ho et al. 2020, eq. 5; in continuous time
Kingma et al. 2021, section 5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from cdm.cascade import Cascade
from cdm.config import StageConfig
from cdm.data.arrays import load_images
from cdm.data.batches import TrainingImages
from cdm.data.source import open_source
from cdm.losses import diffusion_rate, make_cond, prior_bits_per_dim, reconstruction_bits_per_dim, vlb_term
from cdm.noise.process import add_noise
from cdm.rng import Purpose, Rng
from cdm.stage import Stage
from cdm.types import Batch, Cond

CHUNK = 64
LEVELS = 256
"""Noise levels of a continuous schedule at which the bound of each image is taken."""


def bits_per_dim(run: Path, data: str, count: int, device: str | None, precision: str) -> Iterator[str]:
    """One line per stage: the bound with its 95 % interval over images. An SR stage's bound is on the high-res image
    given the clean low-res one."""
    notes = list[str]()
    cascade = Cascade.load(run, device=device, precision=precision, say=notes.append)
    yield from notes
    config = cascade.config
    own = config.data
    array = load_images(
        open_source(data, config.class_names), config.sizes[-1], own.channels, own.bit_depth, window=own.window
    )
    images = TrainingImages(array.with_classes(config.class_names), config.sizes)
    for stage in cascade.stages:
        name, augmentation = f"stage {stage.name}", stage.config.augmentation
        if augmentation.has_noise and not augmentation.trained_at(0.0):
            low, high = augmentation.level_min, augmentation.level_max
            known = f"{low:g} alone" if low == high else f"{low:g} to {high:g}"
            yield f"{name}: no bound: it is given the clean low-res image, and this stage knows noise of {known}"
            continue
        rows = images.spread(count).tolist()
        bound = torch.stack([stage_bound(stage, _one(images, stage.index, i), cascade.device) for i in rows])
        half = 1.96 * float(bound.std()) / len(bound) ** 0.5 if len(bound) > 1 else float("nan")
        yield f"{name}: {float(bound.mean()):.3f} +- {half:.3f} bits per dimension on {len(bound)} images"


def _one(images: TrainingImages, stage: int, i: int) -> Batch:
    index = torch.tensor([i])
    labels = None if images.labels is None else torch.from_numpy(images.labels)[index]
    return Batch(images.target(stage, index), labels, index)


@torch.no_grad()
def stage_bound(stage: Stage, one: Batch, device: torch.device) -> torch.Tensor:
    """The bound for one image, float64 scalar. A table: every entry is evaluated. A continuous schedule: ``LEVELS``
    levels in equal steps of log-SNR stand for the integral in continuous time."""
    assert len(one.index) == 1
    rng = Rng(0, stage.index)
    clean = Stage(_clean(stage), stage.index, stage.net, num_classes=stage.num_classes, levels=stage.levels)
    cond, _ = make_cond(clean, one, rng)
    total = prior_bits_per_dim(stage.denoiser, one.x0).double().sum()
    if stage.denoiser.table is not None:
        levels = stage.denoiser.table.float()
    else:
        low, high = stage.denoiser.logsnr_range
        levels = low + (high - low) * (torch.arange(LEVELS) + 0.5) / LEVELS  # the midpoint rule
        total = total + _reconstruction(stage, one, rng)
    for begin in range(0, len(levels), CHUNK):
        terms = _terms(stage, one, cond, rng, levels[begin : begin + CHUNK], begin, len(levels), device)
        total = total + terms.double().sum().cpu()
    return total


def _terms(
    stage: Stage, one: Batch, cond: Cond, rng: Rng, levels: torch.Tensor, begin: int, count: int, device: torch.device
) -> torch.Tensor:
    """Terms of the bound at ``levels``, entries ``begin`` and on of ``count``."""
    eps = _noise(one, rng, begin, len(levels), count).to(device)
    x0, levels = one.x0.expand(len(levels), -1, -1, -1).to(device), levels.to(device)
    x_t = add_noise(x0, eps, levels)
    prediction = stage.denoiser(x_t, levels, cond[torch.zeros(len(levels), dtype=torch.int64)].to(device))
    if stage.denoiser.table is not None:
        return vlb_term(stage.denoiser, prediction, x0, x_t, levels, stage.levels)
    low, high = stage.denoiser.logsnr_range
    return diffusion_rate(stage.denoiser, prediction, eps) * ((high - low) / count)


def _reconstruction(stage: Stage, one: Batch, rng: Rng) -> torch.Tensor:
    cleanest = stage.denoiser.logsnr_range[1]
    x_t = add_noise(one.x0, _noise(one, rng, LEVELS, 1, LEVELS + 1), torch.tensor([cleanest]))
    return reconstruction_bits_per_dim(one.x0, x_t, cleanest, stage.levels).sum()


def _noise(one: Batch, rng: Rng, begin: int, number: int, count: int) -> torch.Tensor:
    """Noise for ``number`` of the ``count`` terms of this image."""
    positions = torch.arange(begin, begin + number) + int(one.index) * count
    return rng.normal(Purpose.EVALUATE, positions, tuple(one.x0.shape[1:]))


def _clean(stage: Stage) -> StageConfig:
    """The stage's configuration without label dropout, its low-res images at level 0."""
    config = stage.config
    return replace(
        config,
        label_dropout=0.0,
        augmentation=replace(config.augmentation, level_min=0.0, level_max=0.0, blur_fraction=0.0),
    )
