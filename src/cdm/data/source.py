"""Where images come from: a folder, a zip or the built-in letters, all behind one ``Source``."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO

from cdm.artifacts import told_by_path
from cdm.errors import UserError

IMAGE_EXTENSIONS = frozenset(".png .jpg .jpeg .jfif .webp .avif .bmp .gif .tif .tiff .ppm .pgm .pnm .tga .npy".split())
UNREAD_EXTENSIONS = frozenset(
    ".heic .heif .jp2 .j2k .jxl .svg .psd .xcf .ai .eps .raw .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf .exr .hdr".split()
)
"""Pictures too, but not read: they are named, not passed over."""
LETTERS_SPEC = "builtin:letters"


class ReadError(UserError):
    """One file could not be read; the loader skips it and names it."""


@dataclass(frozen=True)
class Entry:
    """One image file. ``path``: POSIX path below the data's top; ``label``: class index, None without classes."""

    path: str
    label: int | None
    size: int  # bytes


@dataclass(frozen=True)
class Source:
    """Image files in a fixed order.

    where: what the user gave, for messages.
    class_names: sorted; empty for unconditional data.
    entries: sorted by path.
    fingerprint: SHA-256 (hex) of the sorted paths, sizes and class names.
    open_file: entry number to an open binary file (for headers; ``read`` gives the whole file).
    letters: the built-in letters, which the loader draws straight at the size it needs.
    skipped: (path, reason) of each file that looks like an image but cannot be one of the entries.
    stamp: changes with the files' content, as far as times of a folder's files and check sums of a zip's tell.
    """

    where: str
    class_names: tuple[str, ...]
    entries: tuple[Entry, ...]
    fingerprint: str
    open_file: Callable[[int], IO[bytes]]
    letters: bool = False
    skipped: tuple[tuple[str, str], ...] = ()
    stamp: str = ""

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, i: int) -> bytes:
        """The bytes of entry ``i``. Raises ``ReadError``."""
        try:
            with self.open_file(i) as file:
                return file.read()
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise ReadError(f"cannot be read: {error}") from error


def open_source(spec: str | os.PathLike[str], known_classes: Sequence[str] = ()) -> Source:
    """Open a folder, a zip file or ``builtin:letters``.

    ``known_classes``: of data that this is to be read beside; a single top folder that is one of them is a class.

    The class of an image is the first folder level; one common top folder is stripped; deeper folders belong to their
    class. Hidden files, ``__MACOSX`` and files that are no images by their extension are ignored; links to nowhere and
    images of kinds that are not read are skipped and named.

    Raises:
        UserError: nothing there, no images, a class folder without images, or loose images beside class folders.
    """
    where = str(spec)
    if where == LETTERS_SPEC:
        return _letters_source()
    if where.startswith("builtin:"):
        raise UserError(f"unknown built-in data {where!r}; expected {LETTERS_SPEC!r}, a folder or a zip file.")
    path = Path(where).expanduser()
    with told_by_path(path):
        is_folder, is_file = path.is_dir(), path.is_file()
    if is_folder:
        return _folder_source(path, known_classes)
    if is_file:
        return _zip_source(path, known_classes)
    raise UserError(f"no data at {where!r}; expected a folder or zip of images, or {LETTERS_SPEC!r}: check the path.")


def _letters_source() -> Source:
    from cdm.data import letters  # draws with matplotlib's fonts; not needed for anyone's own images

    entries = tuple(Entry(name, label, 0) for name, label in letters.default_names())
    fingerprint = _fingerprint((letters.LETTERS_VERSION, *letters.CLASS_NAMES), entries)
    return Source(LETTERS_SPEC, letters.CLASS_NAMES, entries, fingerprint, letters.open_png, letters=True)


def _folder_source(root: Path, known_classes: Sequence[str]) -> Source:
    files: dict[str, int] = {}
    times: dict[str, int] = {}
    skipped: dict[str, str] = {}
    folders: set[str] = set()
    seen: set[str] = set()  # real paths: links to folders are followed, loops are not
    try:
        for folder, names, file_names in os.walk(root, followlinks=True, onerror=_raise):
            real = os.path.realpath(folder)
            if real in seen:
                names.clear()
                continue
            seen.add(real)
            names[:] = sorted(name for name in names if not _is_hidden(name))
            relative = Path(folder).relative_to(root)
            folders.update((relative / name).as_posix() for name in names)
            for name in file_names:
                path = (relative / name).as_posix()
                if reason := _unread(path):
                    skipped[path] = reason
                elif _is_image(path):
                    try:
                        about = os.stat(root / path)
                        if stat.S_ISREG(about.st_mode):
                            files[path], times[path] = about.st_size, about.st_mtime_ns
                        else:
                            skipped[path] = "not a regular file"
                    except OSError as error:  # a link to nowhere, or a file that vanished meanwhile
                        skipped[path] = f"cannot be read: {error.strerror or error}"
    except OSError as error:
        raise UserError(f"cannot read the folder {str(root)!r}: {error}; expected a readable folder.") from error
    top = _common_top(files, folders, known_classes)
    source = _make_source(str(root), top, files, skipped, folders, lambda path: open(root / path, "rb"))
    return replace(source, stamp=_digest(sorted(times.items())))


def _raise(error: OSError) -> None:
    raise error


def _zip_source(path: Path, known_classes: Sequence[str]) -> Source:
    try:
        archive = zipfile.ZipFile(path)  # stays open as long as the source
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{str(path)!r} is not a readable zip file ({error}); expected a folder or zip of images."
        ) from error
    files: dict[str, int] = {}
    skipped: dict[str, str] = {}
    folders: set[str] = set()
    original: dict[str, str] = {}
    sums: dict[str, int] = {}
    again: list[str] = []
    for info in archive.infolist():
        name = PurePosixPath(info.filename.replace("\\", "/"))
        if any(_is_hidden(part) for part in name.parts):
            continue
        folders.update(parent.as_posix() for parent in name.parents if parent.parts)
        if info.is_dir():
            folders.add(name.as_posix())
        elif reason := _unread(name.as_posix()):
            skipped[name.as_posix()] = reason
        elif _is_image(name.as_posix()):
            if name.as_posix() in files:
                again.append(name.as_posix())
            if info.flag_bits & 1:
                raise UserError(f"{str(path)!r} is encrypted; expected a plain zip: unpack it and give the folder.")
            files[name.as_posix()], sums[name.as_posix()] = info.file_size, info.CRC
            original[name.as_posix()] = info.filename
    if again:  # as when the zip is unpacked
        skipped[f"{len(again)} earlier entries of the same name, as {again[0]}"] = "the last of each name is used"
    top = _common_top(files, folders, known_classes)
    source = _make_source(str(path), top, files, skipped, folders, lambda name: archive.open(original[name]))
    return replace(source, stamp=_digest(sorted(sums.items())))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_image(path: str) -> bool:
    name = PurePosixPath(path)
    return not any(_is_hidden(part) for part in name.parts) and name.suffix.lower() in IMAGE_EXTENSIONS


def _unread(path: str) -> str | None:
    """Why a file that is a picture by its extension is not read; None for all others."""
    name = PurePosixPath(path)
    if any(_is_hidden(part) for part in name.parts) or name.suffix.lower() not in UNREAD_EXTENSIONS:
        return None
    return f"{name.suffix.lower()} files are not read; convert it to PNG or JPEG"


def _make_source(
    where: str,
    top: str,
    files: dict[str, int],
    skipped: dict[str, str],
    folders: set[str],
    open_path: Callable[[str], IO[bytes]],
) -> Source:
    """Apply the rules on folders below ``top`` to ``files`` (path to size), those ``skipped`` (path to reason) and all
    ``folders``, empty ones included."""
    below = {path[len(top) :]: size for path, size in files.items()}
    tops = sorted({path[len(top) :].split("/")[0] for path in folders if path.startswith(top)} - {""})
    loose = sorted(path for path in below if "/" not in path)
    with_images = {path.split("/")[0] for path in below if "/" in path}
    if not below:
        raise UserError(
            f"no images in {where!r}{_first_skipped(skipped)}; "
            "expected image files (png, jpg, webp, ...) or folders of them, one per class."
        )
    if loose and with_images:
        raise UserError(
            f"{where!r} mixes loose images ({loose[0]!r}) with class folders ({min(with_images)!r}); "
            f"expected only class folders or only images at the top: move the loose images into a class folder."
        )
    if not loose and (empty := [name for name in tops if name not in with_images]):
        raise UserError(
            f"the class folder {empty[0]!r} of {where!r} has no images{_first_skipped(skipped, top + empty[0])}; "
            f"expected images in each of the {len(tops)} class folders: remove it or fill it."
        )
    class_names = tuple(sorted(with_images))
    if odd := [name for name in class_names if not _is_text(name)]:
        raise UserError(
            f"the name of the class folder {odd[0]!r} of {where!r} is no UTF-8; expected a name that pictures and "
            "pages can hold: rename the folder."
        )
    index = {name: i for i, name in enumerate(class_names)}
    entries = tuple(
        Entry(path, index.get(path.split("/")[0]) if class_names else None, below[path]) for path in sorted(below)
    )
    return Source(
        where,
        class_names,
        entries,
        _fingerprint(class_names, entries),
        lambda i: open_path(top + entries[i].path),
        skipped=tuple((path.removeprefix(top), reason) for path, reason in sorted(skipped.items())),
    )


def _first_skipped(skipped: dict[str, str], folder: str = "") -> str:
    """For a message, a file of ``folder`` that might be missed."""
    below = f"{folder}/" if folder else ""
    found = next(((path, reason) for path, reason in sorted(skipped.items()) if path.startswith(below)), None)
    return "" if found is None else f" ({found[0]!r}: {found[1]})"


def _is_text(name: str) -> bool:
    """Whether a name is whole Unicode: bytes of a file name that are no UTF-8 become surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _common_top(files: Iterable[str], folders: Iterable[str], known_classes: Sequence[str]) -> str:
    """The one folder that holds everything, with its slash, or an empty string. A known class is no such folder."""
    tops = {path.split("/")[0] for path in folders}
    if len(tops) > 1 or tops & set(known_classes) or not all("/" in path for path in files):
        return ""
    return f"{tops.pop()}/" if tops else ""


def _fingerprint(class_names: tuple[str, ...], entries: Iterable[Entry]) -> str:
    return _digest([list(class_names), [[entry.path, entry.size] for entry in entries]])


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()
