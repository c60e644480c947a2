"""Generated images as files: PNG with its making inside, so that any image can be made again."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image as PILImage
from PIL import PngImagePlugin
from torch import Tensor

from cdm.artifacts import write_atomic
from cdm.errors import UserError

KEY = "cdm"  # keyword of the PNG text chunk


def suffix_for(channels: int, bits: int) -> str:
    """``.png`` for what PNG holds: 1, 3 (RGB) and 4 (RGBA) channels of 8 bits, and 1 of 16 bits; else ``.npy``."""
    return ".png" if channels == 1 or (bits == 8 and channels in (3, 4)) else ".npy"


def save_png(
    path: str | Path, image: UInt8[Tensor, "c h w"] | UInt16[Tensor, "c h w"], info: Mapping[str, Any]
) -> Path:
    """Write one image and how it was made. The same image and info give the same bytes: no clock goes in.

    Args:
        path: of the PNG; its folder must exist.
        image: uint8 or uint16. What PNG cannot hold (``suffix_for``) becomes a NumPy array ``.npy`` ``[H, W, C]`` with
            ``info`` beside it in a ``.json``.
        info: JSON types: class, seed, index, settings, weights hash.

    Returns:
        The path of the image written, which ends in ``.png`` or ``.npy``.
    """
    path, array = Path(path), image.cpu().numpy()
    if array.ndim != 3 or array.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"save_png needs uint8 or uint16 [C, H, W]; got {array.dtype} {list(array.shape)}.")
    told = json.dumps(info, sort_keys=True)
    buffer = io.BytesIO()
    if suffix_for(len(array), 8 * array.itemsize) == ".npy":
        np.save(buffer, array.transpose(1, 2, 0), allow_pickle=False)  # [H, W, C], as images are read
        write_atomic(path.with_suffix(".json"), told.encode())
        write_atomic(path.with_suffix(".npy"), buffer.getvalue())
        return path.with_suffix(".npy")
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(KEY, told)
    picture = PILImage.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))
    picture.save(buffer, format="PNG", pnginfo=chunks)
    write_atomic(path, buffer.getvalue())
    return path


def read_png_info(path: str | Path) -> dict[str, Any]:
    """The ``info`` that ``save_png`` wrote, from the PNG or from the JSON beside a ``.npy``.

    Raises:
        UserError: The file is missing, unreadable, or was not made by ``cdm sample``.
    """
    path = Path(path)
    try:
        told = path.with_suffix(".json").read_text() if path.suffix == ".npy" else _read_chunk(path)
        info = json.loads(told)
    except FileNotFoundError:
        raise UserError(f"{path} is not there; expected an image that `cdm sample` made.") from None
    except (OSError, SyntaxError, ValueError):  # Pillow tells of a broken PNG by a SyntaxError
        info = None
    if not isinstance(info, dict):
        raise UserError(
            f"{path} does not tell how it was made; expected a PNG as `cdm sample` saved it: "
            "use the original file, since editors and messengers drop such notes."
        )
    return info


def _read_chunk(path: Path) -> str:
    with PILImage.open(path) as picture:
        if not isinstance(picture, PngImagePlugin.PngImageFile):
            raise ValueError("not a PNG")
        told = picture.info.get(KEY)
        if told is not None:  # before the pixels, as save_png writes it: these need not be decoded, but must be whole
            picture.verify()
            return told
        picture.load()
        return picture.text.get(KEY, "")
