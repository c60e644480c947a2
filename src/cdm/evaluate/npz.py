"""Sample batches and reference statistics in the ``.npz`` layout of ADM's evaluator. Nothing is ever unpickled.

A sample batch has ``arr_0``, uint8 ``[N, H, W, C]``, and may have ``arr_1``, integer labels ``[N]``. Reference
statistics have ``mu`` and ``sigma`` of the pool features, and may have ``mu_s`` and ``sigma_s`` of the spatial ones.
"""

from __future__ import annotations

import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from cdm.artifacts import told_by_path, write_atomic
from cdm.errors import CorruptError, UserError
from cdm.evaluate.stats import FeatureStats

SAMPLES, LABELS = "arr_0", "arr_1"
COUNT = "count"
"""Our addition to reference statistics; ADM's files do not tell how many images they are of."""


@dataclass(frozen=True)
class NpzImages:
    """A sample batch, its images still in the file.

    shape: ``(C, H, W)`` of an image.
    labels: int64 ``[N]``, or None.
    """

    path: Path
    count: int
    shape: tuple[int, int, int]
    labels: Int64[np.ndarray, " n"] | None

    def blocks(self, size: int = 256) -> Iterator[UInt8[Tensor, "b c h w"]]:
        """The images in order; no more than ``size`` of them are in memory."""
        channels, height, width = self.shape
        with _member(self.path, SAMPLES) as (file, _):
            for start in range(0, self.count, size):
                rows = min(size, self.count - start)
                pixels = np.frombuffer(_read(file, rows * height * width * channels), np.uint8)
                images = pixels.reshape(rows, height, width, channels).transpose(0, 3, 1, 2)
                yield torch.from_numpy(images.copy(order="C"))  # bytes are read-only, and torch warns of that

    def mapped(self) -> UInt8[np.ndarray, "n h w c"]:
        """All images, mapped from the file; where it is compressed, from a copy that goes when they are dropped.

        The file is read through once, so damage is found here.
        """
        channels, height, width = self.shape
        shape = (self.count, height, width, channels)
        with _opened(self.path) as archive, _member(self.path, SAMPLES) as (file, _):
            entry = archive.getinfo(f"{SAMPLES}.npy")
            begin, size = file.tell(), int(np.prod(shape))
            if entry.file_size < begin + size:
                raise EOFError
            if entry.compress_type == zipfile.ZIP_STORED:
                while file.read(_PIECE):
                    pass
                return np.memmap(
                    self.path, np.uint8, mode="r", offset=_content_at(self.path, entry) + begin, shape=shape
                )
            with tempfile.TemporaryFile() as copy:
                while piece := file.read(_PIECE):
                    copy.write(piece)
                copy.flush()
                return np.memmap(copy, np.uint8, mode="r", shape=shape)


@dataclass(frozen=True)
class Reference:
    """Reference statistics: of the pool features, and of the spatial ones if they are there."""

    main: FeatureStats
    spatial: FeatureStats | None


def is_reference(path: Path) -> bool:
    """Whether an ``.npz`` has reference statistics; it may have images as well."""
    return "mu" in _keys(path)


_PIECE = 1 << 24  # bytes read at a time


def _content_at(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where a member begins: after its own header of 30 bytes, its name and its extra field."""
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        header = file.read(30)
    return entry.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


# ---- sample batches --------------------------------------------------------------------------------------------------


def open_images(path: Path) -> NpzImages:
    """Raises ``UserError`` for wrong keys, shapes or dtypes, objects (pickles) and damaged files."""
    keys = _keys(path)
    if SAMPLES not in keys:
        raise UserError(
            f"{path} has {_listed(keys)}; expected {SAMPLES}, uint8 [N, H, W, C]: save the images under that name."
        )
    with _member(path, SAMPLES) as (file, header):
        shape, fortran, dtype = header
        if dtype != np.uint8:
            raise UserError(
                f"{SAMPLES} of {path} holds {dtype}{_with_nan(file, dtype)}; expected uint8, 0 to 255: convert it."
            )
        if len(shape) != 4 or 0 in shape or shape[3] > 4 or fortran:
            order = " in Fortran order" if fortran else ""
            raise UserError(
                f"{SAMPLES} of {path} has the shape {list(shape)}{order}; expected [N, H, W, C] with 1 to 4 channels."
            )
    count, height, width, channels = shape
    return NpzImages(path, count, (channels, height, width), _labels(path, count) if LABELS in keys else None)


def _with_nan(file: zipfile.ZipExtFile, dtype: np.dtype) -> str:
    """Whether there is a NaN among floats, said after the dtype."""
    if dtype.kind != "f":
        return ""
    while content := file.read(dtype.itemsize << 16):
        if np.isnan(np.frombuffer(content, dtype)).any():
            return " with NaN"
    return ""


def _labels(path: Path, count: int) -> Int64[np.ndarray, " n"]:
    labels = _array(path, LABELS)
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise UserError(
            f"{LABELS} of {path} is {labels.dtype} {list(labels.shape)}; expected integers [{count}], one per image."
        )
    return labels.astype(np.int64)


def write_images(
    path: Path,
    blocks: Iterable[UInt8[Tensor, "_ c h w"]],
    count: int,
    shape: tuple[int, int, int],
    labels: Int64[np.ndarray, " n"] | None = None,
) -> None:
    """Writes a sample batch that ADM's evaluator reads, block by block; the file appears when it is whole.

    Args:
        count: of all images that ``blocks`` will give.
        shape: ``(C, H, W)`` of each.
    """
    channels, height, width = shape

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            with archive.open(f"{SAMPLES}.npy", "w", force_zip64=True) as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, height, width, channels)}
                np.lib.format.write_array_header_1_0(member, header)
                written = 0
                for block in blocks:
                    assert block.shape[1:] == shape
                    member.write(block.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
                    written += len(block)
                assert written == count
            if labels is not None:
                _write_member(archive, LABELS, labels)

    write_atomic(path, write)


# ---- reference statistics --------------------------------------------------------------------------------------------


def read_reference(path: Path) -> Reference:
    """Raises ``UserError`` for wrong keys, shapes or dtypes, objects (pickles), NaN and damaged files."""
    keys = _keys(path)
    if not {"mu", "sigma"} <= set(keys):
        raise UserError(f"{path} has {_listed(keys)}; expected mu and sigma, the statistics of real images.")
    count = 0
    if COUNT in keys:
        count = _count(path)
    elif SAMPLES in keys:
        count = open_images(path).count
    spatial = _stats(path, "mu_s", "sigma_s", count) if {"mu_s", "sigma_s"} <= set(keys) else None
    return Reference(_stats(path, "mu", "sigma", count), spatial)


def _count(path: Path) -> int:
    found = _array(path, COUNT)
    if found.dtype.kind not in "iu" or found.size != 1 or int(found.reshape(-1)[0]) < 0:
        raise UserError(
            f"{COUNT} of {path} is {found.dtype} {found.tolist()!r:.40}; expected one whole number, of the images that "
            "the statistics are of: mend it, or leave it out."
        )
    return int(found.reshape(-1)[0])


def _stats(path: Path, mean_key: str, cov_key: str, count: int) -> FeatureStats:
    mean, cov = _array(path, mean_key), _array(path, cov_key)
    for key, array in ((mean_key, mean), (cov_key, cov)):
        if array.dtype.kind != "f":
            raise UserError(f"{key} of {path} holds {array.dtype}; expected floating-point statistics.")
        if not np.isfinite(array).all():
            raise UserError(f"{key} of {path} holds NaN or infinity; expected finite statistics: compute them again.")
    if mean.ndim != 1 or mean.size == 0 or cov.shape != (len(mean), len(mean)):
        raise UserError(
            f"{mean_key} and {cov_key} of {path} are {list(mean.shape)} and {list(cov.shape)}; expected [D] and "
            "[D, D], D at least 1: compute them again."
        )
    mean, cov = mean.astype(np.float64), cov.astype(np.float64)
    if np.abs(cov - cov.T).max() > 1e-6 * np.abs(cov).max() or (np.diagonal(cov) < 0).any():
        raise UserError(f"{cov_key} of {path} is not a covariance; expected a symmetric matrix: compute it again.")
    return FeatureStats(count, mean, (cov + cov.T) / 2)


def write_reference(path: Path, main: FeatureStats, spatial: FeatureStats | None = None) -> None:
    """Writes reference statistics that ADM's evaluator reads."""
    members: dict[str, np.ndarray] = {"mu": main.mean, "sigma": main.cov, COUNT: np.array(main.count, np.int64)}
    if spatial is not None:
        members |= {"mu_s": spatial.mean, "sigma_s": spatial.cov}

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for key, array in members.items():
                _write_member(archive, key, array)

    write_atomic(path, write)


# ---- members ---------------------------------------------------------------------------------------------------------


def _listed(keys: Iterable[str]) -> str:
    return "the arrays " + ", ".join(sorted(keys)) if keys else "no arrays"


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive; everything that is wrong with it becomes one sentence."""
    try:
        with told_by_path(path), zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise CorruptError(
            f"{path} is damaged or not an .npz file ({str(error) or 'it ends too early'}): put back a copy of it."
        ) from error


def _keys(path: Path) -> list[str]:
    with _opened(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


Header = tuple[tuple[int, ...], bool, np.dtype]


@contextmanager
def _member(path: Path, key: str) -> Iterator[tuple[zipfile.ZipExtFile, Header]]:
    """One array's bytes after its header (shape, whether in Fortran order, dtype)."""
    with _opened(path) as archive, archive.open(f"{key}.npy") as file:
        assert isinstance(file, zipfile.ZipExtFile)
        try:
            version = np.lib.format.read_magic(file)
            reader = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = reader(file)
        except ValueError as error:
            raise CorruptError(f"{key} of {path} is no NumPy array ({error}): put back a copy of the file.") from error
        if dtype.hasobject:
            raise UserError(
                f"{key} of {path} holds Python objects, which can run code when read; expected numbers: "
                "save it as a plain array."
            )
        yield file, (shape, fortran, dtype)


def _read(file: zipfile.ZipExtFile, size: int) -> bytes:
    content = file.read(size)
    if len(content) != size:
        raise EOFError
    return content


def _array(path: Path, key: str) -> np.ndarray:
    """A whole array; for small ones."""
    with _member(path, key) as (file, (shape, fortran, dtype)):
        flat = np.frombuffer(_read(file, dtype.itemsize * int(np.prod(shape))), dtype)
        return flat.reshape(shape, order="F" if fortran else "C")


def _write_member(archive: zipfile.ZipFile, key: str, array: np.ndarray) -> None:
    with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
