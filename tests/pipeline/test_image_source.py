"""Images that are there already: the order they are judged in, and what names them."""

import os
import zipfile

import numpy as np
import pytest
from PIL import Image as PILImage

from cdm.errors import UserError
from cdm.pipeline import image_source
from cdm.pipeline.image_source import MixedImages, fair_order, open_files
from cdm.pipeline.npz_source import NpzImages

SHARES = {"a": 30, "b": 12, "c": 6}
"""Images of each class, stored class by class."""


def write_classes(folder):
    """Each image is its number, counted through the classes, in every pixel; returns their classes."""
    number = 0
    for name, count in SHARES.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            PILImage.new("RGB", (4, 4), (number,) * 3).save(folder / name / f"{i:03d}.bmp")
            number += 1
    return np.repeat(np.arange(3), list(SHARES.values()))


def folder_of(path):
    write_classes(path / "images")
    return open_files(str(path / "images"))


def zip_of(path):
    write_classes(path / "images")
    with zipfile.ZipFile(path / "images.zip", "w") as archive:
        for file in sorted((path / "images").rglob("*.bmp")):
            archive.write(file, file.relative_to(path / "images"))
    return open_files(str(path / "images.zip"))


def npz_of(path, save=np.savez):
    labels = write_classes(path / "images")
    pixels = np.broadcast_to(np.arange(len(labels), dtype=np.uint8)[:, None, None, None], (len(labels), 4, 4, 3))
    save(path / "images.npz", pixels, labels)
    return NpzImages(path / "images.npz").with_classes(("a", "b", "c"))


@pytest.mark.parametrize("make", [folder_of, zip_of, npz_of], ids=lambda make: make.__name__)
def test_the_first_images_are_a_fair_sample(make, tmp_path):
    """Of images stored class by class; pictures and labels belong together, whatever the blocks are."""
    classes = np.repeat(np.arange(3), list(SHARES.values()))
    source = MixedImages(make(tmp_path), 40)
    assert source.labels is not None and len(source.labels) == 40
    shares = np.array(list(SHARES.values())) / 48
    for count in range(1, 41):
        assert np.abs(np.bincount(source.labels[:count], minlength=3) - count * shares).max() <= 1.01
    values = source.stages(0, 40)[0][:, 0, 0, 0].numpy()
    assert (classes[values] == source.labels).all() and len(set(values.tolist())) == 40
    assert (np.diff(values[source.labels == 0].astype(int)) < 0).any()  # nor are those of one class the first ones
    again = [source.stages(start, min(start + 7, 40))[0][:, 0, 0, 0].numpy() for start in range(0, 40, 7)]
    assert (np.concatenate(again) == values).all()
    assert (MixedImages(source.stored, 48).stages(0, 40)[0][:, 0, 0, 0].numpy() == values).all()


def test_a_folder_a_zip_and_an_npz_have_one_order(tmp_path):
    made = [MixedImages(make(tmp_path / make.__name__), 48) for make in (folder_of, zip_of, npz_of)]
    blocks = [source.stages(0, 48)[0] for source in made]
    assert (blocks[0] == blocks[1]).all() and (blocks[0] == blocks[2]).all()


def test_images_without_classes_are_mixed_too():
    """Their names may still sort them: the first quarter holds a quarter of what is stored in either half."""
    order = fair_order(None, 1000)
    assert sorted(order.tolist()) == list(range(1000))
    assert abs(int((order[:250] < 500).sum()) - 125) < 40  # five standard deviations


def test_as_many_classes_as_images():
    """A class's first image is as likely to come from the end of the list."""
    order = fair_order(np.repeat(np.arange(100), 4), 400)
    assert len(set((order[:100] // 4).tolist())) == 100
    assert 10 < int((order[:50] // 4 < 50).sum()) < 40


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("I;16", 1), ("P", 3), ("RGB", 3), ("RGBA", 3)])
def test_grey_images_are_judged_in_grey_and_palettes_in_colour(tmp_path, mode, channels):
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    picture = PILImage.fromarray(colours)
    made = picture.quantize(16) if mode == "P" else picture.convert("L" if mode == "I;16" else mode).convert(mode)
    made.save(tmp_path / "a.png")
    assert made.mode == mode
    assert open_files(str(tmp_path)).shape == (channels, 8, 8)


def test_an_array_of_three_channels_is_colour(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((8, 8, 3), np.uint8))
    assert open_files(str(tmp_path)).shape == (3, 8, 8)


# ---- keys ------------------------------------------------------------------------------------------------------------


def recolour(path):
    """Another picture of the same name and size in bytes."""
    size = path.stat().st_size
    PILImage.new("RGB", (4, 4), (255, 0, 7)).save(path)
    assert path.stat().st_size == size


def test_any_replaced_file_is_another_key(tmp_path):
    before = folder_of(tmp_path).key
    assert open_files(str(tmp_path / "images")).key == before
    recolour(tmp_path / "images" / "a" / "001.bmp")
    assert open_files(str(tmp_path / "images")).key != before


def test_a_replaced_file_among_very_many_bytes_is_told_by_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(image_source, "HASHED_MOST", 100)
    before = folder_of(tmp_path).key
    file = tmp_path / "images" / "a" / "001.bmp"  # none of the 16 looked into
    assert open_files(str(tmp_path / "images")).key == before
    recolour(file)
    os.utime(file, ns=(1, 1))
    assert open_files(str(tmp_path / "images")).key != before


def test_a_replaced_file_of_a_zip_is_another_key(tmp_path):
    before = zip_of(tmp_path).key
    recolour(tmp_path / "images" / "a" / "001.bmp")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for file in sorted((tmp_path / "images").rglob("*.bmp")):
            archive.write(file, file.relative_to(tmp_path / "images"))
    assert open_files(str(tmp_path / "images.zip")).key != before


def test_a_damaged_npz_is_told(tmp_path):
    source = npz_of(tmp_path)
    content = bytearray((tmp_path / "images.npz").read_bytes())
    content[600] ^= 1
    (tmp_path / "images.npz").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        source.pick(np.arange(2))
