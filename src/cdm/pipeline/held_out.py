"""What a run recorded of its data: where it was, and which images it holds out, in ``held_out.txt``, by which judging
agrees with training."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cdm.artifacts import load_json, read_events, told_by_path, write_atomic
from cdm.data.split import Rows, rows_by_name
from cdm.errors import UserError

HELD_OUT = "held_out.txt"
FINGERPRINTS = ("fingerprint", "val_fingerprint")
"""Of the data, in what ``cascade.json`` tells of training and in the event that data was changed."""


def recorded_training(run: Path) -> dict[str, Any]:
    """What ``cascade.json`` tells of the training, with the fingerprints of data that was changed since; empty where
    the run recorded nothing."""
    training = load_json(run / "cascade.json").get("training", {})
    changed = [event for event in read_events(run / "events.jsonl") if event["kind"] == "data_changed"]
    now = {name: changed[-1][name] for name in FINGERPRINTS if name in changed[-1]} if changed else {}
    return training | now if training else {}


def write_held_out(run: Path, names: Sequence[str]) -> str:
    """One name per line; the mark of the list, by which ``read_held_out`` knows it again."""
    lines = [_escaped(name) for name in names]
    path = run / HELD_OUT
    if lines or path.exists():  # it may be of other data
        write_atomic(path, "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
    return held_out_mark(names)


def held_out_mark(names: Sequence[str]) -> str:
    """``count:hash`` of the names, whatever their order."""
    text = "\n".join(sorted(map(_escaped, names))).encode("utf-8", "surrogateescape")
    return f"{len(names)}:{hashlib.sha256(text).hexdigest()[:16]}"


def read_held_out(run: Path) -> frozenset[str]:
    """Names below the data's top; empty where the run holds none out or does not tell.

    Raises:
        UserError: the list is not the one that training recorded.
    """
    path = run / HELD_OUT
    with told_by_path(path):
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape") if path.exists() else ""
    names = frozenset(_plain(line.rstrip("\r")) for line in text.split("\n") if line.rstrip("\r"))
    marks = [event["held_out"] for event in read_events(run / "events.jsonl") if "held_out" in event]
    if marks and held_out_mark(sorted(names)) != marks[-1]:
        there = f"names {len(names)} images" if path.exists() else "is not there"
        raise UserError(
            f"{path} {there}; expected the {marks[-1].split(':')[0]} that training recorded: put the file back as "
            "training wrote it, or images that were trained on would count as held out."
        )
    return names


def recorded_rows(run: Path, names: Sequence[str]) -> tuple[Rows, Rows]:
    """Rows of ``names`` that the run trains on, and rows that it holds out.

    Raises:
        UserError: the file is not of these images: it holds out all of them, or names others only.
    """
    held_out = read_held_out(run)
    train, val = rows_by_name(names, held_out)
    if not len(train) or (held_out and not len(val)):
        raise UserError(
            f"{run / HELD_OUT} names {len(held_out)} images, {len(val)} of the {len(names)} in the data; expected some "
            "of them and not all: put back the file that training wrote."
        )
    return train, val


def _escaped(name: str) -> str:
    return name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


def _plain(line: str) -> str:
    parts = [part.replace("\\n", "\n").replace("\\r", "\r") for part in line.split("\\\\")]
    return "\\".join(parts)
