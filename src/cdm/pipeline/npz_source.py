"""ADM's ``.npz`` files as images to judge, as real images, and as statistics that stand for them."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from cdm.data.image_array import ImageArray
from cdm.errors import UserError
from cdm.evaluate.npz import LABELS, SAMPLES, is_reference, open_images, read_reference
from cdm.evaluate.stats import FeatureStats
from cdm.pipeline.image_source import ClassIndex, Images, key_of, sums_of

CHUNK = 256  # images read at a time


class NpzImages:
    """Images of a sample batch, mapped from the file when they are first asked for."""

    def __init__(self, path: Path, class_names: tuple[str, ...] = ()) -> None:
        self._file = open_images(path)
        channels, height, width = self._file.shape
        if height != width:
            raise UserError(f"the images of {path} are {width}x{height} pixels; expected squares: crop them.")
        self.what = str(path)
        self.shape = (channels, height, width)
        self.count = self._file.count
        self.groups = self._file.labels
        self.class_names = class_names

    @property
    def key(self) -> str:
        return self._key

    @cached_property
    def _key(self) -> str:
        """Of the file's content, as its archive sums it."""
        return key_of("npz", sums_of(self._file.path))

    @property
    def labels(self) -> ClassIndex | None:
        """None without names for them."""
        return self._file.labels if self.class_names else None

    @property
    def labelled(self) -> bool:
        """Whether the file has labels, named or not."""
        return self._file.labels is not None

    def with_classes(self, class_names: tuple[str, ...]) -> NpzImages:
        """Numbers called by name. Raises ``UserError`` for a number that has none."""
        if class_names and self._file.labels is not None:
            _check_labels(self.what, self._file.labels, class_names)
        return NpzImages(self._file.path, class_names)

    @cached_property
    def _pixels(self) -> np.ndarray:
        return self._file.mapped()

    def pick(self, numbers: ClassIndex) -> Images:
        return torch.from_numpy(np.ascontiguousarray(self._pixels[numbers].transpose(0, 3, 1, 2)))


@dataclass(frozen=True)
class GivenStats:
    """Reference statistics of Inception's features. ``count``: 0 where the file does not tell it."""

    where: str
    fingerprint: str
    count: int
    main: FeatureStats
    spatial: FeatureStats | None

    def of(self, name: str) -> FeatureStats:
        """Statistics of the features ``name``."""
        found = self.main if name == "main" else self.spatial
        if found is None:
            raise UserError(f"{self.where} has no spatial statistics (mu_s, sigma_s); expected them for sFID.")
        return found


def read_npz_stats(path: Path) -> GivenStats | None:
    """The statistics in the file, if it has any."""
    if not is_reference(path):
        return None
    found = read_reference(path)
    digest = hashlib.sha256(found.main.mean.tobytes() + found.main.cov.tobytes()).hexdigest()
    return GivenStats(str(path), digest[:12], found.main.count, found.main, found.spatial)


def read_npz_array(path: Path, size: int, channels: int, class_names: tuple[str, ...]) -> ImageArray | None:
    """The images in the file, if it has any, all in memory. ``class_names``: what its labels number; by default they
    are called by their numbers."""
    if is_reference(path) and not _has_images(path):
        return None
    file = open_images(path)
    if file.shape != (channels, size, size):
        got, wanted = "x".join(map(str, file.shape)), f"{channels}x{size}x{size}"
        raise UserError(
            f"the images of {path} are {got} (channels, height, width), those judged are {wanted}; expected one size."
        )
    images = torch.cat(list(file.blocks(CHUNK))).numpy()
    names = class_names
    if file.labels is not None:
        names = class_names or tuple(str(i) for i in range(int(file.labels.max()) + 1))
        _check_labels(str(path), file.labels, names)
    labels = file.labels if names else None
    told = hashlib.sha256(images.tobytes()).hexdigest()
    paths = tuple(f"{i}.npy" for i in range(len(images)))
    return ImageArray(np.ascontiguousarray(images), labels, names if labels is not None else (), paths, told)


def _check_labels(where: str, labels: ClassIndex, class_names: tuple[str, ...]) -> None:
    """Raises ``UserError`` for a label that numbers none of the classes."""
    odd = labels[(labels < 0) | (labels >= len(class_names))]
    if len(odd):
        raise UserError(
            f"{where} has the label {odd[0]} in {LABELS}; expected 0 to {len(class_names) - 1}, the places of the real "
            f"images' {len(class_names)} classes in the order of their names: number them so."
        )


def _has_images(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return f"{SAMPLES}.npy" in archive.namelist()
