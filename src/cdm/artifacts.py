"""Files of a run: JSON and tensors, written atomically, checksummed, versioned; events appended; one owner per run.

A file is written under a temporary name in the same folder, flushed to the disk and renamed, so at any moment the old
file or the new one is there, whole. The checksum rule is the same for every format version: that is how a file made by
a newer cdm is told from a damaged one. No pickle: loading never runs code.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cdm.config import FORMAT_VERSION
from cdm.errors import CorruptError, UserError, is_out_of_memory

UPGRADES: dict[int, Callable[[str, dict[str, Any]], dict[str, Any]]] = {}
"""Format version n to a function (file name, body or meta of version n) -> body of version n + 1."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_DTYPES = {  # names of the safetensors format
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


# ---- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def told_by_path(path: Path) -> Iterator[None]:
    """Turns an ``OSError`` into one sentence that names ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            cure = (
                f"the disk is full: no room to write {path}. What was saved before is kept: free some space and go on."
            )
        elif error.errno in _DENIED:
            cure = f"no permission for {path}: choose another folder, or change its permissions."
        elif isinstance(error, FileExistsError | NotADirectoryError):
            cure = (
                f"{path} cannot be used: it, or a part of it, is a file where a folder is meant. Choose another path."
            )
        else:
            cure = f"{path} cannot be used: {error.strerror or error}. Choose another path."
        raise UserError(cure) from error


def make_folder(path: str | Path) -> Path:
    """Makes a folder with its parents; ``UserError`` where that is not allowed."""
    path = Path(path)
    with told_by_path(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def write_atomic(path: str | Path, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Writes a file so that a crash, a kill or a full disk leaves the old one or the new one, never a part.

    Args:
        path: its folder must exist.
        content: all bytes, or a function that writes them to the file it is given.

    Raises:
        UserError: the disk is full or the folder not writable; the old file is untouched.
    """
    path = Path(path)
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with told_by_path(path):
            with open(temp, "wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temp, path)
            _sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temp.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes a rename or a new file in ``folder`` survive a loss of power."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_leftovers(folder: str | Path) -> int:
    """Deletes temporary files of writes that were killed, in ``folder`` and below. Call it only under ``RunLock``.

    Those of a process that lives on this machine stay: the lock is on training alone, and ``cdm sample`` may be writing
    into the same folder.
    """
    found = [path for path in Path(folder).rglob(".*.tmp") if _is_left(path)]
    for path in found:
        with told_by_path(path):
            path.unlink(missing_ok=True)
    return len(found)


def _is_left(temp: Path) -> bool:
    """Whether ``temp`` is named as ``write_atomic`` does, after a process that is no more. This one has no write under
    way: a file of its number is of another machine, or of an earlier process."""
    named = re.fullmatch(r"\..+\.(\d+)\.tmp", temp.name)
    if named is None:
        return False
    pid = int(named[1])
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False  # it lives, and is another user's
    return pid == os.getpid()


def _read(path: Path) -> bytes:
    with told_by_path(path):
        return path.read_bytes()


# ---- checksums and versions ------------------------------------------------------------------------------------------


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _raw(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors in the order of their names."""
    return {name: tensors[name].detach().to("cpu").contiguous() for name in sorted(tensors)}


def _digest(tensors: dict[str, Tensor], head: bytes = b"") -> str:
    """SHA-256 over ``head`` and over names, dtypes, shapes and bytes of CPU tensors; their order does not matter."""
    sha = hashlib.sha256(head)
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(_canonical({"name": name, "dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape)}))
        sha.update(_raw(tensor))
    return sha.hexdigest()


def weights_hash(tensors: dict[str, Tensor]) -> str:
    """12 hex digits that name a set of weights: independent of their order and device, not of their dtype."""
    return _digest(_on_cpu(tensors))[:12]


def _damaged(path: Path, how: str) -> CorruptError:
    return CorruptError(f"{path} is damaged ({how}): put back a copy of it, or delete it to go on without.")


def _current(path: Path, version: Any, body: dict[str, Any]) -> dict[str, Any]:
    """``body`` brought to today's format, step by step."""
    if not isinstance(version, int):
        raise _damaged(path, "it has no format version")
    if version > FORMAT_VERSION:
        raise UserError(
            f"{path} was made by a newer cdm: it has format version {version}, this cdm reads up to {FORMAT_VERSION}. "
            "Install the newer cdm, or use another folder."
        )
    for old in range(version, FORMAT_VERSION):
        body = UPGRADES[old](path.name, body)
    return body


# ---- JSON and tensors ------------------------------------------------------------------------------------------------


def save_json(path: str | Path, body: dict[str, Any]) -> None:
    """Writes an object of JSON types with ``format_version`` and ``sha256`` in front."""
    assert body.get("format_version", FORMAT_VERSION) == FORMAT_VERSION and "sha256" not in body
    body = {"format_version": FORMAT_VERSION} | json.loads(json.dumps(body))
    text = json.dumps({"sha256": hashlib.sha256(_canonical(body)).hexdigest()} | body, indent=2)
    write_atomic(path, text.encode() + b"\n")


def load_json(path: str | Path) -> dict[str, Any]:
    """Reads what ``save_json`` wrote, upgraded to today's format; ``format_version`` and ``sha256`` are taken out.

    Raises:
        CorruptError: not JSON, or the checksum differs.
        UserError: no such file, not readable, or made by a newer cdm.
    """
    path = Path(path)
    text = _read(path)
    try:
        body = json.loads(text)
        checksum = body.pop("sha256")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise _damaged(path, "it is not whole JSON with a checksum") from error
    if checksum != hashlib.sha256(_canonical(body)).hexdigest():
        raise _damaged(path, "its checksum differs, so it was changed after it was written")
    return _current(path, body.pop("format_version", None), body)


def save_tensors(path: str | Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Writes a safetensors file with ``meta`` (JSON types) and a checksum over both in its metadata.

    The format is written here and not by ``safetensors.save_file``, which renames by itself, without a flush to disk.
    """
    tensors = _on_cpu(tensors)
    info = json.dumps({"format_version": FORMAT_VERSION, "meta": meta}, sort_keys=True)
    metadata = {"cdm": info, "sha256": _digest(tensors, info.encode())}
    header: dict[str, Any] = {"__metadata__": metadata}
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # keeps every tensor aligned
    end = 0
    for name in ordered:
        begin, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": _DTYPES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def write(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            file.write(_raw(tensors[name]))

    write_atomic(path, write)


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what ``save_tensors`` wrote: CPU tensors (copies, so the file may be replaced) and meta.

    Raises:
        CorruptError: truncated, or the checksum differs.
        UserError: no such file, not readable, or made by a newer cdm.
    """
    path = Path(path)
    with told_by_path(path), open(path, "rb"):
        pass
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        info, checksum = metadata["cdm"], metadata["sha256"]
        if checksum != _digest(tensors, info.encode()):
            raise _damaged(path, "its checksum differs")
        body = json.loads(info)
    except KeyError as error:
        raise _damaged(path, "it has no checksum, or a type of numbers that cdm does not write") from error
    except SafetensorError as error:
        raise _damaged(path, "it is not a whole safetensors file") from error
    except (OSError, RuntimeError) as error:  # torch's words for a failed mmap; the file may be whole
        if is_out_of_memory(error):
            raise
        raise UserError(f"{path} cannot be read ({error}); expected a disk that can be: try again.") from error
    return tensors, _current(path, body["format_version"], body["meta"])


def weights_file(sigma_rel: float | None = None) -> str:
    """Name of a weights file in a stage folder: the raw weights, or the EMA profile ``sigma_rel``."""
    return "model.safetensors" if sigma_rel is None else f"ema-{sigma_rel:.3f}.safetensors"


# ---- lines that are appended -----------------------------------------------------------------------------------------


def append_event(path: str | Path, event: dict[str, Any]) -> None:
    """Appends one JSON line and flushes it to the disk. A line torn by an earlier kill is cut off first."""
    path = Path(path)
    line = json.dumps(event).encode() + b"\n"
    with told_by_path(path):
        fresh = not path.exists()
        with open(path, "ab+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        if fresh:
            _sync_folder(path.parent)


def read_events(path: str | Path) -> list[dict[str, Any]]:
    """All events in order; no file is no events, and a torn last line (one without its newline) does not count.

    Raises:
        CorruptError: a whole line is not a JSON object.
    """
    path = Path(path)
    if not path.exists():
        return []
    events = []
    for number, line in enumerate(_read(path).split(b"\n")[:-1], start=1):
        try:
            event = json.loads(line)
        except ValueError as error:
            raise _damaged(path, f"line {number} is not JSON") from error
        if not isinstance(event, dict):
            raise _damaged(path, f"line {number} is not an object")
        events.append(event)
    return events


def read_log(path: str | Path, stage: int | None = None) -> list[dict[str, Any]]:
    """Lines of a ``log.jsonl`` with rising ``images_seen``: what a resume or a roll-back repeated replaces what it
    undid, and lines of the same ``images_seen`` become one.

    Args:
        path: no file is no lines. Damaged lines are left out: a log only informs.
        stage: only lines of this stage.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines: list[dict[str, Any]] = []
    for text in _read(path).split(b"\n"):
        try:
            line = json.loads(text)
            images_seen = line["images_seen"]
        except (ValueError, KeyError, TypeError):
            continue
        if stage is not None and line.get("stage") != stage:
            continue
        while lines and lines[-1]["images_seen"] > images_seen:
            lines.pop()
        if line.get("resumed"):
            continue  # the mark that training went on from here
        if lines and lines[-1]["images_seen"] == images_seen:
            line = lines.pop() | line
        lines.append(line)
    return lines


# ---- one owner per run -----------------------------------------------------------------------------------------------


class RunLock:
    """Makes this process the only owner of a run folder, until ``release`` or its death, however it dies.

    Args:
        folder: an existing folder; the lock is on its file ``run.lock``, which stays there.

    Raises:
        UserError: another process owns it (named by its pid), or the folder cannot be written.
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder) / "run.lock"
        with told_by_path(path):
            self._file = open(path, "a+b")  # kept open: closing it gives the lock up
        try:
            with told_by_path(path):
                self._take(path)
        except BaseException:
            self._file.close()
            raise
        # A forked child (a data loader's worker) shares the lock, and would keep it after the death of its parent.
        os.register_at_fork(after_in_child=self._file.close)

    def _take(self, path: Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.seek(0)
            owner = self._file.read().decode(errors="replace").strip() or "another process"
            raise UserError(
                f"{path.parent} is in use by {owner}: wait until it ends, stop it, or choose another folder."
            ) from error
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        self._file.flush()

    def release(self) -> None:
        self._file.close()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def check_not_in_use(folder: str | Path) -> None:
    """Raises ``UserError`` at once where another process owns the run; ``RunLock`` itself is taken later."""
    path = Path(folder)
    with told_by_path(path):
        there = (path / "run.lock").exists()
    if there:
        RunLock(folder).release()
