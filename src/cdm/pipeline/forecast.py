"""What a run will cost: memory and time of each stage, told before it begins."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from cdm.config import StageConfig
from cdm.nn.flops import count_flops, count_parameters
from cdm.pipeline.budget import DEFAULT_MINUTES, images_left, own_images, round_budget
from cdm.pipeline.look import BANDS, GRID_STEPS, PANEL, VALIDATION_BATCH, preview_count, sheet_count
from cdm.pipeline.train_run import Prepared
from cdm.rng import Rng
from cdm.runtime import free_memory
from cdm.settings import make_settings
from cdm.train.checkpoint import newest_images
from cdm.train.events import Events
from cdm.train.loop import PREVIEW_APART, PREVIEWS, VALIDATION_APART, VALIDATIONS, places
from cdm.train.memory import training_memory
from cdm.train.plan import measure_look, measure_speed, share_minutes
from cdm.train.step import Trainee

MEASURED_BELOW = {"cpu": 1e12, "cuda": 5e13}
"""FLOPs of a training step up to which the speed is measured on this machine; a larger one is not tried."""
HEAP = {"cpu": 1.5, "cuda": 1.0}
"""What an allocator takes for each byte of tensors. On a CPU 1.4 to 1.9 were seen of a whole process."""
COPIES = 7
"""Float32 copies of the weights in training: themselves, the copy looked at, gradients, moments, EMA profiles."""


@dataclass(frozen=True)
class StageForecast:
    """Of one stage. ``memory``: bytes of tensors at the most. ``speed``: images per second, None if not measured.
    ``images``, ``seconds``: what is left to do, None where they hang on a speed that was not measured. ``sheet``:
    seconds of this stage in the samples at the end."""

    index: int
    parameters: int
    flops: int
    memory: int
    speed: float | None
    images: int | None
    seconds: float | None
    sheet: float | None


@dataclass(frozen=True)
class Forecast:
    """``free``: bytes of memory that were free before anything was tried, None if unknown. ``seconds``: of the whole
    run with the data read again, None if unknown."""

    stages: tuple[StageForecast, ...]
    free: int | None
    seconds: float | None


def forecast(prepared: Prepared) -> Forecast:
    """Measure what can be measured in a few seconds, and tell the rest from shapes."""
    stages, free = prepared.config.stages, free_memory(prepared.device)
    reading = time.monotonic() - prepared.began
    recorded = _recorded(prepared)
    speeds: dict[int, tuple[float, float]] = {}
    measuring = 0.0  # the run measures the training too
    for k in prepared.todo:
        if recorded.get(k) == 0:
            continue
        size = stages[k].optim.crop_size or stages[k].size
        if 3 * count_flops(stages[k].net, size) * stages[k].optim.batch_size < MEASURED_BELOW[prepared.device.type]:
            begin, stage, rng = time.monotonic(), prepared.stage(k), Rng(prepared.config.seed, k)
            speed = measure_speed(Trainee(stage), prepared.batches(k), rng, seconds=1.0)
            measuring += time.monotonic() - begin
            batch = prepared.train.batch(k, rng, torch.arange(_preview(prepared, k)), device=prepared.device)
            speeds[k] = speed, measure_look(stage, batch, rng)
    fresh = [k for k in prepared.todo if k not in recorded]
    images = recorded | _images(prepared, fresh, {k: speed for k, (speed, _) in speeds.items()})
    told = tuple(_stage(prepared, k, speeds.get(k), images.get(k)) for k in prepared.todo)
    seconds = [stage.seconds for stage in told if stage.seconds is not None]
    finishes = len(told) == len(stages) and any(stage.images != 0 for stage in told)
    sheets = [stage.sheet or 0.0 for stage in told] if finishes else []
    whole = reading + (measuring if fresh else 0.0) + sum(seconds) + sum(sheets) if len(seconds) == len(told) else None
    return Forecast(told, free, whole)


def warning(prepared: Prepared, told: Forecast) -> str | None:
    """A sentence about the stage that needs most, where it does not fit into what is free."""
    slack = HEAP[prepared.device.type]
    stage = max(told.stages, key=lambda stage: stage.memory)
    if told.free is None or slack * stage.memory <= told.free:
        return None
    optim = prepared.config.stages[stage.index].optim
    at_once = min(optim.micro_batch or optim.batch_size, optim.batch_size)
    mend = f"give a --batch-size below {at_once}, and look at --dry-run again"
    if at_once == 1 or slack * 4 * COPIES * stage.parameters > told.free:  # the weights alone are too much
        mend = "no --batch-size helps: take a smaller recipe or another machine"
    of_it = f" ({slack:g} times its tensors, as a process takes on a CPU)" if slack > 1 else ""
    return (
        f"warning: stage {prepared.stage_name(stage.index)} needs about {_gib(slack * stage.memory)}{of_it} and "
        f"{_gib(told.free)} are free on this {prepared.device.type}; {mend}"
    )


def _gib(count: int | float) -> str:
    return f"{count / 2**30:.2f} GiB"


def _stage(prepared: Prepared, k: int, speeds: tuple[float, float] | None, images: int | None) -> StageForecast:
    stage = prepared.config.stages[k]
    seconds, sheet = (0.0 if images == 0 else None), None
    if speeds is not None and images is not None:
        training, looking = speeds
        seconds = images / training + looked_at(prepared, k, images) / looking
        sheet = sheet_count(prepared.config.num_classes) * min(_steps(prepared, k), GRID_STEPS) / looking
    return StageForecast(
        index=k,
        parameters=count_parameters(stage.net),
        flops=count_flops(stage.net, stage.optim.crop_size or stage.size),
        memory=training_memory(stage, prepared.device, prepared.dtype, _at_once(prepared, k)),
        speed=None if speeds is None else speeds[0],
        images=images,
        seconds=seconds,
        sheet=sheet,
    )


def looked_at(prepared: Prepared, k: int, images: int) -> int:
    """Forward passes of single images that validation and previews of a stage take over ``images`` images."""
    held = min(len(prepared.val), 128) if prepared.val is not None else 0
    validations = 1 + len(places(images, VALIDATIONS, VALIDATION_APART))
    previews = 1 + len(places(images, PREVIEWS, PREVIEW_APART))
    return validations * BANDS * held + previews * _preview(prepared, k) * min(12, _steps(prepared, k))


def _at_once(prepared: Prepared, k: int) -> tuple[int, ...]:
    """Whole images that go through the network at once, in validation and in previews."""
    held = min(len(prepared.val), VALIDATION_BATCH) if prepared.val is not None else 0
    return tuple(n for n in (held, _preview(prepared, k)) if n)


def _preview(prepared: Prepared, k: int) -> int:
    return PANEL if k else preview_count(prepared.config.num_classes)


def _steps(prepared: Prepared, k: int) -> int:
    return make_settings(prepared.config).steps[k]


def _recorded(prepared: Prepared) -> dict[int, int]:
    """Of a run that is there: images that are left of each stage that has a budget."""
    path = prepared.folder / "events.jsonl"
    if not path.exists():
        return {}
    events, left = Events(path), dict[int, int]()
    for k in prepared.todo:
        seen = newest_images(prepared.folder / prepared.stage_name(k))
        images = images_left(prepared.request, prepared.config.stages[k], k, events, seen)
        left |= {} if images is None else {k: images}
    return left


def _images(prepared: Prepared, todo: list[int], speeds: dict[int, float]) -> dict[int, int]:
    """Images of the budget of each stage of ``todo``, as far as it can be told: as asked, the recipe's own, or by time
    and speed. One that training would refuse is refused here too."""
    request = prepared.request
    stages: list[StageConfig] = [prepared.config.stages[k] for k in todo]
    own = [own_images(request, stage) for stage in stages]
    if all(own):
        return dict(zip(todo, map(round_budget, own, stages), strict=True))
    if any(k not in speeds for k in todo):
        return {}
    seconds = 60 * (request.minutes or DEFAULT_MINUTES) - (time.monotonic() - prepared.began)
    shares = share_minutes(stages, [speeds[k] for k in todo], seconds)
    return {k: images for k, (images, _) in zip(todo, shares, strict=True)}
