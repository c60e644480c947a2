"""Contact sheets show the pixels they are given, where they belong; plots are PNGs."""

import io

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from cdm.evaluate import pictures


def coloured(count: int, size: int, channels: int = 3) -> torch.Tensor:
    """Images of one intensity each: 10, 20, ..."""
    values = torch.arange(1, count + 1, dtype=torch.uint8) * 10
    return values[:, None, None, None].expand(count, channels, size, size).contiguous()


def found(sheet: PILImage.Image) -> set[int]:
    """Grey intensities that fill at least one 8x8 block of a sheet without text."""
    pixels = np.asarray(sheet)
    return {int(value) for value in np.unique(pixels[..., 0]) if (pixels == value).all(axis=2).sum() >= 64}


def test_grid_puts_images_in_reading_order_with_nearest_neighbour_enlargement():
    image = torch.tensor([[[0, 255], [255, 0]]], dtype=torch.uint8)
    sheet = np.asarray(pictures.grid([image, 255 - image, image], columns=2, scale=3, gap=1))
    assert sheet.shape == (1 + 6 + 1 + 6 + 1, 1 + 6 + 1 + 6 + 1, 3)
    enlarged = np.kron(image[0].numpy(), np.ones((3, 3), dtype=np.uint8))
    np.testing.assert_array_equal(sheet[1:7, 1:7, 0], enlarged)
    np.testing.assert_array_equal(sheet[1:7, 8:14, 2], 255 - enlarged)
    np.testing.assert_array_equal(sheet[8:14, 1:7, 1], enlarged)
    assert (sheet[8:14, 8:14] == pictures.BACKGROUND).all()


def test_captions_stand_in_a_gutter_and_leave_the_images_alone():
    images = coloured(4, 8)
    bare = pictures.grid(images, 2, scale=4)
    named = pictures.grid(images, 2, ["first", "a name that is much too long for any gutter to hold"], scale=4)
    assert named.height == bare.height
    assert 0 < named.width - bare.width <= pictures.MAX_CAPTION + 12
    gutter = named.width - bare.width
    assert named.crop((gutter, 0, named.width, named.height)).tobytes() == bare.tobytes()


@pytest.mark.parametrize(
    ("channels", "expected"), [(1, (10, 10, 10)), (2, (20, 20, 20)), (3, (10, 30, 50)), (5, (10, 30, 50))]
)
def test_channels_become_rgb(channels, expected):
    image = torch.tensor([10, 30, 50, 70, 90], dtype=torch.uint8)[:channels, None, None].expand(channels, 4, 4)
    assert tuple(pictures.as_rgb([image])[0][0, 0]) == expected


def test_sixteen_bits_are_shown_through_the_window():
    image = torch.tensor([[[100, 1000, 1500, 2000, 40000]]]).to(torch.uint16)
    shown = pictures.as_rgb([image], window=(1000, 2000))[0][0, :, 0]
    assert shown.tolist() == [0, 0, 128, 255, 255]


def test_float_images_are_refused():
    with pytest.raises(ValueError, match=r"uint8 or uint16.*float32"):
        pictures.as_rgb(torch.zeros(1, 3, 4, 4))


def test_class_grid_shows_every_sample_of_every_stage_at_one_size():
    low, high = coloured(6, 4), 100 + coloured(6, 16)
    sheet = pictures.class_grid([low, high], torch.tensor([0, 1, 2, 0, 1, 2]), ["a", "b", "c"])
    pixels = np.asarray(sheet)
    for value in [*range(10, 61, 10), *range(110, 161, 10)]:
        assert (pixels == value).all(axis=2).sum() == 64 * 64, value


@pytest.mark.parametrize(("classes", "each", "size"), [(26, 4, 32), (26, 10, 64), (3, 8, 256), (1, 64, 128)])
def test_sheets_fit_the_screen(classes, each, size):
    labels = [label for label in range(classes) for _ in range(each)]
    images = torch.zeros(len(labels), 1, size, size, dtype=torch.uint8)
    low = images[:, :, ::4, ::4]
    sheet = pictures.class_grid([low, images], labels, [f"class {label}" for label in range(classes)])
    assert sheet.width <= pictures.SHEET_WIDTH


def test_class_grid_of_uneven_classes_keeps_its_columns():
    images = coloured(5, 64)
    sheet = np.asarray(pictures.class_grid([images], [0, 0, 0, 7, 7], ["only"]))
    left = {value: np.argwhere((sheet == value).all(axis=2))[0][1] for value in (10, 40)}
    assert left[10] % (sheet.shape[1] // 2) == left[40] % (sheet.shape[1] // 2)


def test_class_grid_without_classes():
    sheet = pictures.class_grid([coloured(3, 64)], None, [])
    assert found(sheet) >= {10, 20, 30}


def test_panel_aligns_columns_of_different_sizes():
    low, high = coloured(2, 4), 100 + coloured(2, 16)
    sheet = np.asarray(pictures.panel([("low-res", low), ("SR", high)], ["a", "b"]))
    for row in range(2):
        at_low = np.argwhere((sheet == 10 * (row + 1)).all(axis=2))
        at_high = np.argwhere((sheet == 110 + 10 * row).all(axis=2))
        assert len(at_low) == len(at_high) == 128 * 128
        assert at_low[0][0] == at_high[0][0]
        assert at_low[0][1] < at_high[0][1]


def log(stage: int, count: int, **more: object) -> list[dict]:
    return [{"stage": stage, "images_seen": 64 * (i + 1), "loss": 1 / (i + 1), **more} for i in range(count)]


@pytest.mark.parametrize(
    "rows",
    [
        log(0, 1),
        log(0, 200) + log(1, 40, val_loss={"-8..0": 0.5, "0..8": 0.1}),
        [*log(0, 3), {"stage": 0, "images_seen": 999, "loss": float("nan"), "val_loss": {"all": None}}],
        [{"stage": 2, "images_seen": 5, "loss": None}],
    ],
    ids=["one row", "two stages", "not finite", "no loss"],
)
def test_loss_curves_is_a_png_with_a_line_of_plots_per_stage(rows):
    picture = PILImage.open(io.BytesIO(pictures.loss_curves(rows)))
    stages = len({row["stage"] for row in rows})
    assert picture.format == "PNG"
    assert picture.height == pytest.approx(stages * 396, abs=2)


def test_loss_curves_draw_what_is_logged():
    """Another loss gives another picture; the same gives the same bytes (no clock in it)."""
    assert pictures.loss_curves(log(0, 9)) == pictures.loss_curves(log(0, 9))
    assert pictures.loss_curves(log(0, 9)) != pictures.loss_curves(log(0, 8))


def test_empty_input_is_refused_in_words():
    with pytest.raises(ValueError, match="got 0 images"):
        pictures.grid([], 3)
    with pytest.raises(ValueError, match="got none"):
        pictures.class_grid([], None, [])
    with pytest.raises(ValueError, match="got none"):
        pictures.loss_curves([])


def test_captions_of_several_lines_become_one() -> None:
    assert pictures._text_width("a\nb\rc", 12) == pictures._text_width("a b c", 12)
