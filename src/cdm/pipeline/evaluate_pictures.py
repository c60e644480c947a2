"""Pictures of an evaluation's report: samples by class, low-res | SR | oracle, nearest training images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cdm.evaluate.area import take
from cdm.evaluate.measurements import StageImages
from cdm.evaluate.pictures import class_grid, grid, panel, png_bytes
from cdm.pipeline.generate import ImageStore
from cdm.pipeline.image_source import Images, ImageSource
from cdm.pipeline.reference import RealImages

Picture = tuple[bytes, str]
SHOWN_PIXELS = 1600 * 1200
PANEL_ROWS = 8


def sample_sheet(source: ImageSource, store: ImageStore) -> list[Picture]:
    """The first images of every class among those kept."""
    images = store.images()
    if source.labels is None or not source.class_names:
        most = max(4, min(len(images), 32, SHOWN_PIXELS // (images.shape[-1] ** 2)))
        shown = torch.from_numpy(images[:most])
        return [(png_bytes(grid(shown, columns=8, scale=max(1, 64 // images.shape[-1]))), f"The first {most} images.")]
    labels = source.labels[: len(images)]
    classes = len(set(labels.tolist()))
    per_class = max(1, min(8, SHOWN_PIXELS // (max(images.shape[-1], 64) ** 2) // classes))
    rows = np.concatenate([np.flatnonzero(labels == label)[:per_class] for label in np.unique(labels)])
    sheet = class_grid([torch.from_numpy(images[rows])], labels[rows].tolist(), source.class_names)
    return [(png_bytes(sheet), f"The first images of every class ({len(rows)} of {source.count:,}), not chosen.")]


def stage_panels(images: StageImages) -> list[Picture]:
    """For each SR stage: what it was given and made in the run, beside the same with real low-res images."""
    pictures = []
    for k in range(1, len(images.full)):
        columns = (
            ("low-res", images.full[k - 1]), ("SR", images.full[k]), ("real low-res", images.real[k - 1]),
            ("oracle SR", images.from_real[k - 1][0]), ("real", images.real[k]),
        )  # fmt: skip
        rows = torch.arange(min(PANEL_ROWS, len(images.full[k])))
        picture = panel([(title, take(pixels, rows)) for title, pixels in columns])
        size = images.full[k].shape[-1]
        caption = f"Stage {k}, {size} pixels: low-res | SR | real low-res | SR of it (the oracle) | real."
        pictures.append((png_bytes(picture), caption))
    return pictures


def neighbour_pairs(samples: Images, train: RealImages, nearest: Sequence[int]) -> list[Picture]:
    """Samples beside the training images they are nearest to, closest first."""
    rows = np.asarray(nearest, dtype=np.int64)
    picture = panel([("sample", samples), ("nearest training image", train.pick(rows))])
    return [(png_bytes(picture), "The samples that lie nearest to a training image, closest first.")]


def pick(source: ImageSource, store: ImageStore | None, indices: Sequence[int]) -> Images:
    """Images by number: from those kept, else made once more."""
    parts = []
    kept = store.images() if store is not None else None
    for i in indices:
        if kept is not None and i < len(kept):
            parts.append(torch.from_numpy(kept[i : i + 1]))
        else:
            parts.append(source.stages(i, i + 1)[-1])
    return torch.cat(parts)
