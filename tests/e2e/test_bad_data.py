"""Data that cannot be used, or only in part: said, named, and nothing written that was not asked for."""

import os

import numpy as np
import pytest
from PIL import Image as PILImage
from tests.e2e.command import refused, run, succeeded
from tests.e2e.conftest import OPTIONS, made_once, write_images


def empty_folder(data):
    data.mkdir()


def missing_folder(data):
    pass


def class_folder_without_images(data):
    write_images(data / "cat", 2)
    (data / "dog").mkdir()


def loose_images_beside_class_folders(data):
    write_images(data, 1)
    write_images(data / "cat", 1)


def no_image_by_content(data):
    (data / "cat").mkdir(parents=True)
    (data / "cat" / "notes.png").write_text("not a picture")


def a_class_of_damaged_images_only(data):
    write_images(data / "cat", 2)
    (data / "dog").mkdir()
    (data / "dog" / "0.png").write_bytes(b"")


def all_images_smaller_than_a_stage(data):
    write_images(data / "cat", 2, width=12, height=12)


def a_file_that_is_no_zip(data):
    data.write_text("PK? no")


REFUSED = {
    empty_folder: ("no images", "expected image files"),
    missing_folder: ("no data at", "expected a folder or zip", "check the path"),
    class_folder_without_images: ("'dog'", "has no images", "remove it or fill it"),
    loose_images_beside_class_folders: ("loose images", "class folders", "move"),
    no_image_by_content: ("notes.png", "expected"),
    a_class_of_damaged_images_only: ("'dog'", "dog/0.png", "the file is empty", "expected at least one"),
    all_images_smaller_than_a_stage: ("12x12", "smaller than 16", "--sizes"),
    a_file_that_is_no_zip: ("not a readable zip", "expected a folder or zip"),
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_refused(make, tmp_path):
    make(tmp_path / "data")
    out = tmp_path / "run"
    refused(run("train", tmp_path / "data", "--out", out, *OPTIONS), *REFUSED[make])
    assert not out.exists()


def test_data_with_a_name_too_long(tmp_path):
    ran = run("train", "x" * 5000, "--out", tmp_path / "run", *OPTIONS)
    refused(ran, "cannot be used", "name too long", "another path")


def test_run_folder_inside_the_data_is_refused(data):
    """Its pictures would become data, and the next start would find the data changed."""
    out = data / "run"
    refused(run("train", data, "--out", out, *OPTIONS), str(out), "lies inside the data", "expected a folder elsewhere")
    assert not out.exists()


# ---- files that are converted, or skipped and named ------------------------------------------------------------------

RGB = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)


def truncated(path):
    PILImage.fromarray(RGB).save(path)
    path.write_bytes(path.read_bytes()[:-700])


def zero_byte(path):
    path.write_bytes(b"")


def text_named_png(path):
    path.write_text("a letter to grandmother")


def smaller_than_the_last_stage(path):
    PILImage.fromarray(RGB[:12]).save(path)


def cmyk(path):
    PILImage.fromarray(RGB).convert("CMYK").save(path, "JPEG")


def palette(path):
    PILImage.fromarray(RGB).quantize(16).save(path)


def alpha(path):
    PILImage.fromarray(np.dstack([RGB, RGB[:, :, :1]]), "RGBA").save(path)


def sixteen_bit(path):
    PILImage.fromarray(RGB[:, :, 0].astype(np.uint16) * 257).save(path)


def exif_rotated(path, pixels=RGB):
    exif = PILImage.Exif()
    exif[0x0112] = 6
    PILImage.fromarray(pixels).save(path, "JPEG", exif=exif)


def exif_rotated_and_too_narrow(path):
    exif_rotated(path, RGB[:12])


SKIPPED = {
    truncated: "damaged image",
    zero_byte: "the file is empty",
    text_named_png: "not an image",
    smaller_than_the_last_stage: "24x12 pixels, smaller than 16",
    exif_rotated_and_too_narrow: "12x24 pixels, smaller than 16",  # width and height as they are upright
}
CONVERTED = (cmyk, palette, alpha, sixteen_bit, exif_rotated)


@pytest.fixture(scope="session")
def odd(shared):
    """What ``cdm train`` says of a folder with every odd file beside 12 good ones."""
    return (made_once(shared, "odd", train_on_odd_files) / "out").read_text()


def train_on_odd_files(root):
    write_images(root / "data", 12)
    for write in (*SKIPPED, *CONVERTED):
        write(root / "data" / f"{write.__name__}.png")
    ran = run(
        "train", root / "data", "--out", root / "run", *OPTIONS, "--val-fraction", "0", "--stage", "0", "--dry-run"
    )
    succeeded(
        ran,
        f"{12 + len(CONVERTED)} training images",
        f"{len(SKIPPED)} of {12 + len(CONVERTED) + len(SKIPPED)} files skipped",
    )
    assert not (root / "run").exists()
    (root / "out").write_text(ran.out)


@pytest.mark.parametrize("write", SKIPPED, ids=lambda write: write.__name__)
def test_skipped_and_named(write, odd):
    assert f"skipped {write.__name__}.png: {SKIPPED[write]}" in odd


@pytest.mark.parametrize("write", CONVERTED, ids=lambda write: write.__name__)
def test_converted(write, odd):
    """Counted among the training images; tests/data/test_decode.py tells that the pixels are right."""
    assert f"{write.__name__}.png" not in odd


def test_sixteen_bit_images_cut_to_eight_are_said(odd):
    assert "1 of 17 images reduced from 16 bits" in odd and "--channels 1 keeps" in odd


def test_names_that_are_no_utf8(tmp_path):
    """Of files and of the data: they are bytes to Linux, and any may come. The run folder is named by the user."""
    odd = os.fsdecode(b"caf\xe9")
    data, out = tmp_path / f"data {odd}", tmp_path / "run"
    write_images(data / "cat", 12)
    for name, content in ((f"{odd}.png", (data / "cat" / "00.png").read_bytes()), (f"broken {odd}.png", b"")):
        (data / "cat" / name).write_bytes(content)
    write_images(data / "dog", 12, seed=1)
    ran = run("train", data, "--out", out, *OPTIONS)
    succeeded(ran, r"skipped cat/broken caf\udce9.png: the file is empty", "640 of 640 images", "report.html")
    succeeded(run("sample", out, "-n", 1, "--class", "cat", "--steps", "2,2"))
    (again,) = (out / "samples" / "cat").glob("*.png")
    succeeded(run("sample", "--again", again), "equal in every pixel")
    ran = run("train", data, "--out", tmp_path / odd, *OPTIONS)
    refused(ran, r"caf\udce9', which is no UTF-8", "choose another --out")


def test_a_class_folder_whose_name_is_no_utf8(tmp_path):
    write_images(tmp_path / "data" / "cat", 2)
    write_images(tmp_path / "data" / os.fsdecode(b"caf\xe9"), 2)
    ran = run("train", tmp_path / "data", "--out", tmp_path / "run", *OPTIONS)
    refused(ran, r"'caf\udce9'", "no UTF-8", "rename the folder")
    assert not (tmp_path / "run").exists()


# ---- little data -----------------------------------------------------------------------------------------------------


def test_one_image_only(tmp_path):
    write_images(tmp_path / "data", 1)
    ran = run("train", tmp_path / "data", "--out", tmp_path / "run", *OPTIONS, "--stage", "1")  # fmt: skip
    succeeded(ran, "warning: there is one image only", "1 training image without classes")
    assert list((tmp_path / "run" / "1-16" / "samples").glob("panel-*.png"))


def test_a_class_with_under_10_images_is_a_warning(tmp_path):
    write_images(tmp_path / "data" / "cat", 12)
    write_images(tmp_path / "data" / "dog", 9)
    ran = run("train", tmp_path / "data", "--out", tmp_path / "run", *OPTIONS, "--stage", "0", "--dry-run")
    succeeded(ran, "warning: under 10 images in 1 class: dog (9)")
