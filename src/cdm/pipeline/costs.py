"""What an image costs at each stage: network evaluations, FLOPs, seconds. It shows where steps are spent."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from cdm.cascade import Cascade
from cdm.config import SamplingConfig
from cdm.nn.flops import count_flops
from cdm.samplers import num_evaluations
from cdm.settings import of_stage, stage_grid
from cdm.stage import Stage
from cdm.types import Cond

ROUNDS = 5


@dataclass(frozen=True)
class StageCost:
    """Of one image. seconds: one evaluation timed at the batch size in use, times the number of evaluations; the
    sampler's own arithmetic is not in it. flops: convolutions and matrix products, 2 for multiply and add."""

    stage: str
    evaluations: int
    flops: int
    seconds: float


def stage_costs(cascade: Cascade, settings: SamplingConfig, batch_size: int) -> tuple[StageCost, ...]:
    """Of every stage, the base first. Takes a few evaluations of each network."""
    found = []
    for stage in cascade.stages:
        stop = None if stage is cascade.stages[-1] else cascade.stop_level(stage, settings)
        grid = stage_grid(stage, settings, settings.steps[stage.index], stop)
        count = num_evaluations(of_stage(settings.sampler, stage.index), grid)
        flops = count_flops(stage.config.net, stage.config.size)
        found.append(StageCost(stage.name, count, count * flops, count * _seconds(stage, batch_size)))
    return tuple(found)


def told_costs(costs: tuple[StageCost, ...]) -> list[dict[str, Any]]:
    """For a report: with each stage's share of all seconds."""
    total = math.fsum(cost.seconds for cost in costs)
    return [asdict(cost) | {"share": cost.seconds / total if total else 0.0} for cost in costs]


@torch.no_grad()
def _seconds(stage: Stage, batch_size: int) -> float:
    """Of one evaluation and image."""
    device = next(stage.net.parameters()).device
    x = torch.zeros(batch_size, *stage.shape, device=device)
    level = torch.zeros(batch_size, device=device)
    labels = None if stage.config.net.num_labels == 0 else torch.zeros(batch_size, dtype=torch.int64, device=device)
    low_res = None if stage.config.is_base else x
    cond = Cond(labels, low_res, level if stage.config.net.has_aug_level else None)
    taken = []
    for _ in range(2 + ROUNDS):  # the first ones warm up and, on CUDA, record
        began = time.perf_counter()
        stage.denoiser(x, level, cond)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[2:]) / batch_size
