"""How a cascade is sampled: the run's defaults with what is asked put over them, checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float64
from torch import Tensor

from cdm.config import AugmentationConfig, CascadeConfig, SamplingConfig, StageConfig
from cdm.errors import UserError
from cdm.samplers import SAMPLERS, SPACINGS, make_grid, num_steps
from cdm.stage import Stage

DEFAULT_STEPS = (32, 16)
"""Network evaluations of the base, and of each SR stage."""
DEFAULT_AUG_LEVEL = 0.2
MAX_STEPS = 100_000
"""Where a stage's noise levels are continuous; a table has its own number."""
QUALITIES = {"fast": (8, 4), "balanced": DEFAULT_STEPS, "best": (128, 64)}
"""Evaluations of the base, and of each SR stage, as long as ``cdm tune`` has found nothing better."""
GRIDS = (*SPACINGS, "tuned")
HAND_OVERS = ("non_truncated", "truncated")


def make_settings(
    config: CascadeConfig,
    *,
    quality: str | None = None,
    steps: Sequence[int] | None = None,
    sampler: str | None = None,
    grid: str | None = None,
    aug_level: float | Sequence[float] | None = None,
    hand_over: str | None = None,
    clip: bool | None = None,
    threshold: float | None = None,
) -> SamplingConfig:
    """The run's sampling defaults with what is given put over them, one entry per stage.

    Args:
        quality: "fast", "balanced" or "best", instead of the defaults: a point that ``cdm tune`` found, or the numbers
            of evaluations in ``QUALITIES``.
        steps: network evaluations, from the base up; fewer numbers leave the last stages as they are.
        sampler, grid: a name for all stages, or one for each, separated by commas.
        aug_level: one, or one for each SR stage.
        threshold: percentile of dynamic thresholding (Saharia et al. 2022, section 2.3), as 0.995; 0: none.

    Raises:
        UserError: a name that is not known, a number out of its range, another number of entries than stages.
    """
    own = config.sampling if quality is None else _of_quality(quality, config)
    hand = hand_over or own.hand_over
    if hand not in HAND_OVERS:
        raise UserError(f"unknown hand-over {hand!r}; expected non_truncated or truncated.")
    percentile = own.threshold if threshold is None else threshold
    if percentile and not 0.5 <= percentile <= 1:
        raise UserError(f"got the threshold {percentile:g}; expected 0 (none), or a percentile from 0.5 to 1 as 0.995.")
    samplers = _names("sampler", sampler or own.sampler, tuple(SAMPLERS), config)
    counts = _steps(config, own, steps)
    fits = [_keeps_grid(own, samplers, counts, k) for k in range(len(config.stages))]
    usual = joined([of_stage(own.grid, k) if fits[k] else "logsnr" for k in range(len(config.stages))])
    chosen = _names("grid", grid or usual, GRIDS if "tuned" in usual else SPACINGS, config)
    for k in range(len(config.stages)):
        if of_stage(chosen, k) == "tuned" and of_stage(usual, k) != "tuned":
            raise UserError(
                f"got the grid {grid!r}, but stage {k} has no tuned one for its sampler and steps; expected one of "
                f"{', '.join(SPACINGS)} there."
            )
    kept = tuple(levels if of_stage(chosen, k) == "tuned" else () for k, levels in enumerate(own.levels))
    return SamplingConfig(
        sampler=samplers,
        steps=counts,
        grid=chosen,
        levels=kept if any(kept) else (),
        threshold=percentile,
        aug_level=_aug_levels(config, own, aug_level),
        hand_over=hand,  # type: ignore[arg-type]
        clip=own.clip if clip is None else clip,
    )


def _keeps_grid(own: SamplingConfig, samplers: str, counts: Sequence[int], k: int) -> bool:
    """Whether stage ``k`` can have the run's own grid: a tuned one was made for its sampler and number of steps."""
    if of_stage(own.grid, k) != "tuned":
        return True
    return k < len(own.steps) and (of_stage(own.sampler, k), own.steps[k]) == (of_stage(samplers, k), counts[k])


def lost_grids(config: CascadeConfig, chosen: SamplingConfig, quality: str | None = None, first: int = 0) -> list[str]:
    """A sentence for each stage from ``first`` on whose own grid does not fit the sampler and steps chosen."""
    own = config.sampling if quality is None else _of_quality(quality, config)
    return [
        f"stage {k} of {stage.size} pixels is sampled on the grid {of_stage(chosen.grid, k)}: its own was made for "
        f"{own.steps[k]} evaluations of {of_stage(own.sampler, k)}"
        for k, stage in enumerate(config.stages)
        if k >= first and of_stage(own.grid, k) == "tuned" != of_stage(chosen.grid, k)
    ]


def of_stage(names: str, index: int) -> str:
    """The entry of stage ``index`` of a name for all stages, or of one for each."""
    each = names.split(",")
    return each[index] if len(each) > 1 else each[0]


def joined(names: Sequence[str]) -> str:
    """The inverse of ``of_stage``: one name for all stages where all are alike."""
    return ",".join(names) if len(set(names)) > 1 else names[0]


def stage_grid(stage: Stage, settings: SamplingConfig, steps: int, stop_at: float | None) -> Float64[Tensor, " n"]:
    """Levels of a stage's sampler for ``steps`` network evaluations, cut at ``stop_at`` for a truncated hand-over."""
    sampler, spacing = of_stage(settings.sampler, stage.index), of_stage(settings.grid, stage.index)
    table, schedule = stage.denoiser.table, stage.config.schedule
    if spacing == "tuned":
        levels = torch.tensor(settings.levels[stage.index], dtype=torch.float64)
        end = math.inf if stop_at is None else stop_entry(stage, stop_at)
        return torch.cat([levels[levels < end], torch.tensor([end], dtype=torch.float64)])
    if table is not None and sampler.startswith("ddpm") and spacing == "logsnr":
        spacing = "index"  # every so many entries, as trained (Nichol & Dhariwal 2021, section 4)
    return make_grid(
        *stage.denoiser.logsnr_range,
        num_steps(sampler, steps),
        table=table,
        stop_at=stop_at,
        spacing=spacing,  # type: ignore[arg-type]  # checked by make_settings
        shift=schedule.shift,
    )


def stop_entry(stage: Stage, logsnr: float) -> float:
    """Where a stage that is to stop at ``logsnr`` does stop: its table's nearest entry, if it has one."""
    table = stage.denoiser.table
    return logsnr if table is None else float(table[(table - logsnr).abs().argmin()])


def _of_quality(quality: str, config: CascadeConfig) -> SamplingConfig:
    if quality not in QUALITIES:
        raise UserError(f"unknown quality {quality!r}; expected one of {', '.join(QUALITIES)}.")
    if config.qualities:
        return config.qualities[list(QUALITIES).index(quality)]
    first, later = QUALITIES[quality]
    most = _most_steps(config)
    steps = tuple(map(min, (first, *[later] * (len(config.stages) - 1)), most))
    return replace(config.sampling, steps=steps, grid="logsnr", levels=())


def _most_steps(config: CascadeConfig) -> list[int]:
    """Evaluations that each stage can take."""
    schedules = [stage.schedule for stage in config.stages]
    return [each.num_timesteps if each.kind.endswith("_table") else MAX_STEPS for each in schedules]


def _names(what: str, given: str, known: Sequence[str], config: CascadeConfig) -> str:
    each, count = [name.strip() for name in given.split(",")], len(config.stages)
    for name in each:
        if name not in known:
            raise UserError(f"unknown {what} {name!r}; expected one of {', '.join(known)}.")
    if len(each) not in (1, count):
        raise UserError(f"got {len(each)} names of a {what}; expected one, or one for each of the {count} stages.")
    return joined(each)


def _steps(config: CascadeConfig, own: SamplingConfig, asked: Sequence[int] | None) -> tuple[int, ...]:
    """Network evaluations per stage: those asked for from the base up, then the run's own."""
    stages = config.stages
    most = _most_steps(config)
    usual = (DEFAULT_STEPS[0],) + (DEFAULT_STEPS[1],) * (len(stages) - 1)
    default = own.steps or tuple(map(min, usual, most))
    if isinstance(asked, int | float | str) or any(not isinstance(count, int) for count in asked or ()):
        raise UserError(f"got the steps {asked!r}; expected whole numbers, from the base up, as (32, 16).")
    given = default if asked is None else tuple(asked)
    if not 0 < len(given) <= len(stages):
        raise UserError(
            f"got {len(given)} numbers of steps for {len(stages)} stages; expected one per stage from the base up, "
            f"as {','.join(map(str, default))}."
        )
    given += default[len(given) :]
    for stage, count, limit in zip(stages, given, most, strict=True):
        if not 1 <= count <= limit:
            raise UserError(f"got {count} steps for the stage at {stage.size}; expected 1 to {limit}.")
    return given


def _aug_levels(config: CascadeConfig, own: SamplingConfig, asked: float | Sequence[float] | None) -> tuple[float, ...]:
    """One augmentation level per SR stage, each inside what its stage was trained at."""
    stages = config.stages[1:]
    if asked is not None and not any(stage.augmentation.has_noise for stage in stages):
        raise UserError(f"got the augmentation level {asked}, but no stage of this cascade takes one; leave it out.")
    if asked is None:
        asked = own.aug_level or [_usual_level(stage.augmentation) for stage in stages]
    try:
        levels = (float(asked),) * len(stages) if isinstance(asked, int | float) else tuple(map(float, asked))
    except (TypeError, ValueError):
        raise UserError(f"got the augmentation level {asked!r}; expected numbers from 0 to 1.") from None
    if len(levels) != len(stages):
        raise UserError(
            f"got {len(levels)} augmentation levels, but the number of SR stages is {len(stages)}; give one, or one "
            "for each."
        )
    for stage, level in zip(stages, levels, strict=True):
        if not 0 <= level <= 1:
            raise UserError(f"augmentation level {level} is out of range; expected 0 (none) to 1 (only noise).")
        _check_trained(stage, level)
    return levels


def _usual_level(augmentation: AugmentationConfig) -> float:
    return max(augmentation.level_min, min(DEFAULT_AUG_LEVEL, augmentation.level_max))


def _check_trained(stage: StageConfig, level: float) -> None:
    own = stage.augmentation
    if not own.has_noise or own.trained_at(level):
        return
    if level > own.level_max:
        more, expected = "more", f"at most {own.level_max:g}"
    else:
        more, expected = "less", f"at least {own.level_min:g}" + (", or 0" if own.clean_fraction > 0 else "")
    raise UserError(
        f"augmentation level {level} is {more} noise than the stage at {stage.size} was trained with; "
        f"expected {expected}."
    )
