"""What a user asks of ``cdm train``, and what of it may change when the same run is asked for again."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from cdm.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """Everything ``cdm train`` takes. ``config`` is made by the recipe; the rest is how it is carried out."""

    data: str
    out: Path
    recipe: str = "small"
    sizes: tuple[int, ...] | None = None
    images: int | None = None
    minutes: float | None = None
    stage: int | None = None
    val: str | None = None
    val_fraction: float = 0.05
    channels: int = 3
    flip: bool = False
    balanced: bool = False
    seed: int = 0
    device: str | None = None
    precision: str = "auto"
    threads: int | None = None
    keep: int = 2
    checkpoint_images: int | None = None
    allow_changed_data: bool = False
    command: str = ""

    def fixed(self) -> dict[str, Any]:
        """The options that make the run what it is; a second call must repeat them."""
        names = ("recipe", "sizes", "val", "val_fraction", "channels", "flip", "balanced", "seed", "checkpoint_images")
        options = {name: getattr(self, name) for name in names}
        options["sizes"] = None if self.sizes is None else list(self.sizes)
        return options

    def __post_init__(self) -> None:
        for name, place in (("DATA", self.data), ("--out", str(self.out)), ("--val", self.val or "")):
            if "\0" in place:
                raise UserError(f"{name} is {place!r}; expected a path, which has no NUL: take it out.")
        if any("\ud800" <= letter <= "\udfff" for letter in str(self.out)):
            raise UserError(
                f"--out is {str(self.out)!r}, which is no UTF-8; expected a name that pictures and pages can hold: "
                "choose another --out."
            )
        if self.images is not None and self.minutes is not None:
            raise UserError(
                "got both --images and --minutes; give one of them: images seen per stage, or minutes in all."
            )
        for name in ("images", "minutes", "checkpoint_images"):
            value = getattr(self, name)
            if value is not None and not 0 < value < inf:
                raise UserError(f"--{name.replace('_', '-')} is {value}; expected a number above 0.")
        if self.channels < 1:
            raise UserError(f"--channels is {self.channels}; expected 1 (grey), 3 (colour) or more.")
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"--val-fraction is {self.val_fraction}; expected 0 (none) to below 1, as 0.05.")
        check_seed(self.seed)
        if self.keep < 1:
            raise UserError(f"--keep is {self.keep}; expected at least 1 checkpoint.")


def check_seed(seed: int) -> None:
    if not 0 <= seed < 2**31:
        raise UserError(f"--seed is {seed}; expected 0 to {2**31 - 1}.")


def check_place(request: TrainRequest) -> None:
    """Refuse a run folder inside the data: its pictures would count as data at the next start."""
    data, out = Path(request.data).expanduser().resolve(), request.out.resolve()
    if data.is_dir() and out.is_relative_to(data):
        raise UserError(
            f"--out {request.out} lies inside the data {request.data}; expected a folder elsewhere: change --out."
        )


def check_same(stored: dict[str, Any], request: TrainRequest) -> None:
    """Refuse an option that differs from the run's, naming both values."""
    for name, value in request.fixed().items():
        if stored["options"].get(name) != value:
            flag, before = name.replace("_", "-"), _shown(stored["options"].get(name))
            raise UserError(
                f"{request.out} was started with --{flag} {before}, now it is {_shown(value)}; "
                "repeat the old value to go on, or train into a new --out."
            )


def check_same_data(
    stored: dict[str, Any], fingerprint: str, val_fingerprint: str | None, request: TrainRequest
) -> None:
    """Refuse other training or validation images than the run was started on. ``val_fingerprint``: of --val, if any."""
    if request.allow_changed_data:
        return
    for data, now in ((request.data, fingerprint), (request.val, val_fingerprint)):
        before = stored["fingerprint"] if data is request.data else stored.get("val_fingerprint")
        if before is not None and now != before:
            raise UserError(
                f"the data at {data} is not what {request.out} was started on (fingerprint {(now or 'none')[:12]}, "
                f"expected {before[:12]}: paths, sizes or classes differ); "
                "bring the old data back, train into a new --out, or go on all the same with --allow-changed-data."
            )


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "(none)" if value is None else str(value)
