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
from cdm.evaluate.checked_rows import damaged, marks_of, read_marks, write_marks, write_rows
from cdm.evaluate.extractors.base import Features


@dataclass(frozen=True)
class FeatureStore:
    """A folder with ``meta.json``, one file of float32 rows per kind of feature, and ``marks``, one byte per image,
    which is also a check of its rows.

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
            CorruptError: files that do not belong together, or rows that are not what was written.
            UserError: no room or no permission.
        """
        assert count > 0 and widths
        name = hashlib.sha256(f"checked\n{key}\n{count}\n{sorted(widths.items())}".encode()).hexdigest()[:24]
        store = FeatureStore(make_folder(folder / name), count, dict(widths))
        meta = {"key": key, "count": count, "widths": dict(widths)}
        if not (store.path / "meta.json").exists():
            save_json(store.path / "meta.json", meta)
        elif load_json(store.path / "meta.json") != meta:
            raise _damaged(store.path, "its meta.json tells of other features")
        for file, size in store._sizes().items():
            _make_file(store.path / file, size)
        files = [(store.path / f"{name}.f32", 4 * width) for name, width in store.widths.items()]
        if bad := damaged(store._marks(), files):
            raise _damaged(store.path, f"{len(bad)} rows are not what was written, the first is {bad[0]}")
        return store

    def _sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {f"{name}.f32": 4 * width * self.count for name, width in self.widths.items()} | {"marks": self.count}

    def _marks(self) -> np.ndarray:
        return read_marks(self.path / "marks", self.count)

    def missing(self) -> Int64[np.ndarray, " m"]:
        """Numbers of the images whose rows are not there yet, rising."""
        return np.flatnonzero(self._marks() == 0).astype(np.int64)

    def write(self, indices: Int64[np.ndarray, " b"], features: Features) -> None:
        """Puts down rows and then marks them, both flushed to the disk.

        Raises:
            UserError: the disk is full; what was done before stays done.
        """
        assert len(indices) and 0 <= indices.min() and indices.max() < self.count
        parts = features.by_name()
        assert {name: part.shape[1] for name, part in parts.items()} == dict(self.widths)
        rows = {name: np.ascontiguousarray(parts[name].numpy(), "<f4").view(np.uint8) for name in self.widths}
        for name, part in rows.items():
            write_rows(self.path / f"{name}.f32", indices, part)
        write_marks(self.path / "marks", indices, marks_of(list(rows.values())))

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
