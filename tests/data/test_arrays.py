"""A source to an array: what is skipped and why, bit depths, windows, and the cache file."""

import io
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from cdm.data.arrays import load_images
from cdm.data.source import open_source
from cdm.errors import UserError

DATA = Path(__file__).parents[2].parent / "shared" / "data"
GEN = np.random.default_rng(0)


def noise(*shape: int, dtype=np.uint8) -> np.ndarray:
    return GEN.integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)


def save(path: Path, array: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.fromarray(array).save(path, **options)


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Two classes with every kind of bad and odd file among good ones."""
    root = tmp_path / "mixed"
    for i in range(12):
        save(root / f"good/{i:02d}.png", noise(32, 32, 3))
    good = (root / "good/00.png").read_bytes()
    save(root / "odd/cmyk.jpg", np.full((32, 32, 3), 90, np.uint8))
    PILImage.new("CMYK", (32, 32), (255, 0, 0, 0)).save(root / "odd/cmyk.jpg")
    PILImage.fromarray(noise(32, 32, 3)).quantize(16).save(root / "odd/palette.png")
    save(root / "odd/alpha.png", noise(32, 32, 4))
    save(root / "odd/deep.png", noise(32, 32, dtype=np.uint16))
    exif = PILImage.Exif()
    exif[0x0112] = 6
    save(root / "odd/rotated.jpg", noise(32, 48, 3), exif=exif)
    (root / "odd/truncated.png").write_bytes(good[: len(good) // 2])
    (root / "odd/zero.png").touch()
    (root / "odd/text.png").write_text("no picture")
    save(root / "odd/small.png", noise(15, 200, 3))
    return root


def test_bad_files_are_skipped_and_named_and_odd_ones_converted(mixed):
    array = load_images(open_source(mixed), 16)
    reasons = dict(array.skipped)
    assert set(reasons) == {"odd/truncated.png", "odd/zero.png", "odd/text.png", "odd/small.png"}
    assert reasons["odd/zero.png"] == "the file is empty"
    assert reasons["odd/text.png"] == "not an image"
    assert reasons["odd/small.png"] == "200x15 pixels, smaller than 16"
    assert "damaged image" in reasons["odd/truncated.png"]
    assert [name for name in array.names if name.startswith("odd")] == [
        f"odd/{name}" for name in ("alpha.png", "cmyk.jpg", "deep.png", "palette.png", "rotated.jpg")
    ]
    assert array.images.shape == (17, 3, 16, 16) and array.images.dtype == np.uint8
    assert array.labels.tolist() == [0] * 12 + [1] * 5
    cyan = array.images[array.names.index("odd/cmyk.jpg")].astype(int)
    assert np.abs(cyan - np.array([0, 255, 255]).reshape(3, 1, 1)).max() <= 3
    skipped, reduced, few = array.warnings
    assert skipped == "4 of 21 files skipped."
    assert "1 of 17 images reduced from 16 bits" in reduced
    assert few == "under 10 images in 1 class: odd (5)."


def test_files_that_are_no_entries_count_as_skipped(mixed, tmp_path):
    """Also where the images come from a cache that was made without them."""
    load = lambda: load_images(open_source(mixed), 16, cache_dir=tmp_path / "cache", memory_limit=0)  # noqa: E731
    assert load().warnings[0] == "4 of 21 files skipped."
    (mixed / "good" / "gone.png").symlink_to(mixed / "nowhere")
    (mixed / "good" / "photo.heic").touch()
    array = load()
    assert [name for name, _ in array.skipped[:2]] == ["good/gone.png", "good/photo.heic"] and len(array.skipped) == 6
    assert array.warnings[0] == "6 of 23 files skipped." and len(array.warnings) == 3


def deep_png(path: Path, colour_type: int, channels: int) -> None:
    """16 bits a channel, big-endian, 20 x 20; Pillow does not write it."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in noise(20, 20 * channels, dtype=np.uint16))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 20, 20, 16, colour_type, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in (*chunks, (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    path.write_bytes(content)


def deep_tiff(path: Path) -> None:
    """RGB of 16 bits a channel in one strip; Pillow does not write it."""
    pixels = noise(20, 20, 3, dtype=np.uint16).astype("<u2").tobytes()
    tags = [(256, 3, 1, 20), (257, 3, 1, 20), (258, 3, 3, 200), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 206)]
    tags += [(277, 3, 1, 3), (278, 3, 1, 20), (279, 4, 1, len(pixels)), (284, 3, 1, 1)]
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    path.write_bytes(head.ljust(200, b"\0") + struct.pack("<3H", 16, 16, 16) + pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_deep_colour_cut_to_8_bits_is_said(tmp_path, channels):
    deep_png(tmp_path / "rgb.png", 2, 3)
    deep_png(tmp_path / "rgba.png", 6, 4)
    deep_tiff(tmp_path / "rgb.tif")
    save(tmp_path / "plain.png", noise(20, 20, 3))
    save(tmp_path / "plain.tif", noise(20, 20, 3))
    array = load_images(open_source(tmp_path), 16, channels)
    assert array.bit_depth == 8 and not array.skipped
    assert "3 of 5 images reduced from 16 bits to 8" in array.warnings[0]


def test_images_are_cropped_and_averaged(tmp_path):
    pixels = noise(32, 64, 3)
    save(tmp_path / "a.png", pixels)
    array = load_images(open_source(tmp_path), 16)
    exact = pixels[:, 16:48].reshape(16, 2, 16, 2, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    assert np.abs(array.images[0] - exact).max() <= 0.5001
    assert array.labels is None and array.class_names == ()


def test_one_image_only_is_allowed_with_a_warning(tmp_path):
    save(tmp_path / "a.png", noise(32, 32, 3))
    array = load_images(open_source(tmp_path), 32)
    assert len(array) == 1
    assert array.warnings == ("there is one image only; a model of it can do no more than repeat it.",)


def test_all_images_too_small(tmp_path):
    save(tmp_path / "a.png", noise(20, 20, 3))
    with pytest.raises(UserError, match=r"none of the 1 images .*20x20 pixels, smaller than 32.*at other --sizes"):
        load_images(open_source(tmp_path), 32)


def test_a_class_left_without_images_is_named(tmp_path):
    save(tmp_path / "a/1.png", noise(40, 40, 3))
    save(tmp_path / "b/1.png", noise(20, 20, 3))
    with pytest.raises(UserError, match=r"no image of the class 'b' can be used \('b/1.png': 20x20"):
        load_images(open_source(tmp_path), 32)


@pytest.mark.parametrize("threads", [1, 3])
def test_zip_equals_folder(mixed, tmp_path, threads):
    with zipfile.ZipFile(tmp_path / "mixed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(mixed.rglob("*.*"), reverse=True):
            archive.write(path, f"top/{path.relative_to(mixed).as_posix()}")
    a = load_images(open_source(mixed), 16, threads=1)
    b = load_images(open_source(tmp_path / "mixed.zip"), 16, threads=threads)
    np.testing.assert_array_equal(a.images, b.images)
    assert (a.names, a.skipped, a.fingerprint) == (b.names, b.skipped, b.fingerprint)


def test_16_bit_greyscale_is_kept_with_its_window(tmp_path):
    deep = (1000 + noise(32, 32, dtype=np.uint16) // 32).astype(np.uint16)
    deep[0, 0], deep[1, 1] = 1000, 5000
    save(tmp_path / "a.png", deep)
    source = open_source(tmp_path)
    array = load_images(source, 32, channels=1)
    assert (array.bit_depth, array.window, array.images.dtype) == (16, (1000, 5000), np.uint16)
    np.testing.assert_array_equal(array.images[0, 0], deep)
    assert load_images(source, 32, channels=1, window=(0, 4095)).window == (0, 4095)
    assert load_images(source, 32, channels=3).images.dtype == np.uint8
    eight = load_images(source, 32, channels=1, bit_depth=8)
    np.testing.assert_array_equal(eight.images[0, 0], np.rint(deep / 257).astype(np.uint8))
    assert eight.window == (0, 255)


def test_8_bit_images_among_16_bit_ones_are_rescaled(tmp_path):
    save(tmp_path / "a.png", np.full((16, 16), 65535, np.uint16))
    save(tmp_path / "b.png", np.full((16, 16), 128, np.uint8))
    array = load_images(open_source(tmp_path), 16, channels=1)
    assert array.images[:, 0, 0, 0].tolist() == [65535, 128 * 257]


def test_a_run_loads_its_data_again_as_it_did_at_first(tmp_path):
    """16-bit files that hold 0 to 255, as 8-bit cameras save them: the window is that of 8 bits, the depth is not."""
    save(tmp_path / "a.png", np.arange(256, dtype=np.uint16).reshape(16, 16))
    source = open_source(tmp_path)
    first = load_images(source, 16, channels=1)
    assert (first.bit_depth, first.window) == (16, (0, 255))
    again = load_images(source, 16, 1, first.bit_depth, window=first.window)
    assert np.array_equal(first.images, again.images) and again.images.dtype == np.uint16
    save(tmp_path / "a.png", np.full((16, 16), 128, np.uint8))
    assert load_images(source, 16, 1, 16, window=(500, 40000)).images.dtype == np.uint16


def test_flat_16_bit_data_has_a_window_that_can_be_divided_by(tmp_path):
    save(tmp_path / "a.png", np.full((16, 16), 700, np.uint16))
    assert load_images(open_source(tmp_path), 16, channels=1).window == (700, 701)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_many_channels_from_arrays(tmp_path, dtype):
    cube = noise(16, 16, 6, dtype=dtype)
    buffer = io.BytesIO()
    np.save(buffer, cube)
    (tmp_path / "a.npy").write_bytes(buffer.getvalue())
    array = load_images(open_source(tmp_path), 16, channels=6)
    np.testing.assert_array_equal(array.images[0], cube.transpose(2, 0, 1))


def same(a, b) -> None:
    np.testing.assert_array_equal(a.images, b.images)
    np.testing.assert_array_equal(a.labels, b.labels)
    told = [(x.names, x.class_names, x.skipped, x.warnings, x.window, x.bit_depth, x.fingerprint) for x in (a, b)]
    assert told[0] == told[1]


@pytest.mark.parametrize("channels", [1, 3])
def test_mapped_data_equals_data_in_memory_and_is_used_again(mixed, tmp_path, channels):
    cache = tmp_path / "cache"
    in_memory = load_images(open_source(mixed), 16, channels)
    counted: list[int] = []

    def load():
        counted.clear()
        return load_images(
            open_source(mixed), 16, channels, cache_dir=cache, memory_limit=0, progress=lambda i, n: counted.append(i)
        )

    mapped = load()
    assert isinstance(mapped.images, np.memmap) and in_memory.cache_file is None
    assert counted == list(range(1, 22))
    same(mapped, in_memory)
    again = load()
    assert counted == [], "nothing was decoded again"
    same(again, in_memory)
    assert {path.suffix for path in cache.iterdir()} == {".pixels", ".json"}

    again.cache_file.write_bytes(again.cache_file.read_bytes()[:-1])
    same(load(), in_memory)
    assert counted, "a damaged cache is made again"
    mapped.cache_file.with_suffix(".json").write_text("{}")
    same(load(), in_memory)
    assert counted, "so is one whose description is damaged"


def test_cache_is_not_used_for_other_data_or_another_recipe(mixed, tmp_path):
    cache = tmp_path / "cache"
    load = lambda size: load_images(open_source(mixed), size, cache_dir=cache, memory_limit=0)  # noqa: E731
    first = load(16)
    assert load(32 // 4).cache_file != first.cache_file
    shutil.copy(mixed / "good/00.png", mixed / "good/99.png")
    assert len(load(16)) == len(first) + 1


def test_failed_load_leaves_no_file(tmp_path):
    save(tmp_path / "d/a.png", noise(20, 20, 3))
    with pytest.raises(UserError, match="none of the 1"):
        load_images(open_source(tmp_path / "d"), 32, cache_dir=tmp_path / "cache", memory_limit=0)
    assert list((tmp_path / "cache").iterdir()) == []


def test_cache_that_cannot_be_written_is_told(mixed, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/cache"):
        load_images(open_source(mixed), 16, cache_dir=tmp_path / "file" / "cache", memory_limit=0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_told(mixed, tmp_path, monkeypatch):
    import builtins

    real = builtins.open
    monkeypatch.setattr(
        builtins, "open", lambda p, *a, **k: real("/dev/full" if str(p).endswith(".tmp") else p, *a, **k)
    )
    with pytest.raises(UserError, match="disk is full"):
        load_images(open_source(mixed), 16, cache_dir=tmp_path / "cache", memory_limit=0)


def test_labels_by_the_classes_of_another_data_set(tmp_path):
    save(tmp_path / "cat/1.png", noise(16, 16, 3))
    save(tmp_path / "dog/1.png", noise(16, 16, 3))
    array = load_images(open_source(tmp_path), 16)
    assert array.with_classes(("ant", "cat", "cow", "dog")).labels.tolist() == [1, 3]
    assert array.with_classes(()).labels is None
    with pytest.raises(UserError, match="got the class 'dog'; expected the classes ant, cat"):
        array.with_classes(("ant", "cat"))
    with pytest.raises(UserError, match="without class folders"):
        array.with_classes(()).with_classes(("cat",))


@pytest.mark.skipif(not DATA.is_dir(), reason="the real image sets are not beside this checkout")
def test_real_emoji():
    array = load_images(open_source(DATA / "emoji128-val.zip"), 128)
    assert array.images.shape == (123, 3, 128, 128)
    assert not array.skipped
    corners = array.images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.median(corners) == 255, "emoji stand on white"


def test_several_frames_or_pages_are_told(tmp_path):
    frames = [PILImage.new("RGB", (16, 16), (60 * k, 0, 0)) for k in range(3)]
    for name in ("a.gif", "b.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    frames[1].save(tmp_path / "c.tif")
    frames[2].save(tmp_path / "d.gif")
    array = load_images(open_source(tmp_path), 16)
    assert "2 of 4 images have several frames or pages; the first of each is used." in array.warnings
    assert array.images[1].max() == 0, "the first page is black"


@pytest.mark.parametrize("suffix", ["gif", "tif"])
def test_several_frames_cut_short_are_skipped_and_named(tmp_path, suffix):
    """Wherever the file ends: the first frame may be whole, and counting the others fails in many ways."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 16, 16), dtype=np.uint8)
    frames = [PILImage.fromarray(each) for each in noise]
    frames[0].save(tmp_path / f"whole.{suffix}", save_all=True, append_images=frames[1:])
    whole = (tmp_path / f"whole.{suffix}").read_bytes()
    for length in range(8, len(whole), 7):
        (tmp_path / f"{length:04d}.{suffix}").write_bytes(whole[:length])
    array = load_images(open_source(tmp_path), 16)
    assert f"whole.{suffix}" in array.names and len(array.skipped) > 20
    assert len(array) + len(array.skipped) == len(open_source(tmp_path))
    assert all("damaged image" in reason or "not an image" in reason for _, reason in array.skipped)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_cache_is_not_used_for_images_changed_in_place(tmp_path, kind):
    """Other pixels under the same name and of the same size in bytes."""

    def load(level):
        (tmp_path / "data").mkdir(exist_ok=True)
        np.save(tmp_path / "data" / "a.npy", np.full((16, 16, 3), level, np.uint8))
        where = tmp_path / "data"
        if kind == "zip":
            with zipfile.ZipFile(where := tmp_path / "data.zip", "w") as archive:
                archive.write(tmp_path / "data" / "a.npy", "a.npy")
        return load_images(open_source(where), 16, cache_dir=tmp_path / "cache", memory_limit=0)

    first, again, other = load(1), load(1), load(2)
    assert int(first.images.max()) == int(again.images.max()) == 1 and int(other.images.min()) == 2
    assert kind == "folder" or first.cache_file == again.cache_file, "a zip of the same content is the same"
