"""Images to be judged, asked for in blocks: a folder, a zip, an ``.npz``. (``generate.py`` makes them of a run.)"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from cdm.artifacts import told_by_path
from cdm.data.decode import DecodeError, decode, is_grey, to_bit_depth
from cdm.data.source import ReadError, Source, open_source
from cdm.errors import UserError
from cdm.rng import Purpose, Rng
from cdm.runtime import usable_cores

Images = UInt8[Tensor, "b c h w"]
ClassIndex = Int64[np.ndarray, " n"]
HASHED_MOST = 2_000_000_000
"""Bytes of image files that are all hashed; of more, times of change stand for the contents."""


@runtime_checkable
class NumberedImages(Protocol):
    """What is known of images by number, uint8 at one square size.

    what: in a word or two, for messages. key: names the images; the same key is the same images.
    labels: class of each, or None.
    """

    @property
    def what(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def labels(self) -> ClassIndex | None: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...


@runtime_checkable
class ImageSource(NumberedImages, Protocol):
    """Images to be judged. Image ``i`` is the same whenever it is asked for."""

    def stages(self, start: int, stop: int) -> tuple[Images, ...]:
        """Images ``start`` to ``stop - 1`` at every stage, from the lowest up; the last are those judged."""
        ...


METHOD = 2
"""Raise it when images, features or figures are made in another way: what was kept before is then not used again."""


def key_of(*parts: object) -> str:
    """24 hex digits that name what ``parts`` (JSON types) say."""
    return hashlib.sha256(json.dumps([METHOD, *parts], sort_keys=True, default=str).encode()).hexdigest()[:24]


def sums_of(path: str | Path) -> list[tuple[str, int, int]]:
    """Name, size and checksum of everything in a zip file, as its directory tells them."""
    with zipfile.ZipFile(path) as archive:
        return [(entry.filename, entry.file_size, entry.CRC) for entry in archive.infolist()]


@runtime_checkable
class StoredImages(NumberedImages, Protocol):
    """Images that are there already, in whatever order they are stored.

    groups: class of each by number, whatever it is called; None where nothing tells it.
    """

    @property
    def groups(self) -> ClassIndex | None: ...

    def pick(self, numbers: ClassIndex) -> Images: ...


def fair_order(groups: ClassIndex | None, count: int) -> ClassIndex:
    """All numbers below ``count``, so that the first ones are a fair sample however the images are sorted.

    Drawn once for each ``count``; with ``groups`` every beginning holds each class by its share, to within an image.
    """
    order = Rng(0).permutation(Purpose.EVALUATE, count).numpy()
    if groups is None:
        return order
    _, own, sizes = np.unique(groups[order], return_inverse=True, return_counts=True)
    by_class = np.argsort(own, kind="stable")
    rank = np.empty(count, dtype=np.int64)  # within its class
    rank[by_class] = np.arange(count) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return order[np.argsort((2 * rank + 1) / (2 * sizes[own]), kind="stable")]


@dataclass(frozen=True)
class MixedImages:
    """The first ``count`` stored images of ``fair_order``: they are sorted by class as a rule, and some are looked at
    by their beginning only."""

    stored: StoredImages
    count: int

    @cached_property
    def numbers(self) -> ClassIndex:
        """Place of each image where it is stored."""
        return fair_order(self.stored.groups, self.stored.count)[: self.count]

    @property
    def what(self) -> str:
        return self.stored.what

    @property
    def key(self) -> str:
        return self._key

    @cached_property
    def _key(self) -> str:
        return key_of("mixed", self.stored.key)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.stored.shape

    @property
    def labels(self) -> ClassIndex | None:
        return self._labels

    @cached_property
    def _labels(self) -> ClassIndex | None:
        labels = self.stored.labels
        return None if labels is None else labels[self.numbers]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.stored.class_names

    def stages(self, start: int, stop: int) -> tuple[Images, ...]:
        return (self.stored.pick(self.numbers[start:stop]),)


@dataclass(frozen=True)
class FileImages:
    """Image files of one size, decoded as they are asked for."""

    source: Source
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]

    @property
    def what(self) -> str:
        return self.source.where

    @property
    def count(self) -> int:
        return len(self.source)

    @property
    def key(self) -> str:
        return self._key

    @cached_property
    def _key(self) -> str:
        """Paths, sizes and contents of all files: other images under the same names have another key.

        Contents are a zip's checksums, or the bytes; of very many bytes those of 16 files and when each was changed.
        """
        path, count = Path(self.source.where).expanduser(), len(self.source)
        if path.is_file():
            return key_of("zip", self.source.fingerprint, sums_of(path))
        whole = sum(entry.size for entry in self.source.entries) <= HASHED_MOST
        some = np.arange(count) if whole else np.unique(np.linspace(0, count - 1, 16).round().astype(int))
        sha = hashlib.sha256()
        for i in some.tolist():
            sha.update(hashlib.sha256(self._bytes(i)).digest())
        times = [] if whole else [self._changed(i) for i in range(count)]
        return key_of("files", self.source.fingerprint, sha.hexdigest(), times)

    def _changed(self, i: int) -> int:
        """In nanoseconds."""
        with told_by_path(Path(self.source.entries[i].path)), self.source.open_file(i) as file:
            return os.fstat(file.fileno()).st_mtime_ns

    @property
    def groups(self) -> ClassIndex | None:
        if not self.source.class_names:
            return None
        return np.array([entry.label for entry in self.source.entries], dtype=np.int64)

    @property
    def labels(self) -> ClassIndex | None:
        return self._labels

    @cached_property
    def _labels(self) -> ClassIndex | None:
        if not self.class_names:
            return None
        names = [entry.path.split("/")[0] for entry in self.source.entries]
        return np.array([self.class_names.index(name) for name in names], dtype=np.int64)

    def with_classes(self, class_names: tuple[str, ...]) -> FileImages:
        """Labelled by another list. Raises ``UserError`` for a class that it lacks."""
        odd = sorted(set(self.source.class_names) - set(class_names))
        if class_names and odd:
            raise unlike_classes(self.what, repr(odd[0]), class_names)
        return replace(self, class_names=class_names)

    def pick(self, numbers: ClassIndex) -> Images:
        with ThreadPoolExecutor(min(8, usable_cores())) as pool:
            return torch.from_numpy(np.stack(list(pool.map(self._read, numbers.tolist()))))

    def _bytes(self, i: int) -> bytes:
        try:
            return self.source.read(i)
        except ReadError as error:
            raise self._unusable(i, error) from error

    def _unusable(self, i: int, error: Exception) -> UserError:
        return UserError(
            f"{self.source.entries[i].path!r} of {self.source.where!r} cannot be used ({error}); expected readable "
            "images only: remove it, or make it once more."
        )

    def _read(self, i: int) -> UInt8[np.ndarray, "c h w"]:
        """Nothing is resized here: another size is another figure."""
        name, (channels, size, _) = self.source.entries[i].path, self.shape
        try:
            pixels = decode(self._bytes(i), channels)
        except DecodeError as error:
            raise self._unusable(i, error) from error
        height, width = pixels.shape[:2]
        if (height, width) != (size, size):
            raise UserError(
                f"{name!r} of {self.source.where!r} is {width}x{height} pixels, the first image {size}x{size}; "
                "expected all of one square size: resize them."
            )
        return to_bit_depth(pixels, 8).transpose(2, 0, 1)


def unlike_classes(where: str, odd: str, class_names: tuple[str, ...]) -> UserError:
    known = ", ".join(class_names[:8]) + ", ..." * (len(class_names) > 8)
    return UserError(
        f"{where} has the class {odd}, which the real images lack; expected only {known}: give real images of the same "
        "classes."
    )


def open_files(path: str) -> FileImages:
    """A folder or zip of images; the first one settles the size and whether they are grey."""
    source = open_source(path)
    if source.letters:
        raise UserError("builtin:letters are real letters; expected generated images: give a folder, zip or .npz.")
    try:
        data = source.read(0)
        pixels = decode(data, 3)
        channels = 1 if is_grey(data) else 3
    except (DecodeError, ReadError) as error:
        raise UserError(
            f"{source.entries[0].path!r} of {path!r} cannot be used ({error}); expected an image."
        ) from error
    height, width = pixels.shape[:2]
    if height != width:
        raise UserError(
            f"{source.entries[0].path!r} of {path!r} is {width}x{height} pixels; expected a square: crop the images."
        )
    return FileImages(source, (channels, height, height), source.class_names)


def check_count(asked: int, there: int, path: str) -> int:
    if not 1 <= asked <= there:
        raise UserError(f"-n is {asked}, but {path} has {there:,} images; expected 1 to {there:,}.")
    return asked


def class_shares(labels: ClassIndex | None, classes: int) -> Sequence[float]:
    """Share of each class among ``labels``; equal ones without labels."""
    if labels is None:
        return [1 / classes] * classes if classes else []
    return (np.bincount(labels, minlength=classes) / len(labels)).tolist()


def labels_in_turn(shares: Sequence[float], count: int) -> ClassIndex:
    """Classes in turn, each as often as its share says: 0, 1, 2, 0, 1, 2, ... for equal ones.

    Image i gets the class that lags most behind its share; ties go to the lower one. So a shorter row of labels is the
    beginning of a longer one.
    """
    wanted = np.asarray(shares, dtype=np.float64)
    given = np.zeros(len(wanted))
    labels = np.empty(count, dtype=np.int64)
    for i in range(count):
        behind = np.round(wanted * (i + 1) - given, 9)
        behind[wanted == 0] = -np.inf
        label = int(np.argmax(behind))
        labels[i] = label
        given[label] += 1
    return labels


def is_npz(path: str | Path) -> bool:
    return Path(path).suffix.lower() == ".npz"
