"""``cdm info --bits-per-dim``: the variational bound on held-out images (Ho et al. 2020, eq. 5)."""

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
from cdm.losses import make_cond, prior_bits_per_dim, vlb_term
from cdm.noise.process import add_noise
from cdm.rng import Purpose, Rng
from cdm.stage import Stage
from cdm.types import Batch

CHUNK = 64


def bits_per_dim(run: Path, data: str, count: int, device: str | None, precision: str) -> Iterator[str]:
    """One line per stage: the bound with its 95 % interval over images, or why it has none. An SR stage's bound is on
    the high-res image given the clean low-res one."""
    cascade = Cascade.load(run, device=device, precision=precision)
    config = cascade.config
    own = config.data
    array = load_images(open_source(data), config.sizes[-1], own.channels, own.bit_depth, window=own.window)
    images = TrainingImages(array.with_classes(config.class_names), config.sizes)
    for stage in cascade.stages:
        name, schedule = f"stage {stage.name}", stage.config.schedule.kind
        if stage.denoiser.table is None:
            yield f"{name}: no bound; it has the continuous schedule {schedule!r}, not a table"
            continue
        rows = range(min(count, len(images)))
        bound = torch.stack([stage_bound(stage, _one(images, stage.index, i), cascade.device) for i in rows])
        half = 1.96 * float(bound.std()) / len(bound) ** 0.5 if len(bound) > 1 else float("nan")
        yield f"{name}: {float(bound.mean()):.3f} +- {half:.3f} bits per dimension on {len(bound)} images"


def _one(images: TrainingImages, stage: int, i: int) -> Batch:
    index = torch.tensor([i])
    labels = None if images.labels is None else torch.from_numpy(images.labels)[index]
    return Batch(images.target(stage, index), labels, index)


@torch.no_grad()
def stage_bound(stage: Stage, one: Batch, device: torch.device) -> torch.Tensor:
    """All terms of the bound for one image, float64 scalar: every entry of the table is evaluated."""
    table = stage.denoiser.table
    assert table is not None and len(one.index) == 1
    rng = Rng(0, stage.index)
    clean = Stage(_clean(stage), stage.index, stage.net, num_classes=stage.num_classes, levels=stage.levels)
    cond, _ = make_cond(clean, one, rng)
    total = prior_bits_per_dim(stage.denoiser, one.x0).double().sum()
    for begin in range(0, len(table), CHUNK):
        levels = table[begin : begin + CHUNK].float()
        count = len(levels)
        positions = torch.arange(begin, begin + count)
        eps = rng.normal(Purpose.EVALUATE, positions + int(one.index) * len(table), tuple(one.x0.shape[1:]))
        x0 = one.x0.expand(count, -1, -1, -1)
        x_t = add_noise(x0, eps, levels)
        same = torch.zeros(count, dtype=torch.int64)
        prediction = stage.denoiser(x_t.to(device), levels.to(device), cond[same].to(device))
        terms = vlb_term(stage.denoiser, prediction, x0.to(device), x_t.to(device), levels.to(device), stage.levels)
        total = total + terms.double().sum().cpu()
    return total


def _clean(stage: Stage) -> StageConfig:
    """The stage's configuration without label dropout, its low-res images at level 0."""
    config = stage.config
    return replace(
        config,
        label_dropout=0.0,
        augmentation=replace(config.augmentation, level_min=0.0, level_max=0.0, blur_fraction=0.0),
    )
