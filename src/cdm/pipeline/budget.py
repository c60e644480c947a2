"""From --images or --minutes to a recorded plan for each stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from cdm.config import StageConfig
from cdm.errors import UserError
from cdm.pipeline.request import TrainRequest
from cdm.train.checkpoint import latest_checkpoint
from cdm.train.events import Events
from cdm.train.loop import read_plan
from cdm.train.plan import Plan, check_budget, cost_share, round_to_batch, share_minutes

DEFAULT_MINUTES = 60.0
CHECKPOINT_SECONDS = 60.0

Speed = Callable[[int], float]
"""Measured training speed of a stage, images per second."""


def plan_stages(
    request: TrainRequest,
    stages: Sequence[StageConfig],
    todo: Sequence[int],
    events: Events,
    speed: Speed,
    began: float,
) -> list[dict[str, Any]]:
    """The events that give a budget to each stage of ``todo`` that has none yet; they are not recorded here. ``began``:
    when the command started."""
    fresh = [k for k in todo if read_plan(events, k) is None]
    if not fresh:
        return []
    own = {k: own_images(request, stages[k]) for k in fresh}
    counted = all(own.values())
    rounded = {k: round_budget(own[k], stages[k]) for k in fresh} if counted else {}
    measured = not counted or request.checkpoint_images is None
    speeds = {k: speed(k) for k in fresh} if measured else {}
    if counted:
        budget = {k: (rounded[k], 0.0) for k in fresh}
    else:
        minutes = request.minutes or DEFAULT_MINUTES
        # a stage planned before keeps its part of the time, also where a kill came between two stages' records
        part = sum(cost_share(stages[k]) for k in fresh) / sum(cost_share(stages[k]) for k in todo)
        left = minutes * 60 * part - (time.monotonic() - began)
        shares = share_minutes([stages[k] for k in fresh], [speeds[k] for k in fresh], left)
        budget = dict(zip(fresh, shares, strict=True))
    planned = []
    for k in fresh:
        images, seconds = budget[k]
        batch_size = stages[k].optim.batch_size
        interval = request.checkpoint_images or min(speeds[k] * CHECKPOINT_SECONDS, images / 4)
        planned.append(
            {
                "stage": k,
                "at": 0,
                "images": images,
                "checkpoint_images": round_to_batch(interval, batch_size),
                "seconds": seconds,
                "images_per_s": round(speeds[k], 2) if measured else None,
                "asked_images": own[k] if counted else None,
                "asked_minutes": None if counted else request.minutes or DEFAULT_MINUTES,
            }
        )
    return planned


def own_images(request: TrainRequest, stage: StageConfig) -> int:
    """Images that are asked for or are the recipe's own; 0 where time decides."""
    return request.images or (stage.optim.images if request.minutes is None else 0)


def round_budget(images: int, stage: StageConfig) -> int:
    """Whole batches; too few are refused."""
    check_budget(images, stage, f"--images {images}")
    return round_to_batch(images, stage.optim.batch_size)


def extend(
    request: TrainRequest, stages: Sequence[StageConfig], todo: Sequence[int], events: Events,
    folder: Callable[[int], str], say: Callable[[str], None],
) -> None:  # fmt: skip
    """Record a larger budget than the run had; a smaller one, or one of the other kind, is refused."""
    if request.images is None and request.minutes is None:
        return
    larger = [k for k in todo if _is_larger(request, _asked(events, k))]
    for k in larger:
        plan, asked = read_plan(events, k), _asked(events, k)
        assert plan is not None and asked is not None
        found = latest_checkpoint(folder(k), say)
        seen = int(found[1]["images_seen"]) if found else 0
        old_total = plan.total(seen)
        total, seconds = _extended(request, plan, asked[1], seen, stages[k])
        events.append(
            "budget", stage=k, at=seen, images=total, checkpoint_images=plan.checkpoint_images, seconds=seconds,
            asked_images=request.images, asked_minutes=request.minutes, why="extended",
        )  # fmt: skip
        say(f"stage {k}: extended from {old_total:,} to {total:,} images")


def _extended(
    request: TrainRequest, plan: Plan, asked: int | float, seen: int, stage: StageConfig
) -> tuple[int, float]:
    """Images and seconds of a budget that is larger than what was ``asked`` before."""
    if request.images is not None:
        return round_to_batch(request.images, stage.optim.batch_size), plan.seconds
    assert request.minutes is not None
    times = request.minutes / asked
    return round_to_batch(plan.total(seen) * times, stage.optim.batch_size), plan.seconds * times


def images_left(request: TrainRequest, stage: StageConfig, k: int, events: Events, seen: int) -> int | None:
    """Images that stage ``k`` still has to see; None: it has no budget yet. ``seen``: of its newest checkpoint.

    Raises:
        UserError: a smaller budget than the run has, or one of the other kind.
    """
    plan, asked, done = read_plan(events, k), _asked(events, k), events.last("stage_done", k)
    if plan is None:
        return None
    goal = plan.goal
    if (request.images or request.minutes) and asked is not None and _is_larger(request, asked):
        goal, _ = _extended(request, plan, asked[1], seen, stage)
    return max(0, goal - max(seen, done["images"] if done is not None else 0))


def _is_larger(request: TrainRequest, asked: tuple[str, int | float] | None) -> bool:
    """Whether the budget asked for now is larger than that of before; False where it is the same or there was none."""
    if asked is None:
        return False
    kind, before = asked
    now = request.images if kind == "images" else request.minutes
    if now is None or now < before:
        given = f"--images {request.images}" if request.images is not None else f"--minutes {request.minutes:g}"
        old = f"--images {before}" if kind == "images" else f"--minutes {before:g}"
        raise UserError(
            f"{request.out} was started with {old}, now it is {given}; repeat the old budget to go on, "
            f"or give a larger --{kind} to train longer."
        )
    return now > before


def _asked(events: Events, stage: int) -> tuple[str, int | float] | None:
    """The budget the user asked for last: its kind and value."""
    for event in reversed(events.all("budget", stage)):
        if event.get("asked_images") is not None:
            return "images", event["asked_images"]
        if event.get("asked_minutes") is not None:
            return "minutes", event["asked_minutes"]
    return None
