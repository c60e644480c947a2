"""Stage sizes from the data's own sizes, and from what the user asks for."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image as PILImage

from cdm.data.decode import NPY_MAGIC
from cdm.data.source import Source
from cdm.errors import UserError

MAX_TARGET = 256
MIN_SIZE = 8
FEW = 0.1
"""Smaller images than the planned top stage are no matter up to this share."""


@dataclass(frozen=True)
class Sizes:
    """What the headers of a sample of the images say. ``sides``: the shorter ones; ``has_16_bit``: any 16-bit."""

    sides: tuple[int, ...]
    has_16_bit: bool

    @property
    def median(self) -> int:
        return int(np.median(self.sides))

    def smaller_than(self, size: int) -> float:
        """Share of the images."""
        return sum(side < size for side in self.sides) / len(self.sides)


def scan_sizes(source: Source, sample: int = 2000) -> Sizes:
    """Read the headers of at most ``sample`` evenly spread images. Raises ``UserError`` if none is an image."""
    if source.letters:
        from cdm.data.letters import NATIVE_SIZE  # draws with torch, which checking sizes must not wait for

        return Sizes((NATIVE_SIZE,), False)
    rows = np.unique(np.linspace(0, len(source) - 1, min(sample, len(source))).round().astype(int))
    headers = [header for i in rows.tolist() if (header := _header(source, i))]
    if not headers:
        raise UserError(f"none of {len(rows)} files looked at in {source.where!r} is an image; expected image files.")
    sides, deep = zip(*headers, strict=True)
    return Sizes(sides, any(deep))


def _header(source: Source, i: int) -> tuple[int, bool] | None:
    """Shorter side and whether it has 16 bits; None if the header cannot be read."""
    try:
        with source.open_file(i) as file:
            if file.read(len(NPY_MAGIC)) == NPY_MAGIC:
                file.seek(0)
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
                return min(shape[:2]), dtype == np.uint16
            file.seek(0)
            with PILImage.open(file) as picture:
                return min(picture.size), picture.mode == "I" or picture.mode.startswith("I;16")
    except Exception:  # broken files make decoders raise almost anything; the loader tells which
        return None


def plan_sizes(median: int) -> tuple[int, ...]:
    """Sizes of the stages, base first, for a median shorter side in pixels.

    The target is the largest power of two up to the median, at most 256; the base is 16 for a target up to 64, else 32;
    then factors of at most 4, the smaller ones first: 256 gives 32, 64, 256 (Ho et al. 2021, section 4).
    """
    if median < MIN_SIZE:
        raise UserError(
            f"the images are too small: a median shorter side of {median} pixels; expected at least {MIN_SIZE}."
        )
    target = min(1 << (median.bit_length() - 1), MAX_TARGET)
    base = min(16 if target <= 64 else 32, target)
    sizes = [target]
    while sizes[0] > base:
        sizes.insert(0, max(sizes[0] // 4, base))
    return tuple(sizes)


def lost_images(found: Sizes, sizes: tuple[int, ...]) -> str | None:
    """A sentence on the images that the planned sizes leave out, where they are more than few, with the largest that
    keep enough of them; else None."""
    top = sizes[-1]
    lost = found.smaller_than(top)
    if lost <= FEW:
        return None
    told = f"{lost:.0%} of the images are smaller than the planned {top} pixels and will be skipped"
    lower = [1 << k for k in range(top.bit_length(), 2, -1) if MIN_SIZE <= 1 << k < top]
    if not lower or found.smaller_than(lower[-1]) >= lost:
        return told
    enough = max(FEW, found.smaller_than(lower[-1]))
    best = next(size for size in lower if found.smaller_than(size) <= enough)
    return f"{told}; --sizes {','.join(map(str, plan_sizes(best)))} leaves out {found.smaller_than(best):.0%}"


def check_sizes(text: str) -> tuple[int, ...]:
    """Parse and check the sizes a user gives, for example ``16,32,64``. Raises ``UserError``."""
    try:
        sizes = tuple(int(part) for part in text.replace(" ", "").split(","))
    except ValueError:
        raise UserError(f"sizes {text!r} are no list of whole numbers; expected for example 16,64.") from None
    if min(sizes) < MIN_SIZE:
        raise UserError(
            f"size {min(sizes)} in {text!r} is too small; expected at least {MIN_SIZE} pixels, for example 16,64."
        )
    for low, high in pairwise(sizes):
        if high <= low:
            raise UserError(
                f"sizes must rise from the base up; got {high} after {low} in {text!r}: use for example 16,64."
            )
        if high % low:
            raise UserError(
                f"each size must be a whole multiple of the one before; got {high} after {low} in {text!r}: "
                f"use for example {low},{low * max(2, round(high / low))}."
            )
    return sizes
