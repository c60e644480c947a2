"""What ``cdm sample`` is asked for: so many images of some classes, by number, however many there are."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from cdm.cascade import Cascade
from cdm.data.save import suffix_for
from cdm.errors import UserError

MOST_PER_CLASS = 1_000_000


@dataclass(frozen=True)
class Ask:
    """One image to make: its class (None: no class), and its number among those of its class."""

    label: int | None
    index: int


@dataclass(frozen=True)
class Asks:
    """``count`` images of each of ``labels``, class by class; made when looked at, for a call may ask for millions."""

    labels: tuple[int | None, ...]
    count: int

    def __len__(self) -> int:
        return len(self.labels) * self.count

    def __getitem__(self, i: int) -> Ask:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return Ask(self.labels[i // self.count], i % self.count)


def find_class(name: str, class_names: Sequence[str]) -> int:
    """Index of a class by name; the nearest name is suggested where there is none."""
    if name in class_names:
        return class_names.index(name)
    if not class_names:
        raise UserError(f"got class {name!r}, but this cascade was trained without classes: leave --class out.")
    alike = [known for known in class_names if known.lower() == name.lower()]
    near = alike or difflib.get_close_matches(name, class_names, n=1, cutoff=0.0)
    shown = ", ".join(class_names[:12]) + (", ..." if len(class_names) > 12 else "")
    raise UserError(f"unknown class {name!r}; expected one of {shown}: did you mean {near[0]!r}?")


def plan_asks(cascade: Cascade, class_names: Sequence[str], count: int) -> Asks:
    """``count`` images of each named class, or of every class. Images are numbered within their class, so neither the
    class nor what else is asked for changes an image's noise."""
    if count < 1:
        raise UserError(f"-n is {count}; expected at least 1.")
    if count > MOST_PER_CLASS:
        raise UserError(f"-n is {count:,}; expected at most {MOST_PER_CLASS:,} of a class: use several --seed.")
    if class_names:
        return Asks(tuple(find_class(name, cascade.class_names) for name in dict.fromkeys(class_names)), count)
    return Asks(tuple(range(len(cascade.class_names))) or (None,), count)


def class_of(cascade: Cascade, ask: Ask) -> str | None:
    return None if ask.label is None else cascade.class_names[ask.label]


def file_name(cascade: Cascade, ask: Ask, seed: int) -> str:
    """``A/A-seed0-00003.png``: class folders that ``cdm train`` could read again."""
    name = class_of(cascade, ask)
    file = f"{name or 'image'}-seed{seed}-{ask.index:05d}{suffix_of(cascade)}"
    return file if name is None else f"{name}/{file}"


def suffix_of(cascade: Cascade) -> str:
    data = cascade.config.data
    return suffix_for(data.channels, 8 if data.window[1] <= 255 else 16)


def parse_batch_size(text: str) -> int | None:
    """``--batch-size``; None: "auto"."""
    if text == "auto":
        return None
    size = int(text) if text.isdecimal() and len(text) < 20 else 0
    if size < 1:
        raise UserError(f"--batch-size is {text!r}; expected auto, or a whole number of at least 1.")
    return size
