"""Bytes of one image file to a square array: upright, in the asked channels, area-averaged to the asked size."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8, UInt16
from PIL import Image as PILImage
from PIL import ImageOps, TiffImagePlugin

from cdm.errors import UserError

Pixels = UInt8[np.ndarray, "h w c"] | UInt16[np.ndarray, "h w c"]
Square = UInt8[np.ndarray, "s s c"] | UInt16[np.ndarray, "s s c"]

NPY_MAGIC = b"\x93NUMPY"
warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning)  # Pillow's; such a file is skipped and named
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")


class DecodeError(UserError):
    """The bytes are not an image that can be used; the loader skips the file and names it."""


def decode(data: bytes, channels: int = 3) -> Pixels:
    """Decode one image.

    1 or 3 channels: any picture Pillow reads, turned upright by its EXIF tag; palettes, CMYK and single bits are
    converted, transparency is laid on white; 16-bit greyscale stays uint16 if ``channels`` is 1 (with 3 it is
    repeated). Other channel counts: NumPy ``.npy`` arrays ``[H, W, C]`` of uint8 or uint16, or pictures with exactly
    that many bands, as stored.

    Returns:
        uint8 or uint16 ``[H, W, channels]``.

    Raises:
        DecodeError: empty, truncated, not an image, or of other channels.
    """
    if not data:
        raise DecodeError("the file is empty")
    if data.startswith(NPY_MAGIC):
        return _decode_npy(data, channels)
    try:
        with PILImage.open(io.BytesIO(data)) as picture:
            picture.load()
            return _to_channels(ImageOps.exif_transpose(picture), channels)
    except DecodeError:
        raise
    except PILImage.UnidentifiedImageError:
        raise DecodeError("not an image") from None
    except PILImage.DecompressionBombError:
        raise DecodeError("over 179 million pixels, Pillow's limit: shrink or cut it first") from None
    except Exception as error:  # broken files make Pillow's decoders raise almost anything
        raise DecodeError(f"damaged image: {error}") from error


def has_deep_colour(data: bytes) -> bool:
    """Whether a PNG or TIFF has 16 bits a channel and more than one channel: Pillow cuts these to 8 without a word."""
    if data.startswith(b"\x89PNG"):
        return data[24:25] == b"\x10" and data[25:26] in (b"\x02", b"\x04", b"\x06")  # depth and colour type of IHDR
    if not data.startswith((b"II*\0", b"MM\0*")):
        return False
    with _opened(data) as picture:
        bits = picture.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, ()) if hasattr(picture, "tag_v2") else ()
    return len(bits) > 1 and max(bits) > 8


def has_more_frames(data: bytes) -> bool:
    """Whether a GIF or TIFF has several frames or pages; only the first is used. Raises ``DecodeError`` where they
    cannot be counted: the file is cut short, though the first frame may be whole."""
    if not data.startswith((b"GIF8", b"II*\0", b"MM\0*")):
        return False
    with _opened(data) as picture:
        return getattr(picture, "n_frames", 1) > 1


def is_grey(data: bytes) -> bool:
    """Whether the file itself holds one channel of intensities; places in a palette are none."""
    if data.startswith(NPY_MAGIC):
        array = np.load(io.BytesIO(data), allow_pickle=False)
        return array.ndim == 2 or array.shape[2] == 1
    with _opened(data) as picture:
        return len(picture.getbands()) == 1 and picture.mode != "P"


@contextmanager
def _opened(data: bytes) -> Iterator[Any]:
    """The picture, undecoded. Raises ``DecodeError``: broken files make Pillow raise almost anything."""
    try:
        with PILImage.open(io.BytesIO(data)) as picture:
            yield picture
    except Exception as error:
        raise DecodeError(f"damaged image: {error}") from error


def _decode_npy(data: bytes, channels: int) -> Pixels:
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError, MemoryError, SyntaxError) as error:
        raise DecodeError(f"damaged array: {error}") from error
    if array.dtype not in (np.uint8, np.uint16):
        raise DecodeError(f"an array of {array.dtype}; expected uint8 or uint16")
    array = array[:, :, None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] != channels:
        raise DecodeError(f"an array of shape {list(array.shape)}; expected [height, width, {channels}]")
    return array


def _to_channels(picture: PILImage.Image, channels: int) -> Pixels:
    if channels not in (1, 3):
        if len(picture.getbands()) != channels:
            raise DecodeError(f"{len(picture.getbands())} channels ({picture.mode}); expected {channels}")
        return np.asarray(picture)
    if picture.mode in _GREY_16 or picture.mode == "I":
        return np.repeat(_grey_16(picture)[:, :, None], channels, axis=2)
    if picture.mode == "F":
        raise DecodeError("32-bit floats; expected 8 or 16 bits a channel")
    mode = "L" if channels == 1 else "RGB"
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = PILImage.new("RGBA", picture.size, "white")
        picture = PILImage.alpha_composite(white, picture)
    array = np.asarray(picture if picture.mode == mode else picture.convert(mode))
    return array[:, :, None] if channels == 1 else array


def _grey_16(picture: PILImage.Image) -> UInt16[np.ndarray, "h w"]:
    """16-bit grey; Pillow has some as mode ``I``, 32 bits signed."""
    array = np.asarray(picture)
    if array.min() < 0 or array.max() > 65535:
        raise DecodeError(f"32-bit intensities from {array.min()} to {array.max()}; expected 0 to 65535")
    return array.astype(np.uint16)


def to_bit_depth(pixels: Pixels, bit_depth: int) -> Pixels:
    """Rescale full range to full range: 255 and 65535 are the same white. uint8 for 8 bits, uint16 for 16."""
    if bit_depth == 8:
        return pixels if pixels.dtype == np.uint8 else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return pixels if pixels.dtype == np.uint16 else pixels.astype(np.uint16) * np.uint16(257)


def centre_crop_square(pixels: Pixels) -> Square:
    """The largest centred square."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    y, x = (height - side) // 2, (width - side) // 2
    return pixels[y : y + side, x : x + side]


def area_down(pixels: Pixels, size: int) -> Square:
    """Each output pixel is the mean of the area it covers, parts of pixels included; ``[S, S, C]`` to ``[size, size,
    C]``, size <= S."""
    assert pixels.shape[0] == pixels.shape[1] >= size, pixels.shape
    if pixels.shape[0] == size:
        return pixels
    means = _band_means(_band_means(pixels, size).swapaxes(0, 1), size).swapaxes(0, 1)
    return np.rint(means).astype(pixels.dtype)


def _band_means(rows: np.ndarray, size: int) -> Float32[np.ndarray, "_ ..."]:
    """Mean of each of ``size`` equal bands of rows. (Pillow's BOX filter counts whole pixels only.)"""
    start, rest = np.divmod(np.arange(size + 1) * len(rows), size)
    whole = np.add.reduceat(rows, start[:-1], axis=0, dtype=np.float32)  # from the row where a band starts
    part = (rest / size).astype(np.float32).reshape(-1, *[1] * (rows.ndim - 1))
    before = rows[np.minimum(start, len(rows) - 1)] * part  # of that row, the part that belongs to the band before
    return (whole + before[1:] - before[:-1]) * np.float32(size / len(rows))
