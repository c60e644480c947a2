"""A source becomes one array: decode, crop, downsample and collect in parallel, in memory or in a cache file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from cdm.artifacts import load_json, save_json
from cdm.data import letters
from cdm.data.cache import FileRows, MemoryRows, map_rows, quarter_of_memory
from cdm.data.decode import (
    DecodeError,
    Pixels,
    area_down,
    centre_crop_square,
    decode,
    has_deep_colour,
    has_more_frames,
    to_bit_depth,
)
from cdm.data.image_array import ImageArray
from cdm.data.pixels import FULL_8, Window
from cdm.data.plan import scan_sizes
from cdm.data.source import ReadError, Source
from cdm.data.split import short_hash
from cdm.errors import UserError
from cdm.runtime import cache_folder, usable_cores

FEW_IMAGES = 10
_CACHE_VERSION = 3  # raise it when decoding changes, so that old cache files are not used

Progress = Callable[[int, int], None]
"""``progress(done, total)``, called after each image."""


class _Decoded(NamedTuple):
    pixels: Pixels  # [C, S, S]
    was_reduced: bool  # from 16 bits a channel to 8
    has_more: bool  # frames or pages than the first
    hash: str


def load_images(
    source: Source,
    size: int,
    channels: int = 3,
    bit_depth: Literal[8, 16, "auto"] = "auto",
    *,
    window: Window | None = None,
    cache_dir: Path | None = None,
    memory_limit: int | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> ImageArray:
    """Load every image at ``size`` x ``size``: upright, centre-cropped square, area-averaged.

    Files that cannot be used (broken, too small) are skipped and told in ``skipped``.

    Args:
        bit_depth: "auto" is 16 if any header looked at says so and ``channels`` is not 3.
        window: intensities shown as -1 and 1; None: 8 bits use (0, 255), 16 bits the smallest and largest found.
        cache_dir: for data over the limit; None: ``cache_folder``.
        memory_limit: bytes; data over it is mapped from a cache file. None: a quarter of the machine's memory.
        threads: of the pool; None: one per core.

    Raises:
        UserError: no usable image in all or in one class, or no room for the cache.
    """
    if bit_depth == "auto":
        bit_depth = 16 if channels != 3 and not source.letters and scan_sizes(source).has_16_bit else 8
    shape, dtype = (channels, size, size), np.dtype(f"u{bit_depth // 8}")
    limit = quarter_of_memory() if memory_limit is None else memory_limit
    if source.letters:
        decoded = _drawn(source, size, channels)
    else:
        decoded = _decoded(source, size, channels, bit_depth, threads or usable_cores())
    if len(source) * int(np.prod(shape)) * dtype.itemsize <= limit:
        array = _collect(source, MemoryRows(len(source), shape, dtype), decoded, bit_depth, progress)
    else:
        path = (cache_dir or cache_folder()) / f"{_key(source, shape, bit_depth)}.pixels"
        array = _load_cached(source, path, shape, bit_depth)
        if array is None:
            array = _collect(source, FileRows(path, shape, dtype), decoded, bit_depth, progress)
            array = dataclasses.replace(array, cache_file=path)
            _save_meta(path, array)
    skipped = (*source.skipped, *array.skipped)
    told = (f"{len(skipped)} of {len(array) + len(skipped)} files skipped.",) if skipped else ()
    return dataclasses.replace(array, window=window or array.window, skipped=skipped, warnings=(*told, *array.warnings))


def _collect(
    source: Source,
    store: MemoryRows | FileRows,
    decoded: Iterator[_Decoded | str],
    bit_depth: int,
    progress: Progress | None,
) -> ImageArray:
    rows: list[int] = []
    skipped: list[tuple[str, str]] = []
    hashes: list[str] = []
    reduced, with_more, low, high = 0, 0, 65535, 0
    with store:
        for i, result in enumerate(decoded):
            if isinstance(result, str):
                skipped.append((source.entries[i].path, result))
            else:
                pixels = result.pixels
                store.append(pixels[None])
                rows.append(i)
                hashes.append(result.hash)
                reduced += result.was_reduced
                with_more += result.has_more
                if bit_depth == 16:
                    low, high = min(low, int(pixels.min())), max(high, int(pixels.max()))
            if progress:
                progress(i + 1, len(source))
        _check_usable(source, rows, skipped)
        images = store.finish()
    window = FULL_8 if bit_depth == 8 else (low, max(high, low + 1))
    array = _make_array(source, images, skipped, window, hashes)
    return dataclasses.replace(array, warnings=tuple(_warnings(array, reduced, with_more)))


def _make_array(
    source: Source, images: np.ndarray, skipped: Sequence[tuple[str, str]], window: Window, hashes: Sequence[str]
) -> ImageArray:
    left_out = {name for name, _ in skipped}
    kept = [entry for entry in source.entries if entry.path not in left_out]
    return ImageArray(
        images=images,
        labels=np.array([entry.label for entry in kept], dtype=np.int64) if source.class_names else None,
        class_names=source.class_names,
        names=tuple(entry.path for entry in kept),
        fingerprint=source.fingerprint,
        hashes=tuple(hashes),
        window=window,
        bit_depth=8 * images.dtype.itemsize,
        skipped=tuple(skipped),
    )


def _decoded(source: Source, size: int, channels: int, bit_depth: int, threads: int) -> Iterator[_Decoded | str]:
    """Each entry in order, or the reason why it is skipped.

    At most a few images per thread wait at a time, so slow storage does not fill the memory.
    """

    def work(i: int) -> _Decoded | str:
        try:
            data = source.read(i)
            pixels = _pixels(data, size, channels)
            reduced = 8 * pixels.itemsize > bit_depth or (pixels.itemsize == 1 and has_deep_colour(data))
            has_more = has_more_frames(data)
        except (DecodeError, ReadError) as error:
            return str(error)
        planes = np.ascontiguousarray(to_bit_depth(pixels, bit_depth).transpose(2, 0, 1))
        return _Decoded(planes, reduced, has_more, short_hash(data))

    with ThreadPoolExecutor(threads) as pool:
        waiting = deque(pool.submit(work, i) for i in range(min(8 * threads, len(source))))
        following = iter(range(len(waiting), len(source)))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(work, i) for i in [next(following, None)] if i is not None)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _drawn(source: Source, size: int, channels: int) -> Iterator[_Decoded]:
    """The built-in letters, drawn at the size itself."""
    for start in range(0, len(source), letters.CHUNK):
        entries = np.arange(start, min(start + letters.CHUNK, len(source)))
        for i, image in zip(entries, letters.draw(letters.index_of(entries), size, channels=channels), strict=True):
            yield _Decoded(image, False, False, short_hash(source.entries[i].path.encode()))


def _pixels(data: bytes, size: int, channels: int) -> Pixels:
    """One image, ``[S, S, C]``. Raises ``DecodeError``."""
    pixels = decode(data, channels)
    height, width = pixels.shape[:2]
    if min(height, width) < size:
        raise DecodeError(f"{width}x{height} pixels, smaller than {size}")
    return area_down(centre_crop_square(pixels), size)


def _check_usable(source: Source, rows: list[int], skipped: list[tuple[str, str]]) -> None:
    if not rows:
        name, reason = skipped[0]
        raise UserError(
            f"none of the {len(skipped)} images of {source.where!r} can be used ({name!r}: {reason}); "
            "expected readable images of that form, at least as large as the last stage: give other data, or train at "
            "other --sizes or --channels."
        )
    used = {source.entries[i].label for i in rows}
    for label, class_name in enumerate(source.class_names):
        if label not in used:
            name, reason = next((n, r) for n, r in skipped if n.startswith(f"{class_name}/"))
            raise UserError(
                f"no image of the class {class_name!r} can be used ({name!r}: {reason}); expected at least one: "
                "mend or remove the folder, or train at other --sizes."
            )


def _warnings(array: ImageArray, reduced: int, with_more: int) -> Iterator[str]:
    if with_more:
        yield f"{with_more} of {len(array)} images have several frames or pages; the first of each is used."
    if reduced:
        yield f"{reduced} of {len(array)} images reduced from 16 bits to 8; --channels 1 keeps 16-bit greyscale."
    if len(array) == 1:
        yield "there is one image only; a model of it can do no more than repeat it."
    if array.labels is not None:
        counts = Counter(array.labels.tolist())
        few = [f"{array.class_names[label]} ({n})" for label, n in sorted(counts.items()) if n < FEW_IMAGES]
        if few:
            classes = "1 class" if len(few) == 1 else f"{len(few)} classes"
            yield f"under {FEW_IMAGES} images in {classes}: {', '.join(few[:8])}{', ...' * (len(few) > 8)}."


def _key(source: Source, shape: tuple[int, ...], bit_depth: int) -> str:
    """Name of the cache file: the data and all that decoding depends on."""
    recipe = [_CACHE_VERSION, os.path.abspath(source.where), source.fingerprint, source.stamp, shape, bit_depth]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:24]


def _save_meta(path: Path, array: ImageArray) -> None:
    """Written after the pixels: where it is, they are whole."""
    meta = {
        "count": len(array),
        "window": array.window,
        "skipped": array.skipped,
        "warnings": array.warnings,
        "hashes": array.hashes,
    }
    save_json(path.with_suffix(".json"), meta)


def _load_cached(source: Source, path: Path, shape: tuple[int, ...], bit_depth: int) -> ImageArray | None:
    """What an earlier run left, if it is whole."""
    try:
        meta = load_json(path.with_suffix(".json"))
    except UserError:
        return None
    images = map_rows(path, meta["count"], shape, np.dtype(f"u{bit_depth // 8}"))
    if images is None:
        return None
    skipped = [(name, reason) for name, reason in meta["skipped"]]
    array = _make_array(source, images, skipped, (meta["window"][0], meta["window"][1]), meta["hashes"])
    return dataclasses.replace(array, warnings=tuple(meta["warnings"]), cache_file=path)
