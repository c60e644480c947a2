"""Contact sheets and plots: image tensors in, PIL pictures or PNG bytes out. Nothing here reads or writes files."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHEET_WIDTH = 1600  # pixels a contact sheet should not exceed
SHOWN_SIZE = 64  # smaller images are enlarged by a whole factor to about this many pixels
BACKGROUND = (236, 236, 238)  # not white: many data sets have white margins
INK = (40, 40, 44)
MAX_CAPTION = 150  # pixels; longer class names end in an ellipsis

Rows = Sequence[Mapping[str, Any]]
"""Lines of ``log.jsonl``: ``stage``, ``images_seen``, ``loss``, and now and then ``val_loss`` (band name to loss)."""


def as_rgb(images: Tensor | Sequence[Tensor], window: tuple[int, int] = (0, 65535)) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """Images to what a screen can show.

    Args:
        images: uint8 or uint16 ``[N, C, H, W]``, or a sequence of ``[C, H, W]``. One channel is shown grey, two as
            their mean, more by their first three.
        window: intensities shown as black and white; uint16 only.
    """
    return [_rgb(image.cpu().numpy(), window) for image in images]


def _rgb(image: np.ndarray, window: tuple[int, int]) -> UInt8[np.ndarray, "_ _ 3"]:
    if image.ndim != 3 or image.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"a picture needs uint8 or uint16 images [C, H, W]; got {image.dtype} {list(image.shape)}: "
            "convert floats in [-1, 1] first."
        )
    values = image.astype(np.float64)
    if image.dtype == np.uint16:
        low, high = window
        values = np.clip((values - low) / max(high - low, 1), 0, 1) * 255
    values = values.mean(axis=0, keepdims=True) if len(values) == 2 else values[:3]
    grey = np.rint(values).astype(np.uint8).transpose(1, 2, 0)
    return np.repeat(grey, 3, axis=2) if grey.shape[2] == 1 else grey


@lru_cache(maxsize=4)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib ships: Latin, Greek, Cyrillic, Arabic and many signs."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def _text_width(text: str, size: int) -> int:
    return math.ceil(_font(size).getlength(_one_line(text)))


def _one_line(text: str) -> str:
    return " ".join(text.split()) or " "


def _shorten(text: str, size: int, width: int) -> str:
    text = _one_line(text)
    if _text_width(text, size) <= width:
        return text
    while text and _text_width(text + "…", size) > width:
        text = text[:-1]
    return text + "…"


def _resize(image: np.ndarray, height: int, width: int) -> PILImage.Image:
    """Nearest neighbour, so that single pixels are seen."""
    return PILImage.fromarray(image).resize((width, height), PILImage.Resampling.NEAREST)


def _points(height: int) -> int:
    """Size of the text beside cells of this height."""
    return 12 if height < 160 else 15


def _gutter(captions: Sequence[str], height: int) -> int:
    """Pixels that captions need on the left of cells."""
    widths = [min(_text_width(caption, _points(height)), MAX_CAPTION) for caption in captions]
    return max(widths, default=0) + (12 if widths else 0)


def _sheet(
    rows: Sequence[Sequence[np.ndarray]],
    size: tuple[int, int],
    gaps: Sequence[int],
    *,
    columns: int,
    captions: Sequence[str] = (),
    gutter: int = 0,
    titles: Sequence[str] = (),
) -> PILImage.Image:
    """Rows of cells.

    Args:
        rows: RGB images, any size; a row may be short.
        size: height and width of a cell in pixels.
        gaps: repeated pattern of pixels between columns; the last of them is also the gap between rows and the margin.
        columns: cells that a row has room for.
        captions: one per row, in a gutter on the left.
        gutter: its pixels.
        titles: one per column, above.
    """
    (height, width), margin, points = size, gaps[-1], _points(size[0])
    head = 2 * points if titles else 0
    lefts = [gutter + margin]
    for column in range(columns):
        lefts.append(lefts[-1] + width + gaps[column % len(gaps)])
    right = lefts[-1] - gaps[(columns - 1) % len(gaps)] + margin
    sheet = PILImage.new("RGB", (right, head + margin + len(rows) * (height + margin)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        place = (lefts[column] + width / 2, margin + head / 2)
        draw.text(place, _shorten(title, points, width), fill=INK, font=_font(points), anchor="mm")
    for y, row in enumerate(rows):
        top = head + margin + y * (height + margin)
        if y < len(captions):
            caption = _shorten(captions[y], points, MAX_CAPTION)
            draw.text((gutter - 4, top + height / 2), caption, fill=INK, font=_font(points), anchor="rm")
        for x, image in enumerate(row):
            sheet.paste(_resize(image, height, width), (lefts[x], top))
    return sheet


def grid(
    images: Tensor | Sequence[Tensor],
    columns: int,
    captions: Sequence[str] = (),
    scale: int = 1,
    gap: int = 2,
    window: tuple[int, int] = (0, 65535),
) -> PILImage.Image:
    """Images in reading order.

    Args:
        images: uint8 or uint16 ``[N, C, H, W]``, or a sequence of ``[C, H, W]``; N >= 1. Different sizes are all shown
            at the largest one.
        columns: images per row.
        captions: one per row of the grid, usually class names.
        scale: whole factor of enlargement.
        gap: pixels between images.
        window: intensities shown as black and white; uint16 only.
    """
    shown = as_rgb(images, window)
    if not shown or columns < 1:
        raise ValueError(f"a grid needs images and columns; got {len(shown)} images, {columns} columns.")
    size = (scale * max(image.shape[0] for image in shown), scale * max(image.shape[1] for image in shown))
    rows = [shown[start : start + columns] for start in range(0, len(shown), columns)]
    return _sheet(rows, size, [gap], columns=columns, captions=captions, gutter=_gutter(captions, size[0]))


def class_grid(
    images_by_stage: Sequence[Tensor],
    labels: Tensor | Sequence[int] | None,
    class_names: Sequence[str],
    window: tuple[int, int] = (0, 65535),
) -> PILImage.Image:
    """Every class that occurs, each sample as the images of all stages side by side, enlarged to the last one's size.

    Args:
        images_by_stage: uint8 or uint16 ``[N, C, h, w]`` per stage, from the base up.
        labels: class per sample ``[N]``; None without classes.
        class_names: name per class; may be empty without classes.
        window: intensities shown as black and white; uint16 only.

    Returns:
        A sheet of at most about ``SHEET_WIDTH`` pixels: classes beside each other while they fit, the samples of a
        class on several lines where they do not.
    """
    stages = [as_rgb(images, window) for images in images_by_stage]
    if not stages or not stages[-1]:
        raise ValueError("a class grid needs at least one stage with one image; got none.")
    count, height, width = len(stages[-1]), *stages[-1][0].shape[:2]
    scale = max(1, SHOWN_SIZE // height)
    size, gaps = (height * scale, width * scale), [2] * (len(stages) - 1) + [8]
    members: dict[int, list[int]] = {}
    for sample, label in enumerate([0] * count if labels is None else [int(label) for label in labels]):
        members.setdefault(label, []).append(sample)
    names = {} if labels is None else {label: _class_name(label, class_names) for label in members}
    gutter = _gutter(list(names.values()), size[0])
    room = (SHEET_WIDTH - gutter) // (len(stages) * (size[1] + 2) + 6)
    per_line = max(1, min(room, max(len(samples) for samples in members.values())))
    blocks = []
    for label, samples in sorted(members.items()):
        lines = [samples[start : start + per_line] for start in range(0, len(samples), per_line)]
        rows = [[stage[sample] for sample in line for stage in stages] for line in lines]
        captions = [names[label]] if names else []
        blocks.append(_sheet(rows, size, gaps, columns=per_line * len(stages), captions=captions, gutter=gutter))
    return _stack(blocks)


def _class_name(label: int, class_names: Sequence[str]) -> str:
    """Labels beyond the names are the null label."""
    return class_names[label] if 0 <= label < len(class_names) else "no class"


def _stack(blocks: Sequence[PILImage.Image]) -> PILImage.Image:
    """Blocks of one width in reading order, as many beside each other as fit."""
    width = blocks[0].width
    columns = min(len(blocks), max(1, SHEET_WIDTH // width))
    lines = [blocks[start : start + columns] for start in range(0, len(blocks), columns)]
    sheet = PILImage.new("RGB", (columns * width, sum(max(b.height for b in line) for line in lines)), BACKGROUND)
    top = 0
    for line in lines:
        for x, block in enumerate(line):
            sheet.paste(block, (x * width, top))
        top += max(block.height for block in line)
    return sheet


def panel(
    columns: Sequence[tuple[str, Tensor | Sequence[Tensor]]],
    captions: Sequence[str] = (),
    window: tuple[int, int] = (0, 65535),
) -> PILImage.Image:
    """Versions of the same images beside each other, for SR: low-res, augmented low-res, SR, real.

    Args:
        columns: (title, uint8 or uint16 images ``[N, C, h, w]``); sizes may differ between columns, all are shown at
            the largest.
        captions: one per image, usually class names.
        window: intensities shown as black and white; uint16 only.
    """
    shown = [as_rgb(images, window) for _, images in columns]
    height = max(image.shape[0] for images in shown for image in images)
    width = max(image.shape[1] for images in shown for image in images)
    scale = max(1, 2 * SHOWN_SIZE // height)
    rows = list(zip(*shown, strict=True))
    size, titles = (height * scale, width * scale), [title for title, _ in columns]
    gutter = _gutter(captions, size[0])
    return _sheet(rows, size, [6], columns=len(columns), captions=captions, gutter=gutter, titles=titles)


def png_bytes(picture: PILImage.Image) -> bytes:
    """The picture as a PNG file in memory."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def loss_curves(rows: Rows) -> bytes:
    """PNG of training loss and validation loss per band of noise level, one line of plots per stage.

    Args:
        rows: of one or more stages, in the order of ``images_seen`` within each; losses that are not finite are left
            out. At least one row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stages = sorted({row["stage"] for row in rows})
    if not stages:
        raise ValueError("loss curves need at least one row of a log; got none.")
    figure = Figure(figsize=(11, 3.6 * len(stages)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for (left, right), stage in zip(figure.subplots(len(stages), 2, squeeze=False), stages, strict=True):
        own = [row for row in rows if row["stage"] == stage]
        _training_curve(left, own)
        left.set_title(f"stage {stage}: training loss")
        _validation_curves(right, own)
        right.set_title(f"stage {stage}: validation loss per band of log-SNR")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _finish_axes(axes: Axes, values: Sequence[float]) -> None:
    """Labels, a quiet grid, and a log scale where the losses span more than a factor of 4."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xlabel("images seen")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}")
    if values and min(values) > 0 and max(values) > 4 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")


def _training_curve(axes: Axes, rows: Rows) -> None:
    points = [(row["images_seen"], row["loss"]) for row in rows if _finite(row.get("loss"))]
    if not points:
        return _say_empty(axes, "no training loss logged yet")
    seen, loss = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
    reach = max(1, len(loss) // 40)
    sums = np.cumsum(np.concatenate([[0.0], loss]))
    ends = np.arange(1, len(loss) + 1)
    starts = np.maximum(ends - reach, 0)
    axes.plot(seen, loss, color="#9db7d5", linewidth=0.8, marker="." if len(loss) < 30 else None)
    axes.plot(seen, (sums[ends] - sums[starts]) / (ends - starts), color="#1f4e8c", linewidth=1.8)
    _finish_axes(axes, loss.tolist())


def _validation_curves(axes: Axes, rows: Rows) -> None:
    from matplotlib import colormaps

    measured = [row for row in rows if row.get("val_loss")]
    bands = list(measured[-1]["val_loss"]) if measured else []
    every: list[float] = []
    for number, band in enumerate(bands):
        points = [(row["images_seen"], row["val_loss"].get(band)) for row in measured]
        points = [(seen, loss) for seen, loss in points if _finite(loss)]
        if points:
            color = colormaps["viridis"](0.9 * number / max(len(bands) - 1, 1))
            axes.plot(*zip(*points, strict=True), color=color, label=band, marker="." if len(points) < 30 else None)
            every.extend(loss for _, loss in points)
    if not every:
        return _say_empty(axes, "no validation loss logged")
    _finish_axes(axes, every)
    title = "log-SNR\n(low: noisy)"
    axes.legend(title=title, fontsize=8, title_fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def _say_empty(axes: Axes, sentence: str) -> None:
    axes.text(0.5, 0.5, sentence, ha="center", va="center", transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
