"""What a user asks of ``cdm train``, and what of it may change when the same run is asked for again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

from cdm.config import CascadeConfig
from cdm.errors import UserError
from cdm.pipeline.augmentation_request import AugmentationRequest, parse_levels, with_augmentation

MOST_BATCH = 2**20


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """Everything ``cdm train`` takes. ``config`` is made by the recipe; the rest is how it is carried out."""

    data: str
    out: Path
    recipe: str = "small"
    sizes: tuple[int, ...] | None = None
    images: int | None = None
    minutes: float | None = None
    batch_size: tuple[int, ...] | None = None
    augmentation: tuple[str, ...] | None = None
    aug_levels: tuple[str, ...] | None = None
    aug_density: tuple[str, ...] | None = None
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
        names = ("recipe", "sizes", "batch_size", "val", "val_fraction", "channels", "flip", "balanced", "seed")
        augmentation = ("augmentation", "aug_levels", "aug_density")
        options = {name: getattr(self, name) for name in (*names, *augmentation, "checkpoint_images")}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}

    def asked_augmentation(self) -> AugmentationRequest:
        return AugmentationRequest(kind=self.augmentation, levels=self.aug_levels, density=self.aug_density)

    def __post_init__(self) -> None:
        self.asked_augmentation()  # checks it
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
        if self.batch_size is not None and not all(1 <= size <= MOST_BATCH for size in self.batch_size):
            raise UserError(
                f"--batch-size is {_shown(self.batch_size)}; expected 1 to {MOST_BATCH:,} images per update."
            )
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


def parse_numbers(text: str | None, kind: type, flag: str, example: str) -> list[Any] | None:
    """``"32,16"`` to numbers."""
    if text is None:
        return None
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        number = "whole numbers" if kind is int else "numbers"
        raise UserError(f"--{flag} is {text!r}; expected {number} separated by commas, as {example}.") from error


def with_request(config: CascadeConfig, request: TrainRequest) -> CascadeConfig:
    """The recipe with what was asked for put over it."""
    return with_augmentation(with_batch_size(config, request.batch_size), request.asked_augmentation())


def with_batch_size(config: CascadeConfig, batch_size: tuple[int, ...] | None) -> CascadeConfig:
    """The recipe's stages at other batch sizes, one for all or one for each; their learning rates stay."""
    if batch_size is None:
        return config
    count = len(config.stages)
    if len(batch_size) not in (1, count):
        raise UserError(
            f"--batch-size has {len(batch_size)} numbers; expected one, or one for each of the {count} stages."
        )
    sizes = batch_size * count if len(batch_size) == 1 else batch_size
    stages = (
        replace(stage, optim=replace(stage.optim, batch_size=own))
        for stage, own in zip(config.stages, sizes, strict=True)
    )
    return replace(config, stages=tuple(stages))


def check_place(request: TrainRequest) -> None:
    """Refuse a run folder inside the data: its pictures would count as data at the next start."""
    if not request.data.strip():
        raise UserError("DATA is empty; expected a folder or zip of images, or builtin:letters.")
    data, out = Path(request.data).expanduser().resolve(), request.out.resolve()
    if data.is_dir() and out.is_relative_to(data):
        raise UserError(
            f"--out {request.out} lies inside the data {request.data}; expected a folder elsewhere: change --out."
        )


def check_same(stored: dict[str, Any], request: TrainRequest) -> None:
    """Refuse an option that differs from the run's, naming both values."""
    for name, value in request.fixed().items():
        if _same(name, stored["options"].get(name)) != _same(name, value):
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


def _same(name: str, value: Any) -> Any:
    """64 for every stage is 64, and the levels 0.20:0.50 are 0.2:0.5."""
    if name == "aug_levels" and value is not None:
        value = [parse_levels(text, "--aug-levels") for text in value]
    return value[0] if isinstance(value, list | tuple) and len(set(value)) == 1 else value


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "(not given)" if value is None else str(value)
