"""Budgets and schedules: pure functions of images seen and of the recorded decisions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cdm.config import OptimConfig, StageConfig
from cdm.errors import UserError
from cdm.rng import Rng
from cdm.train.step import BatchSource, Trainee

OVERHEAD = 0.08
"""Share of a time budget kept for validation, previews, checkpoints and the last samples."""


@dataclass(frozen=True)
class Segment:
    """From ``at`` images on, the stage is meant to end at ``total`` images."""

    at: int
    total: int


@dataclass(frozen=True)
class Plan:
    """How far a stage trains. ``segments`` rise in ``at``; ``seconds`` is its share of a time budget, 0 without one."""

    segments: tuple[Segment, ...]
    checkpoint_images: int
    seconds: float = 0.0

    def total(self, images_seen: int) -> int:
        """The goal in force after ``images_seen`` images."""
        return next(s.total for s in reversed(self.segments) if s.at <= images_seen or s is self.segments[0])


def learning_rate(config: OptimConfig, plan: Plan, images_seen: int) -> float:
    """Linear warm-up, constant, then linear to ``lr * lr_final`` over the last ``decay_fraction`` of the goal."""
    warm = min(1.0, (images_seen + config.batch_size) / max(config.warmup_images, 1))
    total = plan.total(images_seen)
    left = max(0.0, 1 - images_seen / total)
    decay = min(1.0, left / config.decay_fraction) if config.decay_fraction > 0 else 1.0
    return config.lr * warm * (config.lr_final + (1 - config.lr_final) * decay)


def round_to_batch(images: float, batch_size: int) -> int:
    return max(1, round(images / batch_size)) * batch_size


def measure_speed(trainee: Trainee, batches: BatchSource, rng: Rng, *, seconds: float = 3.0) -> float:
    """Images per second of training steps, on a trainee that is thrown away afterwards. At least 3 timed steps."""
    size = trainee.stage.config.optim.batch_size
    positions = torch.arange(size)
    for _ in range(2):
        trainee.step(batches(rng, positions), rng, lr=0.0)
    trainee.sync()
    steps, begin = 0, time.perf_counter()
    while steps < 3 or time.perf_counter() - begin < seconds:
        trainee.step(batches(rng, positions), rng, lr=0.0)
        trainee.sync()
        steps += 1
    return steps * size / (time.perf_counter() - begin)


def share_minutes(stages: Sequence[StageConfig], speeds: Sequence[float], seconds: float) -> list[tuple[int, float]]:
    """Images and seconds of each stage for a time budget; ``cost_share`` weighs them (equal where it is 0).

    Raises:
        UserError: the time does not suffice for ten updates of each stage.
    """
    weights = [stage.optim.cost_share or 1.0 for stage in stages]
    out = []
    for stage, speed, weight in zip(stages, speeds, weights, strict=True):
        own = seconds * weight / sum(weights)
        images = round_to_batch(own * (1 - OVERHEAD) * speed, stage.optim.batch_size)
        check_budget(images, stage, f"{own / 60:.2g} minutes at {speed:.0f} images/s")
        out.append((images, own))
    return out


def check_budget(images: int, stage: StageConfig, source: str) -> None:
    least = 10 * stage.optim.batch_size
    if images < least:
        raise UserError(
            f"the budget is too small: {source} gives the stage at {stage.size} {max(images, 0)} images, expected at least "
            f"{least} (10 updates of {stage.optim.batch_size}): raise --images or --minutes."
        )
