"""Rows of bytes on the disk, and a mark for each that is whole: written in any order by any number of processes.

A mark is set only after its row is on the disk, so a kill at any moment leaves rows that are missing, never rows that
are wrong. It is also a check of the row's bytes, which tells what happens to them afterwards.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from cdm.artifacts import told_by_path

Bytes = UInt8[np.ndarray, "n _"]
Marks = UInt8[np.ndarray, " n"]


def marks_of(parts: Sequence[Bytes]) -> Marks:
    """Of rows whose bytes lie in several parts: 1 to 255, so that 0 is free for a row that is missing."""
    whole = [np.ascontiguousarray(part) for part in parts]
    return np.array([_mark(rows) for rows in zip(*whole, strict=True)], np.uint8)


def _mark(rows: Sequence[np.ndarray]) -> int:
    check = 0
    for row in rows:
        check = zlib.crc32(row.data, check)
    return 1 + check % 255


def read_marks(path: Path, count: int) -> Marks:
    """The first ``count``; those that the file does not have are 0."""
    marks = np.zeros(count, np.uint8)
    with told_by_path(path):
        found = np.fromfile(path, np.uint8, count)
    marks[: len(found)] = found
    return marks


def damaged(marks: Marks, files: Sequence[tuple[Path, int]]) -> list[int]:
    """Numbers of the rows that are marked and are not what was marked: 254 of 255 such rows are found, and all that
    the files are too short for.

    files: of each part, with the bytes of a row.
    """
    there = np.flatnonzero(marks).tolist()
    rows = min(len(marks), *(path.stat().st_size // width for path, width in files))
    if not there or not rows:
        return there
    parts = [np.asarray(np.memmap(path, np.uint8, mode="r", shape=(rows, width))) for path, width in files]
    return [i for i in there if i >= rows or _mark([part[i] for part in parts]) != marks[i]]


def write_rows(path: Path, indices: Int64[np.ndarray, " b"], rows: Bytes) -> None:
    """To their places, neighbours in one go, and flushed. Plain writes, not writes to a mapping: on a full disk these
    raise an error, where a mapping kills the process.

    Raises:
        UserError: the disk is full.
    """
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


def write_marks(path: Path, indices: Int64[np.ndarray, " b"], marks: Marks) -> None:
    write_rows(path, indices, marks[:, None])


def _write_all(fd: int, content: bytes, offset: int) -> None:
    while content:  # the system may take a part of it only
        written = os.pwrite(fd, content, offset)
        content, offset = content[written:], offset + written
