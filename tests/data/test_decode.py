"""One file to pixels: every way a picture can be stored, and every way it can be broken."""

import io

import numpy as np
import pytest
from PIL import Image as PILImage

from cdm.data.decode import DecodeError, area_down, centre_crop_square, decode, to_bit_depth

GEN = np.random.default_rng(0)


def png(picture: PILImage.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def npy(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


RGB = GEN.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = GEN.integers(0, 256, (6, 9), dtype=np.uint8)
DEEP = GEN.integers(0, 65536, (6, 9), dtype=np.uint16)


def test_rgb_is_unchanged():
    np.testing.assert_array_equal(decode(png(PILImage.fromarray(RGB))), RGB)


def test_grey_is_repeated_for_three_channels_and_kept_for_one():
    data = png(PILImage.fromarray(GREY))
    np.testing.assert_array_equal(decode(data), np.repeat(GREY[:, :, None], 3, axis=2))
    np.testing.assert_array_equal(decode(data, 1), GREY[:, :, None])


def test_colour_becomes_luma_for_one_channel():
    luma = RGB @ np.array([0.299, 0.587, 0.114])  # ITU-R 601-2
    assert np.abs(decode(png(PILImage.fromarray(RGB)), 1)[:, :, 0] - luma).max() <= 1


def test_single_bit():
    picture = PILImage.fromarray(GREY).convert("1", dither=PILImage.Dither.NONE)
    expected = np.where(GREY >= 128, 255, 0).astype(np.uint8)
    np.testing.assert_array_equal(decode(png(picture), 1)[:, :, 0], expected)
    np.testing.assert_array_equal(decode(png(picture))[:, :, 2], expected)


def test_palette():
    picture = PILImage.fromarray(RGB).quantize(200)
    np.testing.assert_array_equal(decode(png(picture)), np.asarray(picture.convert("RGB")))


def test_palette_with_transparency_is_laid_on_white():
    picture = PILImage.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    pixels = decode(png(picture, transparency=0))
    assert pixels.tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_cmyk_jpeg():
    picture = PILImage.new("CMYK", (16, 16), (255, 0, 0, 0))
    pixels = decode(png(picture, "JPEG", quality=100)).astype(int)
    assert np.abs(pixels - [0, 255, 255]).max() <= 2, "full cyan is no red"


def test_alpha_is_laid_on_white():
    alpha = GEN.integers(0, 256, (6, 9, 1), dtype=np.uint8)
    picture = PILImage.fromarray(np.concatenate([RGB, alpha], axis=2))
    part = alpha / 255.0
    expected = RGB * part + 255 * (1 - part)
    assert np.abs(decode(png(picture)) - expected).max() <= 1
    picture = PILImage.fromarray(np.concatenate([GREY[:, :, None], alpha], axis=2))
    assert picture.mode == "LA"
    expected = GREY[:, :, None] * part + 255 * (1 - part)
    assert np.abs(decode(png(picture), 1) - expected).max() <= 1


def test_transparent_colour_of_rgb_is_laid_on_white():
    picture = PILImage.new("RGB", (2, 1), (1, 2, 3))
    picture.putpixel((1, 0), (9, 9, 9))
    assert decode(png(picture, transparency=(1, 2, 3))).tolist() == [[[255, 255, 255], [9, 9, 9]]]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_kept(format):
    data = png(PILImage.fromarray(DEEP), format)
    pixels = decode(data, 1)
    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels[:, :, 0], DEEP)
    np.testing.assert_array_equal(decode(data, 3), np.repeat(DEEP[:, :, None], 3, axis=2))


def test_32_bit_tiff_within_16_bits_is_kept_and_beyond_refused():
    data = png(PILImage.fromarray(DEEP.astype(np.int32)), "TIFF")
    np.testing.assert_array_equal(decode(data, 1)[:, :, 0], DEEP)
    with pytest.raises(DecodeError, match="to 70000; expected 0 to 65535"):
        decode(png(PILImage.fromarray(np.full((4, 4), 70000, np.int32)), "TIFF"), 1)


def test_float_tiff_is_refused():
    with pytest.raises(DecodeError, match="32-bit floats"):
        decode(png(PILImage.fromarray(np.zeros((4, 4), np.float32)), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("deep", [False, True])
def test_exif_rotated_images_stand_upright(orientation, deep):
    upright = DEEP if deep else RGB
    stored = {  # EXIF 2.3, tag 0x0112: how the stored rows and columns show the upright picture
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a[:, ::-1].swapaxes(0, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: a[::-1].swapaxes(0, 1),
    }[orientation](upright)
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    pixels = decode(png(PILImage.fromarray(np.ascontiguousarray(stored)), exif=exif), 1 if deep else 3)
    np.testing.assert_array_equal(pixels.squeeze(), upright)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_arrays_of_many_channels(dtype):
    array = GEN.integers(0, 256, (5, 4, 7)).astype(dtype)
    np.testing.assert_array_equal(decode(npy(array), 7), array)
    with pytest.raises(DecodeError, match=r"shape \[5, 4, 7\]; expected \[height, width, 3\]"):
        decode(npy(array), 3)


def test_array_without_a_channel_axis_has_one_channel():
    np.testing.assert_array_equal(decode(npy(DEEP), 1)[:, :, 0], DEEP)


def test_four_channels_of_a_png_are_kept_as_stored():
    picture = PILImage.fromarray(GEN.integers(0, 256, (3, 3, 4), dtype=np.uint8))
    np.testing.assert_array_equal(decode(png(picture), 4), np.asarray(picture))
    with pytest.raises(DecodeError, match="3 channels"):
        decode(png(PILImage.fromarray(RGB)), 4)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def broken_files() -> dict[str, bytes]:
    whole = png(PILImage.fromarray(GEN.integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    jpeg = png(PILImage.fromarray(RGB.repeat(20, 0).repeat(20, 1)), "JPEG")
    return {
        "zero-byte": b"",
        "text file named .png": b"this is no picture\n",
        "truncated png": whole[: len(whole) // 2],
        "truncated header": whole[:20],
        "truncated jpeg": jpeg[: len(jpeg) // 2],
        "truncated array": npy(np.zeros((9, 9, 3), np.uint8))[:-5],
        "array header only": npy(np.zeros((9, 9, 3), np.uint8))[:9],
        "float array": npy(np.zeros((9, 9, 3))),
        "flat array": npy(np.zeros(9, np.uint8)),
        "pickled array": npy(np.array([Bomb()], dtype=object), allow_pickle=True),
    }


@pytest.mark.parametrize("name", broken_files())
def test_broken_files_are_decode_errors(name):
    with pytest.raises(DecodeError) as caught:
        decode(broken_files()[name])
    assert "0x" not in str(caught.value), "the message is for people"


def test_bit_depths_round_trip_and_keep_white_white():
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    deep = to_bit_depth(eight, 16)
    assert (deep.dtype, deep.max()) == (np.uint16, 65535)
    np.testing.assert_array_equal(to_bit_depth(deep, 8), eight)
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    np.testing.assert_array_equal(to_bit_depth(every, 8), np.rint(every / 257).astype(np.uint8))


def test_centre_crop():
    array = np.arange(5 * 8, dtype=np.uint8).reshape(5, 8, 1)
    np.testing.assert_array_equal(centre_crop_square(array), array[:, 1:6])
    np.testing.assert_array_equal(centre_crop_square(array.swapaxes(0, 1)), array.swapaxes(0, 1)[1:6])


@pytest.mark.parametrize(("side", "size"), [(12, 4), (12, 12), (10, 4), (7, 3), (64, 1), (17, 16)])
@pytest.mark.parametrize(
    ("dtype", "channels"), [(np.uint8, 1), (np.uint8, 3), (np.uint8, 5), (np.uint16, 1), (np.uint16, 3)]
)
def test_area_down_is_the_mean_over_each_area(side, size, dtype, channels):
    array = GEN.integers(0, np.iinfo(dtype).max, (side, side, channels), endpoint=True).astype(dtype)
    fine = array.astype(float).repeat(size, 0).repeat(size, 1)  # side * size rows: whole blocks of side
    exact = fine.reshape(size, side, size, side, channels).mean(axis=(1, 3))
    result = area_down(array, size)
    assert (result.dtype, result.shape) == (dtype, exact.shape)
    assert np.abs(result - exact).max() <= (0.5001 if dtype == np.uint8 else 0.51), "float32 has 24 bits"
