"""The held-out share: by the content of each file, about the asked size, and never all of a class."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from cdm.data.arrays import load_images
from cdm.data.source import open_source
from cdm.data.split import short_hash, split_rows

HASHES = [short_hash(f"{i}".encode()) for i in range(4000)]
LABELS = np.arange(4000) % 2


def test_parts_are_disjoint_sorted_and_whole():
    train, val = split_rows(HASHES, LABELS)
    assert sorted([*train, *val]) == list(range(4000))
    assert (np.diff(train) > 0).all() and (np.diff(val) > 0).all()


def test_about_the_asked_share():
    _, val = split_rows(HASHES, LABELS, 0.05)
    assert abs(len(val) - 200) < 5 * np.sqrt(4000 * 0.05 * 0.95)
    assert len(split_rows(HASHES, LABELS, 0.0)[1]) == 0


def test_an_image_stays_on_its_side_when_others_come_and_go():
    held_out = {HASHES[i] for i in split_rows(HASHES, LABELS)[1]}
    some = HASHES[1000:3000][::-1]
    assert {some[i] for i in split_rows(some, None)[1]} == held_out & set(some)


def test_larger_share_contains_the_smaller():
    assert set(split_rows(HASHES, LABELS, 0.1)[1]) > set(split_rows(HASHES, LABELS, 0.05)[1])


def test_no_class_and_no_training_set_is_emptied():
    train, val = split_rows(HASHES[:6], LABELS[:6], 1.0)
    assert set(LABELS[train]) == {0, 1}
    assert (len(train), len(val)) == (2, 4)
    train, val = split_rows(HASHES[:6], None, 1.0)
    assert (len(train), len(val)) == (1, 5)


def test_one_image_is_trained_on():
    train, val = split_rows(HASHES[:1], None, 1.0)
    assert (train.tolist(), val.tolist()) == ([0], [])


def png(number: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Two classes of 200 images, each image once more under another name."""
    for k in range(400):
        for name in (f"{k}.png", f"copy of {k}.png"):
            path = tmp_path / "data" / "ab"[k % 2] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(k))
    return tmp_path / "data"


def held_out(where, **options):
    array = load_images(open_source(where), 8, **options)
    return {array.names[i] for i in split_rows(array.hashes, array.labels, 0.2)[1]}


def test_copies_of_a_file_lie_on_one_side(folder):
    names = held_out(folder)
    assert 100 < len(names) < 220
    for name in names:
        group, _, file = name.partition("/")
        assert f"{group}/{file.removeprefix('copy of ') if 'copy' in file else f'copy of {file}'}" in names


def test_a_renamed_file_stays_where_it_was_and_a_changed_one_is_another(folder):
    before = held_out(folder)
    first = min(before)
    (folder / first).rename(folder / "a" / "renamed.png")
    assert held_out(folder) == before - {first} | {"a/renamed.png"}
    numbers = iter(range(1000, 2000))  # other pixels under the same names: some are held out now, others no longer
    for path in folder.rglob("*.png"):
        path.write_bytes(png(next(numbers)))
    assert held_out(folder) != before


def test_the_same_from_a_zip_and_from_a_cache(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in folder.rglob("*.png"):
            archive.write(path, path.relative_to(folder))
    cached = lambda: held_out(folder, cache_dir=tmp_path / "cache", memory_limit=0)  # noqa: E731
    assert held_out(folder) == held_out(tmp_path / "x.zip") == cached() == cached()


def test_names_that_are_no_utf8(folder):
    odd = folder / "a" / b"caf\xe9.png".decode("utf-8", "surrogateescape")
    odd.write_bytes(png(9999))
    array = load_images(open_source(folder), 8)
    assert array.hashes[array.names.index(f"a/{odd.name}")] == short_hash(png(9999))
