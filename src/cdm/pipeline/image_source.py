"""Images to be judged, asked for in blocks: a folder, a zip, an ``.npz``. (``generate.py`` makes them of a run.)"""

from __future__ import annotations

import hashlib
import json
import os
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

from cdm.data.decode import DecodeError, decode, to_bit_depth
from cdm.data.source import ReadError, Source, open_source
from cdm.errors import UserError

Images = UInt8[Tensor, "b c h w"]
ClassIndex = Int64[np.ndarray, " n"]


@runtime_checkable
class ImageSource(Protocol):
    """Images by number, uint8 at one square size. Image ``i`` is the same whenever it is asked for.

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

    def stages(self, start: int, stop: int) -> tuple[Images, ...]:
        """Images ``start`` to ``stop - 1`` at every stage, from the lowest up; the last are those judged."""
        ...


def key_of(*parts: object) -> str:
    """24 hex digits that name what ``parts`` (JSON types) say."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class FileImages:
    """Image files of one size, decoded as they are asked for."""

    source: Source
    shape: tuple[int, int, int]
    count: int
    class_names: tuple[str, ...]

    @property
    def what(self) -> str:
        return self.source.where

    @property
    def key(self) -> str:
        return self._key

    @cached_property
    def _key(self) -> str:
        """Paths and sizes of all files, and the bytes of some: other images under the same names have another key."""
        sha = hashlib.sha256()
        for i in np.unique(np.linspace(0, len(self.source) - 1, 16).round().astype(int)).tolist():
            sha.update(self.source.read(i))
        return key_of("files", self.source.fingerprint, sha.hexdigest())

    @property
    def labels(self) -> ClassIndex | None:
        return self._labels

    @cached_property
    def _labels(self) -> ClassIndex | None:
        if not self.class_names:
            return None
        entries = self.source.entries[: self.count]
        return np.array([self.class_names.index(entry.path.split("/")[0]) for entry in entries], dtype=np.int64)

    def with_classes(self, class_names: tuple[str, ...]) -> FileImages:
        """Labelled by another list. Raises ``UserError`` for a class that it lacks."""
        odd = sorted(set(self.source.class_names) - set(class_names))
        if class_names and odd:
            raise unlike_classes(self.what, repr(odd[0]), class_names)
        return replace(self, class_names=class_names)

    def stages(self, start: int, stop: int) -> tuple[Images, ...]:
        return (self.block(start, stop),)

    def block(self, start: int, stop: int) -> Images:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return torch.from_numpy(np.stack(list(pool.map(self._read, range(start, stop)))))

    def _read(self, i: int) -> UInt8[np.ndarray, "c h w"]:
        """Nothing is resized here: another size is another figure."""
        name, (channels, size, _) = self.source.entries[i].path, self.shape
        try:
            pixels = decode(self.source.read(i), channels)
        except (DecodeError, ReadError) as error:
            raise UserError(
                f"{name!r} of {self.source.where!r} cannot be used ({error}); expected readable images only: "
                "remove it, or make it once more."
            ) from error
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


def open_files(path: str, count: int | None) -> FileImages:
    """A folder or zip of images; the first one settles the size and whether they are grey."""
    source = open_source(path)
    if source.letters:
        raise UserError("builtin:letters are real letters; expected generated images: give a folder, zip or .npz.")
    asked = len(source) if count is None else check_count(count, len(source), path)
    try:
        data = source.read(0)
        pixels = decode(data, 3)
        channels = 1 if _is_grey(data) else 3
    except (DecodeError, ReadError) as error:
        raise UserError(
            f"{source.entries[0].path!r} of {path!r} cannot be used ({error}); expected an image."
        ) from error
    height, width = pixels.shape[:2]
    if height != width:
        raise UserError(
            f"{source.entries[0].path!r} of {path!r} is {width}x{height} pixels; expected a square: crop the images."
        )
    return FileImages(source, (channels, height, height), asked, source.class_names)


def _is_grey(data: bytes) -> bool:
    """Whether the file itself holds one channel."""
    try:
        decode(data, 2)
    except DecodeError as error:
        return str(error).startswith("1 channels")
    return False


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
    return str(path).endswith(".npz")
