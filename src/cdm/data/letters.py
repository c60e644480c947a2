"""The built-in data: capital letters in the text faces that matplotlib ships, in random colours and poses, at any size.

Letter ``index`` of a ``seed`` is a pure function of the two. Its class is ``index % 26``.
"""

from __future__ import annotations

import hashlib
import io
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, UInt8
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from cdm.data.image_array import ImageArray
from cdm.errors import UserError
from cdm.rng import Purpose, Rng

CLASS_NAMES = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
DEFAULT_COUNT = 26 * 400
NATIVE_SIZE = 64  # of the letters as files; a loader draws them at the size it needs

FACES = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmb10", "cmmi10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)

LETTERS_VERSION = "letters 2"  # part of fingerprints: change it when the letters change
CHUNK = 512  # letters drawn at a time
_COLOUR_TRIES = 12
_MIN_CONTRAST = 0.4  # difference of luma, of 1
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


Colours = Float32[np.ndarray, "n 3"]


@lru_cache(maxsize=4)
def letters_array(count: int, size: int, seed: int = 0) -> ImageArray:
    """The letters 0 to ``count`` - 1 of ``seed`` as a data set, 26 classes in turn. Equal calls share one array."""
    indices = np.arange(count)
    parts = [draw(indices[i : i + CHUNK], size, seed) for i in range(0, count, CHUNK)]
    names = tuple(f"{CLASS_NAMES[i % 26]}/{seed}-{i}.png" for i in range(count))
    fingerprint = hashlib.sha256(f"{LETTERS_VERSION} {count} {size} {seed}".encode()).hexdigest()
    return ImageArray(np.concatenate(parts), indices % 26, CLASS_NAMES, names, fingerprint)


def draw(
    indices: Int64[np.ndarray, " n"], size: int, seed: int = 0, channels: int = 3
) -> UInt8[np.ndarray, "n channels size size"]:
    """Draw the letters ``indices`` of ``seed`` at ``size`` x ``size`` pixels; about 0.3 ms each at 32 pixels.

    One channel is the luma; other counts than 1 and 3 are refused with ``UserError``.
    """
    if channels not in (1, 3):
        raise UserError(f"the built-in letters have 1 or 3 channels; got --channels {channels}.")
    draws = Rng(seed).uniform(Purpose.LETTERS, torch.from_numpy(indices), (6 + 6 * _COLOUR_TRIES,)).numpy()
    cover = np.stack([_cover(int(i) % 26, pose, size) for i, pose in zip(indices, draws[:, :6], strict=True)])
    ground, ink = _colours(draws[:, 6:])
    if channels == 1:
        ground, ink = (ground @ _LUMA)[:, None], (ink @ _LUMA)[:, None]
    part = cover[:, None].astype(np.float32) / 255
    mixed = ground[:, :, None, None] * (1 - part) + ink[:, :, None, None] * part
    return np.rint(255 * mixed).astype(np.uint8)


def _cover(letter: int, pose: Float64[np.ndarray, "6"], size: int) -> UInt8[np.ndarray, "size size"]:
    """How much of each pixel the letter covers. ``pose``: face, rotation, scale, shear, shift x, y, each in (0, 1)."""
    supersampling = 4 if size <= 64 else 2
    fine = size * supersampling
    glyph = _glyph(int(pose[0] * len(FACES)), letter, fine)
    angle = np.radians(3 * (2 * pose[1] - 1))
    shear = 0.03 * (2 * pose[3] - 1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ [[1.0, shear], [0.0, 1.0]]
    half = np.array(glyph.size) / 2
    extent = np.abs(turn) @ half  # half width and height once turned
    scale = fine * (0.82 + 0.08 * pose[2]) / 2 / extent.max()
    room = fine / 2 - scale * extent
    centre = fine / 2 + 0.3 * room * (2 * pose[4:6] - 1)
    back = np.linalg.inv(scale * turn)  # Pillow asks where each output pixel comes from
    start = half - back @ centre
    affine = (back[0, 0], back[0, 1], start[0], back[1, 0], back[1, 1], start[1])
    drawn = glyph.transform((fine, fine), PILImage.Transform.AFFINE, affine, PILImage.Resampling.BILINEAR)
    return np.asarray(drawn.reduce(supersampling))


@lru_cache(maxsize=26 * len(FACES))
def _glyph(face: int, letter: int, height: int) -> PILImage.Image:
    """The letter white on black, cut to its ink and one empty pixel around, drawn at about the size it is needed."""
    font = _font(face, height)
    left, top, right, bottom = font.getbbox(CLASS_NAMES[letter])
    picture = PILImage.new("L", (round(right - left) + 2, round(bottom - top) + 2))
    ImageDraw.Draw(picture).text((1 - left, 1 - top), CLASS_NAMES[letter], fill=255, font=font)
    return picture


@lru_cache(maxsize=len(FACES))
def _font(face: int, height: int) -> ImageFont.FreeTypeFont:
    spec = find_spec("matplotlib")  # its files only; importing it takes longer than drawing
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / f"{FACES[face]}.ttf"
    return ImageFont.truetype(str(path), height, layout_engine=ImageFont.Layout.BASIC)


def _colours(draws: Float64[np.ndarray, "n d"]) -> tuple[Colours, Colours]:
    """Ground and ink in [0, 1]: the first of several random pairs with enough contrast, else the last one's ground
    with black or white ink."""
    pairs = draws.reshape(len(draws), _COLOUR_TRIES, 2, 3)
    luma = pairs @ _LUMA
    good = np.abs(luma[..., 0] - luma[..., 1]) >= _MIN_CONTRAST
    found = np.any(good, axis=1)
    choice = np.where(found, np.argmax(good, axis=1), _COLOUR_TRIES - 1)
    rows = np.arange(len(draws))
    ground, ink = pairs[rows, choice, 0], pairs[rows, choice, 1]
    plain = np.where(luma[rows, choice, :1] < 0.5, 1.0, 0.0)
    ink = np.where(found[:, None], ink, plain)
    return ground.astype(np.float32), ink.astype(np.float32)


def default_names() -> list[tuple[str, int]]:
    """Names and classes of the default letters, sorted by name: ``A/0000.png``, ..."""
    per_class = DEFAULT_COUNT // 26
    return [(f"{name}/{k:04d}.png", c) for c, name in enumerate(CLASS_NAMES) for k in range(per_class)]


def index_of(entry: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Index of the letter that stands at each place ``entry`` of ``default_names``."""
    label, k = np.divmod(entry, DEFAULT_COUNT // 26)
    return 26 * k + label


def open_png(entry: int) -> io.BytesIO:
    """One default letter as a PNG file of ``NATIVE_SIZE`` pixels."""
    image = draw(index_of(np.array([entry])), NATIVE_SIZE)[0]
    buffer = io.BytesIO()
    PILImage.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(buffer, "PNG")
    buffer.seek(0)
    return buffer
