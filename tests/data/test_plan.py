"""Stage sizes: planned from the data, or checked as the user gave them."""

import io
import re
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image as PILImage

from cdm.data.plan import Sizes, check_sizes, lost_images, plan_sizes, scan_sizes
from cdm.data.source import open_source
from cdm.errors import UserError


@pytest.mark.parametrize(
    ("median", "sizes"),
    [
        (8, (8,)),
        (16, (16,)),
        (31, (16,)),
        (32, (16, 32)),
        (64, (16, 64)),
        (127, (16, 64)),
        (128, (32, 128)),
        (256, (32, 64, 256)),
        (4000, (32, 64, 256)),
    ],
)
def test_plan(median, sizes):
    assert plan_sizes(median) == sizes


def test_every_plan_is_one_a_user_may_give():
    for median in range(8, 600):
        sizes = plan_sizes(median)
        assert check_sizes(",".join(map(str, sizes))) == sizes
        assert all(high // low <= 4 for low, high in pairwise(sizes))


def test_too_small_to_plan():
    with pytest.raises(UserError, match="too small: a median shorter side of 5"):
        plan_sizes(5)


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ((64,) * 9 + (63,), None),  # a tenth is no matter
        (
            (64,) * 8 + (63,) * 2,
            "20% of the images are smaller than the planned 64 pixels and will be skipped; --sizes 16,32 leaves out 0%",
        ),
        ((300,) * 12 + (200,) * 7 + (20,), "40% .* planned 256 pixels .*; --sizes 32,128 leaves out 5%"),
        ((300,) * 12 + (9,) * 8, "40% .* planned 256 pixels .*; --sizes 8 leaves out 0%"),
        ((300,) * 12 + (100,) * 4 + (7,) * 4, "40% .* planned 256 pixels .*; --sizes 16,64 leaves out 20%"),
        ((12,) * 8 + (6,) * 2, "20% of the images are smaller than the planned 8 pixels and will be skipped$"),
        ((40,) * 8 + (6,) * 2, "20% .* planned 32 pixels and will be skipped$"),
    ],
)
def test_a_plan_that_leaves_images_out_is_told_with_one_that_does_not(sides, message):
    found = Sizes(sides, False)
    told = lost_images(found, plan_sizes(found.median))
    assert told is None if message is None else told is not None and re.match(message, told), told


@pytest.mark.parametrize(("text", "sizes"), [("16,32,64", (16, 32, 64)), (" 32 ", (32,)), ("24, 72", (24, 72))])
def test_sizes_that_work(text, sizes):
    assert check_sizes(text) == sizes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no list of whole numbers"),
        ("16,x", "no list of whole numbers"),
        ("16,32.5", "no list of whole numbers"),
        ("16,16", "must rise from the base up; got 16 after 16"),
        ("64,16", "must rise from the base up; got 16 after 64"),
        ("16,40", "whole multiple of the one before; got 40 after 16 .*use for example 16,32"),
        ("4,16", "size 4 .* too small"),
        ("-16,32", "size -16 .* too small"),
    ],
)
def test_sizes_that_do_not_rise_or_divide(text, message):
    with pytest.raises(UserError, match=message):
        check_sizes(text)


def test_scan_reads_the_median_of_the_shorter_sides(tmp_path):
    for i, size in enumerate([(30, 90), (100, 40), (50, 50)]):
        PILImage.new("RGB", size).save(tmp_path / f"{i}.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    sizes = scan_sizes(open_source(tmp_path))
    assert (sizes.median, sizes.has_16_bit, sorted(sizes.sides)) == (40, False, [30, 40, 50])


@pytest.mark.parametrize("kind", ["png", "npy"])
def test_scan_finds_16_bits(tmp_path, kind):
    array = np.zeros((40, 33), np.uint16)
    if kind == "png":
        PILImage.fromarray(array).save(tmp_path / "a.png")
    else:
        np.save(tmp_path / "a.npy", array)
    assert scan_sizes(open_source(tmp_path)).has_16_bit
    assert scan_sizes(open_source(tmp_path)).median == 33


def test_scan_of_a_sample_is_spread_evenly(tmp_path):
    for i in range(100):
        buffer = io.BytesIO()
        PILImage.new("L", (10 + i, 200)).save(buffer, "PNG")
        (tmp_path / f"{i:03d}.png").write_bytes(buffer.getvalue())
    sizes = scan_sizes(open_source(tmp_path), sample=11)
    assert len(sizes.sides) == 11
    assert abs(sizes.median - 60) <= 1


def test_scan_without_any_image(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(UserError, match="none of 1 files"):
        scan_sizes(open_source(tmp_path))
