"""Arrays that grow row by row, in memory or in a cache file that appears only when it is whole."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from cdm.artifacts import make_folder, told_by_path
from cdm.runtime import total_memory

Shape = tuple[int, ...]


def quarter_of_memory() -> int:
    """Bytes: data over this goes to a cache file."""
    return total_memory(torch.device("cpu")) // 4


class MemoryRows:
    """Rows in RAM."""

    def __init__(self, count: int, shape: Shape, dtype: np.dtype) -> None:
        self._rows = np.empty((count, *shape), dtype)
        self._count = 0

    def __enter__(self) -> MemoryRows:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def append(self, rows: np.ndarray) -> None:
        self._rows[self._count : self._count + len(rows)] = rows
        self._count += len(rows)

    def finish(self) -> np.ndarray:
        return self._rows[: self._count]


class FileRows:
    """Rows in a file of raw values, renamed to ``path`` by ``finish`` and then mapped. Plain writes, not writes to a
    mapping: on a full disk these raise an error (``UserError``), where a mapping kills the process."""

    def __init__(self, path: Path, shape: Shape, dtype: np.dtype) -> None:
        self._path, self._shape, self._dtype = path, shape, dtype.newbyteorder("<")
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._count = 0

    def __enter__(self) -> FileRows:
        make_folder(self._path.parent)
        with told_by_path(self._path):
            self._file = open(self._temporary, "wb")
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # a full disk was told by then, and nothing of this file is kept
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def append(self, rows: np.ndarray) -> None:
        with told_by_path(self._path):
            self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        self._count += len(rows)

    def finish(self) -> np.ndarray:
        with told_by_path(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            os.replace(self._temporary, self._path)
        return np.memmap(self._path, self._dtype, mode="r", shape=(self._count, *self._shape))


def map_rows(path: Path, count: int, shape: Shape, dtype: np.dtype) -> np.ndarray | None:
    """Map what ``FileRows`` left at ``path``; None if it is not there or has not just ``count`` rows."""
    dtype = dtype.newbyteorder("<")
    if not path.is_file() or path.stat().st_size != count * dtype.itemsize * int(np.prod(shape)):
        return None
    return np.memmap(path, dtype, mode="r", shape=(count, *shape))
