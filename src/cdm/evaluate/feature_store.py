"""Features on the disk, one row per image: written in any order by any number of processes, resumed after a kill."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from cdm.artifacts import load_json, make_folder, save_json, told_by_path
from cdm.errors import CorruptError
from cdm.evaluate.extractors.base import Features


@dataclass(frozen=True)
class FeatureStore:
    """A folder with ``meta.json``, one file of float32 rows per kind of feature, and ``done``, one byte per image.

    A row's byte is set only after the row is on the disk, so a kill at any moment leaves rows that are missing, never
    rows that are wrong. Plain writes, not writes to a mapping: on a full disk these raise an error, where a mapping
    kills the process.

    path: the store's own folder.
    count: of images.
    widths: numbers per image, by the names of ``Features.by_name``.
    """

    path: Path
    count: int
    widths: Mapping[str, int]

    @staticmethod
    def open(folder: Path, key: str, count: int, widths: Mapping[str, int]) -> FeatureStore:
        """The store of ``key`` below ``folder``, made where it is not there. Several processes may open it at once.

        Args:
            key: all that the features hang on: data or run, seed, resize recipe, extractor and its hash.
            widths: see ``widths`` in ``extractors.base``.

        Raises:
            CorruptError: files that do not belong together.
            UserError: no room or no permission.
        """
        assert count > 0 and widths
        name = hashlib.sha256(f"{key}\n{count}\n{sorted(widths.items())}".encode()).hexdigest()[:24]
        store = FeatureStore(make_folder(folder / name), count, dict(widths))
        meta = {"key": key, "count": count, "widths": dict(widths)}
        if not (store.path / "meta.json").exists():
            save_json(store.path / "meta.json", meta)
        elif load_json(store.path / "meta.json") != meta:
            raise _damaged(store.path, "its meta.json tells of other features")
        for file, size in store._sizes().items():
            _make_file(store.path / file, size)
        return store

    def _sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {f"{name}.f32": 4 * width * self.count for name, width in self.widths.items()} | {"done": self.count}

    def missing(self) -> Int64[np.ndarray, " m"]:
        """Numbers of the images whose rows are not there yet, rising."""
        with told_by_path(self.path / "done"):
            done = np.fromfile(self.path / "done", np.uint8)
        return np.flatnonzero(done != 1).astype(np.int64)

    def write(self, indices: Int64[np.ndarray, " b"], features: Features) -> None:
        """Puts down rows and then marks them as done, both flushed to the disk.

        Raises:
            UserError: the disk is full; what was done before stays done.
        """
        assert len(indices) and 0 <= indices.min() and indices.max() < self.count
        parts = features.by_name()
        assert {name: part.shape[1] for name, part in parts.items()} == dict(self.widths)
        for name, part in parts.items():
            rows = np.ascontiguousarray(part.numpy(), "<f4")
            _write_rows(self.path / f"{name}.f32", indices, rows.view(np.uint8))
        _write_rows(self.path / "done", indices, np.ones((len(indices), 1), np.uint8))

    def rows(self, name: str = "main", count: int | None = None) -> Float32[np.ndarray, "n d"]:
        """The first ``count`` rows of one kind (None: all), mapped read-only. Only when none of them is missing."""
        count = self.count if count is None else count
        assert not (self.missing() < count).any(), "features are read before all of them are there"
        shape = (count, self.widths[name])
        return np.memmap(self.path / f"{name}.f32", np.dtype("<f4"), mode="r", shape=shape)


def _damaged(path: Path, how: str) -> CorruptError:
    return CorruptError(f"the features in {path} are damaged ({how}): delete that folder; they are computed again.")


def _make_file(path: Path, size: int) -> None:
    """A file of ``size`` zeros that takes no room yet, unless it is there; the same from several processes at once."""
    with told_by_path(path), open(path, "ab") as file:
        there = os.fstat(file.fileno()).st_size
        if there == 0:
            os.ftruncate(file.fileno(), size)
        elif there != size:
            raise _damaged(path.parent, f"{path.name} has {there} bytes and should have {size}")


def _write_rows(path: Path, indices: Int64[np.ndarray, " b"], rows: np.ndarray) -> None:
    """Bytes ``[b, width]`` to their places, neighbours in one go, and flushed."""
    width = rows.shape[1]
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    with told_by_path(path):
        fd = os.open(path, os.O_WRONLY)
        try:
            for first, run in zip([0, *breaks.tolist()], np.split(rows, breaks), strict=True):
                _write_all(fd, run.tobytes(), int(indices[first]) * width)
            os.fsync(fd)
        finally:
            os.close(fd)


def _write_all(fd: int, content: bytes, offset: int) -> None:
    while content:  # the system may take a part of it only
        written = os.pwrite(fd, content, offset)
        content, offset = content[written:], offset + written
