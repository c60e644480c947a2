"""Budgets and schedules: pure functions of images seen and of the recorded decisions."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import torch

from cdm.config import OptimConfig, StageConfig
from cdm.errors import UserError
from cdm.losses import noise_batch
from cdm.rng import Rng
from cdm.stage import Stage
from cdm.train.log import duration
from cdm.train.step import BatchSource, Trainee
from cdm.types import Batch

OVERHEAD = 0.08
"""Share of a time budget kept for validation, previews, checkpoints and the last samples."""
LATE = 1.1
"""A stage that would take longer than this multiple of its time is shortened."""
EARLY = 0.8
"""One that would take less than this share of it is lengthened, as long as its learning rate has not begun to fall."""


@dataclass(frozen=True)
class Segment:
    """From ``at`` images on, the stage is meant to end at ``total`` images."""

    at: int
    total: int


@dataclass(frozen=True)
class Plan:
    """How far a stage trains. Of ``segments``, in the order they were decided in, a later one overrules those before
    from its ``at`` on; ``seconds`` is the stage's share of a time budget, 0 without one."""

    segments: tuple[Segment, ...]
    checkpoint_images: int
    seconds: float = 0.0

    def total(self, images_seen: int) -> int:
        """The goal in force after ``images_seen`` images."""
        return next(s.total for s in reversed(self.segments) if s.at <= images_seen or s is self.segments[0])

    @property
    def goal(self) -> int:
        """Where the stage ends, as far as decided."""
        return self.segments[-1].total

    def is_regular(self, images_seen: int) -> bool:
        """Whether a checkpoint is due at ``images_seen``, however the run was interrupted."""
        return images_seen % self.checkpoint_images == 0


def learning_rate(config: OptimConfig, plan: Plan, images_seen: int) -> float:
    """Linear warm-up, constant, then linear to ``lr * lr_final`` over the last ``decay_fraction`` of the goal."""
    warm = min(1.0, (images_seen + config.batch_size) / max(config.warmup_images, 1))
    total = plan.total(images_seen)
    left = max(0.0, 1 - images_seen / total)
    decay = min(1.0, left / config.decay_fraction) if config.decay_fraction > 0 else 1.0
    return config.lr * warm * (config.lr_final + (1 - config.lr_final) * decay)


def round_to_batch(images: int | float, batch_size: int) -> int:
    return max(1, round(images / batch_size)) * batch_size


def measure_speed(trainee: Trainee, batches: BatchSource, rng: Rng, *, seconds: float = 3.0) -> float:
    """Images per second of training steps, on a trainee that is thrown away afterwards. At least 3 timed steps.

    The lower quartile of their times counts: another process that is busy for a moment must not shrink the budget,
    which is shortened later if the machine stays slow; it is lengthened only until its learning rate falls.
    """
    size = trainee.stage.config.optim.batch_size
    begins = count(0, size)  # as in training, where the next batch is gathered ahead

    def step() -> None:
        begin = next(begins)
        trainee.step(batches(rng, torch.arange(begin, begin + size)), rng, lr=0.0)
        trainee.sync()

    return size / _quartile(step, seconds)


@torch.no_grad()
def measure_look(stage: Stage, batch: Batch, rng: Rng, *, seconds: float = 0.5) -> float:
    """Images per second of the network's forward pass, as validation and previews use it. At least 3 timed passes."""
    noised = noise_batch(stage, batch, rng)

    def look() -> None:
        raw, _ = stage.denoiser.raw(noised.x_t, noised.logsnr, noised.cond)
        float(raw[0, 0, 0, 0])  # waits for the device

    return len(batch.index) / _quartile(look, seconds)


def _quartile(work: Callable[[], None], seconds: float) -> float:
    """Lower quartile of the times of ``work``, repeated for ``seconds``, after two that do not count."""
    work()
    work()
    times, begin = [], time.perf_counter()
    while len(times) < 3 or sum(times) < seconds:
        work()
        end = time.perf_counter()
        times.append(end - begin)
        begin = end
    return sorted(times)[len(times) // 4]


class Pace:
    """Training speed over the last ``images`` images of this session. A fall (roll-back) starts anew."""

    def __init__(self, images: int) -> None:
        self._images = images
        self._points: deque[tuple[float, int]] = deque()

    def update(self, seconds: float, images_seen: int) -> float | None:
        """Takes in a point and returns images per second; None until enough was seen to tell."""
        points = self._points
        if points and images_seen <= points[-1][1]:
            points.clear()
        points.append((seconds, images_seen))
        while len(points) > 2 and images_seen - points[1][1] >= self._images:
            points.popleft()
        begin, before = points[0]
        if images_seen - before < self._images or seconds <= begin:
            return None
        return (images_seen - before) / (seconds - begin)


def goal_in_time(plan: Plan, images_seen: int, seconds: float, pace: float, config: OptimConfig) -> int | None:
    """Another goal that is reached in time; None where the one in force will do. It is smaller where that would be over
    10 % late, and larger where it would be over 20 % early (the machine was busy when its speed was measured).

    seconds: that the stage has trained for. pace: images per second.
    """
    total = plan.total(images_seen)
    end = seconds + (total - images_seen) / pace
    if plan.segments[-1].at >= images_seen:  # it was decided before, and is replayed now
        return None
    if end > LATE * plan.seconds:
        goal = images_seen + round_to_batch(max(plan.seconds - seconds, 0) * pace, config.batch_size)
        return goal if goal < total else None
    if end < EARLY * plan.seconds and images_seen <= (1 - config.decay_fraction) * total:
        goal = images_seen + round_to_batch(((1 - OVERHEAD) * plan.seconds - seconds) * pace, config.batch_size)
        return goal if goal > total else None
    return None


def cost_share(stage: StageConfig) -> float:
    """Weight of a stage in a time budget; all weigh the same where the recipe says nothing."""
    return stage.optim.cost_share or 1.0


def share_minutes(stages: Sequence[StageConfig], speeds: Sequence[float], seconds: float) -> list[tuple[int, float]]:
    """Images and seconds of each stage for a time budget, divided by ``cost_share``.

    Raises:
        UserError: the time does not suffice for ten updates of each stage.
    """
    weights = [cost_share(stage) for stage in stages]
    out = []
    for stage, speed, weight in zip(stages, speeds, weights, strict=True):
        own = max(seconds, 0) * weight / sum(weights)
        images = round_to_batch(own * (1 - OVERHEAD) * speed, stage.optim.batch_size)
        check_budget(images, stage, f"the {duration(own)} left to it at {speed:.0f} images/s")
        out.append((images, own))
    return out


def check_budget(images: int, stage: StageConfig, source: str) -> None:
    least = 10 * stage.optim.batch_size
    if images < least:
        raise UserError(
            f"the budget is too small: {source} gives the {stage.size}-pixel stage {max(images, 0):,} images, "
            f"expected at least {least} (10 updates of {stage.optim.batch_size}): raise --images or --minutes."
        )
