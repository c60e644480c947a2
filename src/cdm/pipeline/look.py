"""What is looked at while a stage trains: validation loss per band of noise level, and sample pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Int64
from PIL import Image as PILImage
from torch import Tensor

from cdm.artifacts import write_atomic
from cdm.cascade import Cascade, Samples, StageImage, run_stage
from cdm.config import CascadeConfig
from cdm.data.batches import TrainingImages
from cdm.data.pixels import Window, to_images
from cdm.evaluate.pictures import class_grid, grid, panel, png_bytes
from cdm.losses import noise_batch
from cdm.noise.process import target
from cdm.noise.weighting import sample_logsnr
from cdm.rng import Rng
from cdm.stage import Stage
from cdm.types import Batch, Labels

BANDS = 4
VALIDATION_BATCH, PANEL = 64, 8
"""Images at once in validation, and in the panel of an SR stage."""
GRID_MOST, GRID_STEPS = 104, 64
"""Images, and steps per stage, of the sheet at the end of a run: it must not cost as much as the run."""
PREVIEW_SEED = 1 << 40
"""Seeds of previews: far from those that people sample with."""


class Validation:
    """Mean squared error on the stage's own target over held-out images, in ``BANDS`` equal shares of levels."""

    def __init__(self, images: TrainingImages, seed: int, limit: int = 128) -> None:
        self.images, self.seed = images, seed
        self.index = images.spread(limit)

    @torch.no_grad()
    def __call__(self, stage: Stage) -> dict[str, float]:
        """Every image is seen once in each band, always with the same noise. Keys tell the band's log-SNR range."""
        rng = Rng(self.seed + (1 << 32), stage.index)  # not the stream that training draws from
        device = next(stage.net.parameters()).device
        labels = None if self.images.labels is None else torch.from_numpy(self.images.labels)
        out = {}
        for band in range(BANDS):
            total = 0.0
            for rows in self.index.split(VALIDATION_BATCH):
                x0 = self.images.target(stage.index, rows).to(device)
                batch = Batch(x0, None if labels is None else labels[rows].to(device), rows)
                u = (band + (rows.double() + 0.5) * 0.6180339887498949 % 1) / BANDS
                logsnr = sample_logsnr(stage.config.density, stage.denoiser.schedule, u).to(device)
                noised = noise_batch(stage, batch, rng, logsnr)
                raw, _ = stage.denoiser.raw(noised.x_t, logsnr, noised.cond)
                wanted = target(stage.config.prediction, x0, noised.eps, logsnr, stage.config.sigma_data)
                total += float((raw - wanted).square().mean((1, 2, 3)).sum())
            ends = torch.tensor([(band + 1) / BANDS, band / BANDS]).clamp(1e-9, 1 - 1e-9)
            low, high = sorted(sample_logsnr(stage.config.density, stage.denoiser.schedule, ends).tolist())
            out[f"{low:.1f} to {high:.1f}"] = total / max(len(self.index), 1)
        return out


class Preview:
    """Sample pictures of the stage under training, in its folder ``samples/``."""

    def __init__(self, config: CascadeConfig, folder: Path, images: TrainingImages, seed: int, steps: int = 12) -> None:
        self.config, self.folder, self.images, self.seed, self.steps = config, folder, images, seed, steps

    @torch.no_grad()
    def __call__(self, stage: Stage, images_seen: int) -> None:
        if stage.config.is_base:
            picture, name = self._samples(stage), f"{images_seen:010d}.png"
        else:
            picture, name = self._panel(stage), f"panel-{images_seen:010d}.png"
        (self.folder / "samples").mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / "samples" / name, png_bytes(picture))

    def _samples(self, stage: Stage) -> PILImage.Image:
        """A grid of base samples: one of each class, or two where there are few (at most 26 images)."""
        classes = self.config.num_classes
        labels = torch.arange(min(classes, 26)).repeat_interleave(1 if classes > 8 else 2) if classes else None
        count = preview_count(classes)
        device = next(stage.net.parameters()).device
        cascade = Cascade(self.config, [stage], device)
        settings = cascade.settings(steps=[min(self.steps, cascade.settings().steps[0])])
        sampled = cascade.sample(labels, PREVIEW_SEED + torch.arange(count), settings=settings)
        images = to_images(sampled.images[0], self.config.data.window)
        if labels is None:
            return grid(images, columns=8, window=self.config.data.window)
        return class_grid([images], labels, self.config.class_names, self.config.data.window)

    def _panel(self, stage: Stage) -> PILImage.Image:
        """Low-res | augmented low-res | SR | real, for eight images at the default level."""
        rows = self.images.spread(PANEL)
        x0 = self.images.target(stage.index, rows)
        low = self.images.target(stage.index - 1, rows)
        labels = None if self.images.labels is None else torch.from_numpy(self.images.labels)[rows]
        device = next(stage.net.parameters()).device
        sampled, noisy = super_resolve(self.config, stage, low.to(device), labels, PREVIEW_SEED + rows, self.steps)
        window = self.config.data.window
        shown = [to_images(x, window) for x in (low, noisy, sampled, x0)]
        return panel(list(zip(("low-res", "augmented", "SR", "real"), shown, strict=True)), window=window)


def preview_count(classes: int) -> int:
    """Samples in a preview of the base."""
    return 16 if not classes else min(classes, 26) if classes > 8 else 2 * classes


def sheet_count(classes: int) -> int:
    """Images of each stage on the sheet at the end of a run."""
    return 16 if not classes else min(classes, GRID_MOST) * _each(classes)


def _each(classes: int) -> int:
    """Images of each class on that sheet."""
    return max(1, min(4 if classes > 8 else 8, GRID_MOST // classes))


def super_resolve(
    config: CascadeConfig,
    stage: Stage,
    low_res: StageImage,
    labels: Labels | None,
    seeds: Int64[Tensor, " b"],
    steps: int,
) -> tuple[StageImage, StageImage]:
    """One SR stage on given low-res images at the run's default level: its images, and the augmented low-res."""
    settings = Cascade(config, [stage]).settings()
    aug_logsnr = stage.aug_logsnr(settings.aug_level[stage.index - 1])
    labels = stage.check_labels(labels, len(low_res))
    labels = None if labels is None else labels.to(low_res.device)
    cond, augmented = stage.condition(low_res, labels, aug_logsnr, Rng(0, stage.index), seeds)
    steps = min(steps, settings.steps[stage.index])
    return run_stage(stage, cond, seeds, settings, steps).image, augmented.noisy


def final_grid(cascade: Cascade, progress: Callable[[int], None]) -> tuple[Samples, bytes]:
    """Every class, low-res beside high-res: 8 or 4 images of each, at most ``GRID_MOST`` in all; of more classes than
    that some, evenly spread. At most ``GRID_STEPS`` steps a stage. ``progress`` is told the images made."""
    classes = cascade.config.num_classes
    labels = None
    if classes:
        shown = torch.linspace(0, classes - 1, min(classes, GRID_MOST), dtype=torch.float64).round().long()
        labels = shown.repeat_interleave(_each(classes))
    count = sheet_count(classes)
    settings = cascade.settings(steps=[min(own, GRID_STEPS) for own in cascade.settings().steps])
    parts = []
    for rows in torch.arange(count).split(26):
        parts.append(cascade.sample(None if labels is None else labels[rows], rows, settings=settings))
        progress(int(rows[-1]) + 1)
    window: Window = cascade.config.data.window
    stages = [torch.cat(stage) for stage in zip(*(part.images for part in parts), strict=True)]
    images = [to_images(x, window) for x in stages]
    sampled = dataclasses.replace(parts[0], images=tuple(stages), labels=labels, seeds=torch.arange(count))
    return sampled, png_bytes(class_grid(images, labels, cascade.config.class_names, window))
