"""Real images to judge against, and their features and statistics, cached outside the run by what they depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64

from cdm.artifacts import load_tensors, make_folder, save_tensors
from cdm.config import DataConfig
from cdm.data.arrays import load_images
from cdm.data.image_array import ImageArray
from cdm.data.pixels import FULL_8, to_float, to_images
from cdm.data.plan import scan_sizes
from cdm.data.source import LETTERS_SPEC, open_source
from cdm.errors import CorruptError, UserError
from cdm.evaluate.extractors.base import Extractor, widths
from cdm.evaluate.feature_store import FeatureStore
from cdm.evaluate.stats import FeatureStats, feature_stats
from cdm.pipeline.generate import FeatureSink, Progress, fill
from cdm.pipeline.image_source import ClassIndex, Images, key_of
from cdm.pipeline.processes import Processes
from cdm.train.log import counted

Say = Callable[[str], None]
ROLES = {"val": "validation", "train": "training"}


@dataclass(frozen=True)
class RealImages:
    """Rows of a data set, uint8 at the size that is judged.

    role: ``val`` or ``train``. rows: of ``array``. digests: hash of each image's pixels, for finding equal ones.
    """

    role: str
    where: str
    array: ImageArray
    rows: Int64[np.ndarray, " n"]
    digests: tuple[bytes, ...]

    @property
    def what(self) -> str:
        return f"{ROLES[self.role]} images"

    @property
    def key(self) -> str:
        return self._key

    @cached_property
    def _key(self) -> str:
        """Names pixels and classes: the same images at another place are the same reference."""
        labels = None if self.labels is None else self.labels.tolist()
        pixels = hashlib.sha256(b"".join(self.digests)).hexdigest()
        return key_of("real", pixels, labels, self.class_names, self.shape)

    @property
    def fingerprint(self) -> str:
        """12 hex digits for figures."""
        return self.key[:12]

    @property
    def count(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.array.channels, self.array.size, self.array.size)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.array.class_names

    @property
    def labels(self) -> ClassIndex | None:
        return self._labels

    @cached_property
    def _labels(self) -> ClassIndex | None:
        return None if self.array.labels is None else self.array.labels[self.rows]

    def stages(self, start: int, stop: int) -> tuple[Images, ...]:
        return (self.block(start, stop),)

    def block(self, start: int, stop: int) -> Images:
        return self.pick(np.arange(start, stop))

    def pick(self, indices: Int64[np.ndarray, " b"]) -> Images:
        return eight_bits(np.asarray(self.array.images[self.rows[indices]]), self.array)

    def all(self) -> Images:
        return self.block(0, self.count)


def eight_bits(images: np.ndarray, array: ImageArray) -> Images:
    """What a screen shows of stored intensities: uint8, 16 bits by the data's window."""
    if array.window == FULL_8 and images.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(images))
    return to_images(to_float(images, array.window), FULL_8)


def pixels_of(real: RealImages) -> np.ndarray:
    """Its 8-bit pixels, mapped where the data is and nothing has to be converted."""
    whole = len(real.rows) == len(real.array)
    if whole and real.array.images.dtype == np.uint8 and real.array.window == (0, 255):
        return real.array.images
    return real.all().numpy()


def make_real(role: str, where: str, array: ImageArray, rows: Int64[np.ndarray, " n"] | None = None) -> RealImages:
    rows = np.arange(len(array)) if rows is None else rows
    digests = tuple(hashlib.blake2b(array.images[row].tobytes(), digest_size=16).digest() for row in rows)
    return RealImages(role, where, array, rows, digests)


def load_array(
    spec: str, size: int, channels: int, like: DataConfig | None, say: Say, progress: Progress
) -> ImageArray:
    """A folder, zip or built-in data at ``size``; ``like``: the run's data, which settles bit depth and window."""
    array = load_images(
        open_source(spec), size, channels, 8 if like is None else like.bit_depth,
        window=None if like is None else like.window, progress=partial(progress, f"reading {spec}"),
    )  # fmt: skip
    if array.skipped:
        name, reason = array.skipped[0]
        say(f"{counted(len(array.skipped), 'file')} of {spec} skipped, as {name}: {reason}")
    return array


def own_size(spec: str, size: int) -> int:
    """Median shorter side of the images as they are stored; the built-in letters are drawn at ``size`` itself."""
    return size if spec == LETTERS_SPEC else scan_sizes(open_source(spec)).median


def shared_images(val: RealImages, train: RealImages) -> int:
    """How many validation images are training images too, pixel by pixel."""
    known = set(train.digests)
    return sum(digest in known for digest in val.digests)


@dataclass(frozen=True)
class ReferenceCache:
    """Features of real images, computed once for each of (pixels and classes, extractor, resize recipe)."""

    folder: Path
    processes: Processes
    batch_size: int
    progress: Progress
    say: Say
    _looked_at: set[str] = field(default_factory=set)

    def features(self, real: RealImages, extractor: Extractor) -> FeatureStore:
        """All rows are done when this returns; what an earlier evaluation left is used, and said."""
        key = _key(real, extractor)
        store = FeatureStore.open(make_folder(self.folder / "reference"), key, real.count, widths(extractor))
        if key not in self._looked_at:
            self._looked_at.add(key)
            if not len(store.missing()):
                named = f"{counted(real.count, f'{ROLES[real.role]} image')} by {extractor.name} {extractor.hash}"
                self.say(f"features of {named}: reused from an earlier evaluation")
            fill(real, [FeatureSink(extractor, store)], self.processes, self.batch_size, self.progress)
        return store

    def stats(self, real: RealImages, extractor: Extractor, name: str = "main") -> FeatureStats:
        """Mean and covariance of the features ``name``; call it on the first process, after ``features``."""
        path = self.folder / "reference" / f"stats-{_key(real, extractor)}-{name}.safetensors"
        if path.exists():
            try:
                tensors, meta = load_tensors(path)
                return FeatureStats(meta["count"], tensors["mean"].numpy(), tensors["cov"].numpy())
            except CorruptError:
                self.say(f"{path} is damaged; computed once more")
        stats = feature_stats(self.features(real, extractor).rows(name))
        tensors = {"mean": torch.from_numpy(stats.mean), "cov": torch.from_numpy(stats.cov)}
        save_tensors(path, tensors, {"count": stats.count})
        return stats


def _key(real: RealImages, extractor: Extractor) -> str:
    return key_of(real.key, extractor.name, extractor.hash, extractor.resize)


def check_classes(array: ImageArray, class_names: tuple[str, ...], where: str) -> ImageArray:
    """``array`` labelled by ``class_names``; without classes on either side it has none. Raises ``UserError`` for a
    class that the list does not have."""
    if not class_names or array.labels is None:
        return array.with_classes(())
    try:
        return array.with_classes(class_names)
    except UserError as error:
        raise UserError(f"the classes of {where} differ: {error}") from error
