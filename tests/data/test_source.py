"""Folders and zips: which files are images, which class they have, and what is refused."""

import os
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from cdm.data.source import ReadError, open_source
from cdm.errors import UserError

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def put(root: Path, *paths: str) -> Path:
    """Small PNGs at ``paths`` below ``root``, each of its own colour; a trailing slash makes an empty folder."""
    for i, path in enumerate(paths):
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            target.mkdir(parents=True, exist_ok=True)
        else:
            PILImage.new("RGB", (20, 20), (i, 7 * i, 255 - i)).save(target)
    return root


def zipped(folder: Path, to: Path) -> Path:
    with zipfile.ZipFile(to, "w") as archive:
        for path in sorted(folder.rglob("*"), reverse=True):
            archive.write(path, path.relative_to(folder).as_posix())
    return to


LAYOUT = ("cat/b.png", "cat/a.jpg", "dog/x/deep.png", "dog/y.PNG", "ant/1.png")


def test_classes_are_the_first_folder_level_sorted(tmp_path):
    source = open_source(put(tmp_path / "d", *LAYOUT))
    assert source.class_names == ("ant", "cat", "dog")
    assert [(e.path, e.label) for e in source.entries] == [
        ("ant/1.png", 0),
        ("cat/a.jpg", 1),
        ("cat/b.png", 1),
        ("dog/x/deep.png", 2),
        ("dog/y.PNG", 2),
    ]


def test_zip_equals_folder(tmp_path):
    folder = put(tmp_path / "d", *LAYOUT)
    a, b = open_source(folder), open_source(zipped(folder, tmp_path / "d.zip"))
    assert (a.entries, a.class_names, a.fingerprint) == (b.entries, b.class_names, b.fingerprint)
    assert [a.read(i) for i in range(len(a))] == [b.read(i) for i in range(len(b))]


def test_entries_of_one_name_are_told_and_the_last_counts(tmp_path):
    path = tmp_path / "twice.zip"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        for content in (b"first", b"second", b"third"):
            archive.writestr("cat/1.png", content)
        archive.writestr("dog/1.png", b"other")
    source = open_source(str(path))
    assert [entry.path for entry in source.entries] == ["cat/1.png", "dog/1.png"]
    assert source.read(0) == b"third"
    assert source.skipped == (("2 earlier entries of the same name, as cat/1.png", "the last of each name is used"),)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_one_common_top_folder_is_stripped(tmp_path, kind):
    plain = open_source(put(tmp_path / "d", *LAYOUT))
    folder = put(tmp_path / "e", *(f"photos/{path}" for path in LAYOUT))
    source = open_source(folder if kind == "folder" else zipped(folder, tmp_path / "e.zip"))
    assert (source.entries, source.fingerprint) == (plain.entries, plain.fingerprint)
    assert source.read(0) == plain.read(0)


def test_only_one_level_is_stripped(tmp_path):
    source = open_source(put(tmp_path, "top/cat/1.png", "top/cat/2.png"))
    assert source.class_names == ("cat",)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_one_folder_that_is_a_known_class_is_not_stripped(tmp_path, kind):
    folder = put(tmp_path / "d", "cat/1.png", "cat/2.png")
    given = folder if kind == "folder" else zipped(folder, tmp_path / "d.zip")
    assert open_source(given, ("cat", "dog")).class_names == ("cat",)
    assert open_source(given, ("dog",)).class_names == ()
    below = put(tmp_path / "e", "top/cat/1.png")
    assert open_source(below, ("cat", "dog")).class_names == ("cat",)


def test_plain_images_have_no_classes(tmp_path):
    source = open_source(put(tmp_path, "b.png", "a.png", "empty/"))
    assert source.class_names == ()
    assert [(e.path, e.label) for e in source.entries] == [("a.png", None), ("b.png", None)]


def test_hidden_files_and_other_files_are_ignored(tmp_path):
    put(tmp_path, *LAYOUT, ".hidden/1.png", "cat/.thumb.png", "__MACOSX/cat/1.png", "cat/.git/1.png")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "cat" / "notes.txt").write_text("about")
    for source in (open_source(tmp_path), open_source(zipped(tmp_path, tmp_path.with_suffix(".zip")))):
        assert [e.path for e in source.entries] == sorted(LAYOUT)


def test_what_is_no_regular_file_is_skipped_and_named(tmp_path):
    put(tmp_path, *LAYOUT)
    os.mkfifo(tmp_path / "cat" / "pipe.png")  # reading it would wait for ever
    source = open_source(tmp_path)
    assert [e.path for e in source.entries] == sorted(LAYOUT)
    assert ("cat/pipe.png", "not a regular file") in source.skipped


def test_fingerprint_follows_paths_sizes_and_classes(tmp_path):
    first = open_source(put(tmp_path / "a", *LAYOUT)).fingerprint
    assert open_source(put(tmp_path / "b", *LAYOUT)).fingerprint == first
    assert open_source(put(tmp_path / "c", *LAYOUT[1:])).fingerprint != first
    renamed = put(tmp_path / "d", *LAYOUT)
    (renamed / "ant").rename(renamed / "bee")
    assert open_source(renamed).fingerprint != first
    grown = put(tmp_path / "e", *LAYOUT)
    with open(grown / "ant/1.png", "ab") as file:
        file.write(b"x")
    assert open_source(grown).fingerprint != first


def test_folder_links_are_followed_and_loops_are_not(tmp_path):
    put(tmp_path / "far", "1.png")
    put(tmp_path / "d", "dog/1.png")
    (tmp_path / "d" / "cat").symlink_to(tmp_path / "far")
    (tmp_path / "d" / "dog" / "loop").symlink_to(tmp_path / "d")
    assert [e.path for e in open_source(tmp_path / "d").entries] == ["cat/1.png", "dog/1.png"]


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_pictures_that_are_not_read_are_skipped_and_named(tmp_path, kind):
    folder = put(tmp_path / "d", "top/cat/1.png", "top/dog/1.png")
    for name in ("cat/photo.HEIC", "cat/.hidden.heic", "dog/logo.svg", "dog/notes.txt"):
        (folder / "top" / name).write_text("x")
    source = open_source(folder if kind == "folder" else zipped(folder, tmp_path / "d.zip"))
    assert [entry.path for entry in source.entries] == ["cat/1.png", "dog/1.png"]
    assert source.skipped == (
        ("cat/photo.HEIC", ".heic files are not read; convert it to PNG or JPEG"),
        ("dog/logo.svg", ".svg files are not read; convert it to PNG or JPEG"),
    )


def test_link_to_nowhere_is_skipped_and_named(tmp_path):
    put(tmp_path, "cat/1.png", "dog/1.png")
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    source = open_source(tmp_path)
    assert len(source) == 2
    assert source.skipped == (("cat/gone.png", "cannot be read: No such file or directory"),)


def test_class_folder_of_pictures_that_are_not_read_alone(tmp_path):
    put(tmp_path, "cat/1.png", "dog/")
    (tmp_path / "dog" / "photo.heic").write_text("x")
    with pytest.raises(
        UserError, match=r"'dog' .* has no images \('dog/photo.heic': .heic files are not read; convert"
    ):
        open_source(tmp_path)


def test_missing_path(tmp_path):
    with pytest.raises(UserError, match=r"no data at .*nowhere.*check the path"):
        open_source(tmp_path / "nowhere")


def test_unknown_builtin():
    with pytest.raises(UserError, match="'builtin:digits'; expected 'builtin:letters'"):
        open_source("builtin:digits")


def test_empty_folder(tmp_path):
    with pytest.raises(UserError, match="no images in"):
        open_source(tmp_path)


def test_zip_without_images(tmp_path):
    with pytest.raises(UserError, match="no images in"):
        open_source(zipped(put(tmp_path / "d", "a/"), tmp_path / "d.zip"))


def test_file_that_is_no_zip(tmp_path):
    (tmp_path / "d.zip").write_bytes(b"no zip")
    with pytest.raises(UserError, match="not a readable zip"):
        open_source(tmp_path / "d.zip")


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_class_folder_without_images_is_named(tmp_path, kind):
    folder = put(tmp_path / "d", *LAYOUT, "zebra/")
    with pytest.raises(UserError, match=r"class folder 'zebra' .* has no images; expected .*4 class folders"):
        open_source(folder if kind == "folder" else zipped(folder, tmp_path / "d.zip"))


def test_loose_images_beside_class_folders(tmp_path):
    with pytest.raises(UserError, match=r"mixes loose images \('preview.png'\) with class folders \('ant'\)"):
        open_source(put(tmp_path, *LAYOUT, "preview.png"))


def test_class_folder_whose_name_is_no_utf8_is_named(tmp_path):
    put(tmp_path, "cat/1.png", "dog/1.png")
    (tmp_path / "dog").rename(tmp_path / os.fsdecode(b"caf\xe9"))
    with pytest.raises(UserError, match=r"class folder 'caf\\udce9' .* is no UTF-8; .* rename the folder") as told:
        open_source(tmp_path)
    str(told.value).replace(str(tmp_path), "").encode()  # it can be printed


def test_damaged_zip_member_is_a_read_error(tmp_path):
    path = zipped(put(tmp_path / "d", "a/1.png"), tmp_path / "d.zip")
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 5] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ReadError, match="CRC"):
        open_source(path).read(0)


def test_vanished_file_is_a_read_error(tmp_path):
    source = open_source(put(tmp_path, "a.png"))
    (tmp_path / "a.png").unlink()
    with pytest.raises(ReadError, match="cannot be read"):
        source.read(0)


def test_encrypted_zip_is_refused(tmp_path):
    path = zipped(put(tmp_path / "d", "a/1.png"), tmp_path / "d.zip")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02", content.index(b"1.png")) + 8] |= 1  # the flag in the central directory
    path.write_bytes(content)
    with pytest.raises(UserError, match="encrypted"):
        open_source(path)


def test_letters_are_a_source_like_any_other():
    source = open_source("builtin:letters")
    assert source.class_names == tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert [e.path for e in source.entries] == sorted(e.path for e in source.entries)
    assert np.bincount([e.label for e in source.entries]).tolist() == [400] * 26
    assert source.read(5000)[:4] == b"\x89PNG"


@pytest.mark.skipif(not DATA.is_dir(), reason="the real image sets are not beside this checkout")
@pytest.mark.parametrize(("name", "classes", "images"), [("glyphs64-val.zip", 26, 2548), ("emoji128-val.zip", 8, 123)])
def test_real_zips(name, classes, images):
    source = open_source(DATA / name)
    assert (len(source.class_names), len(source)) == (classes, images)
