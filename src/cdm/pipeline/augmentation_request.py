"""What a user asks of the conditioning augmentation in ``cdm train``, put over a recipe's own."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cdm.config import AugmentationConfig, CascadeConfig, StageConfig
from cdm.errors import UserError
from cdm.train.log import counted

HINTS = typing.get_type_hints(AugmentationConfig)
KINDS: tuple[str, ...] = typing.get_args(HINTS["kind"])
DENSITIES: tuple[str, ...] = typing.get_args(HINTS["level_density"])


@dataclass(frozen=True, kw_only=True)
class AugmentationRequest:
    """One entry for all SR stages, or one for each from the lowest up; None: as the recipe has it.

    kind: of ``AugmentationConfig``. levels: a range as "0:0.5", or one fixed level as "0.2". density: of levels.
    """

    kind: tuple[str, ...] | None = None
    levels: tuple[str, ...] | None = None
    density: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for flag, given, known in (("augmentation", self.kind, KINDS), ("aug-density", self.density, DENSITIES)):
            for name in given or ():
                if name not in known:
                    raise UserError(f"--{flag} is {name!r}; expected one of {', '.join(known)}.")
        for text in self.levels or ():
            match parse_levels(text, "--aug-levels"):
                case (0, 0):
                    raise UserError(f"--aug-levels is {text!r}, no noise at all; expected a level above 0: for no "
                                    "augmentation use --augmentation none.")  # fmt: skip
                case (1, 1):
                    raise UserError(f"--aug-levels is {text!r}, noise in place of the low-res image; expected a level "
                                    "below 1, as 0.2.")  # fmt: skip


def parse_levels(text: str, flag: str) -> tuple[float, float]:
    """``"0:0.5"``, or one fixed level as ``"0.2"``, to the ends of a range."""
    try:
        ends = [float(part) for part in text.split(":")]
    except ValueError:
        ends = []
    if not (1 <= len(ends) <= 2 and 0 <= ends[0] <= ends[-1] <= 1):
        raise UserError(
            f"{flag} is {text!r}; expected a range that rises within 0 (no noise) to 1 (only noise), as 0:0.5, or one "
            "level, as 0.2."
        )
    return ends[0], ends[-1]


def with_augmentation(config: CascadeConfig, asked: AugmentationRequest) -> CascadeConfig:
    """The recipe's SR stages at another augmentation; the run's default levels are then those of any run.

    Raises:
        UserError: another number of entries than SR stages, or levels where no stage takes one.
    """
    if asked == AugmentationRequest():
        return config
    stages = config.stages[1:]
    if not stages:
        raise UserError("got an augmentation, but this cascade has no SR stage to augment for; leave it out.")
    kinds = _each("augmentation", asked.kind, len(stages))
    levels, densities = _each("aug-levels", asked.levels, len(stages)), _each("aug-density", asked.density, len(stages))
    made = [_stage(*entries) for entries in zip(stages, kinds, levels, densities, strict=True)]
    for flag, given in (("--aug-levels", asked.levels), ("--aug-density", asked.density)):
        if given is not None and not any(stage.augmentation.has_noise for stage in made):
            raise UserError(f"got {flag}, but no stage is trained with noise; leave it out, or use gaussian.")
    sampling = replace(config.sampling, aug_level=())
    return replace(config, stages=(config.stages[0], *made), sampling=sampling)


def _each(flag: str, given: Sequence[str] | None, count: int) -> Sequence[str | None]:
    if given is None:
        return [None] * count
    if len(given) not in (1, count):
        raise UserError(
            f"--{flag} has {len(given)} entries, but this cascade has {counted(count, 'SR stage')}; expected one "
            "entry, or one for each."
        )
    return list(given) * (count if len(given) == 1 else 1)


def _stage(stage: StageConfig, kind: str | None, levels: str | None, density: str | None) -> StageConfig:
    own = stage.augmentation
    if kind is not None:
        own = replace(own, kind=kind)  # type: ignore[arg-type]  # checked above
    if levels is not None:
        low, high = parse_levels(levels, "--aug-levels")
        clean = 0.0 if low == high else own.clean_fraction  # a fixed level is the only one
        own = replace(own, level_min=low, level_max=high, clean_fraction=clean)
    if density is not None:
        own = replace(own, level_density=density)  # type: ignore[arg-type]  # checked above
    return replace(stage, augmentation=own, net=replace(stage.net, has_aug_level=own.has_noise))
