"""``cdm train --dry-run``: stages, parameters, FLOPs, memory and time, before anything costly."""

from __future__ import annotations

import time

from rich.console import Console
from rich.table import Table

from cdm.nn.flops import count_flops, count_parameters, estimate_training_memory
from cdm.pipeline.budget import DEFAULT_MINUTES, own_images, round_budget
from cdm.pipeline.train_run import Prepared
from cdm.rng import Rng
from cdm.train.log import duration
from cdm.train.plan import measure_speed, share_minutes
from cdm.train.step import Trainee

MEASURED_BELOW = {"cpu": 1e12, "cuda": 5e13}
"""FLOPs of a training step up to which the speed is measured on this machine; a larger one is not tried."""


def describe(prepared: Prepared) -> None:
    """Print the plan of a run."""
    request, stages = prepared.request, prepared.config.stages
    speeds: dict[int, float] = {}
    rows = []
    for k in prepared.todo:
        stage, optim = stages[k], stages[k].optim
        size = optim.crop_size or stage.size
        flops = count_flops(stage.net, size)
        memory = estimate_training_memory(
            stage.net,
            optim.micro_batch or optim.batch_size,
            size,
            dtype=prepared.dtype,
            checkpointing=optim.checkpointing,
        )
        if 3 * flops * optim.batch_size < MEASURED_BELOW[prepared.device.type]:
            speeds[k] = measure_speed(
                Trainee(prepared.stage(k)), prepared.batches(k), Rng(prepared.config.seed, k), seconds=1.0
            )
        rows.append((k, count_parameters(stage.net), flops, memory))
    budget = _images(prepared, speeds)
    facts: dict[str, dict[str, str]] = {}
    for k, parameters, flops, memory in rows:
        speed, images = speeds.get(k), budget.get(k)
        facts[prepared.stage_name(k)] = {
            "parameters": f"{parameters / 1e6:.2f} M",
            "GFLOPs per image": f"{flops / 1e9:.2f}",
            "batch": str(stages[k].optim.batch_size),
            "memory": f"{memory / 2**30:.2f} GiB",
            "images/s": f"{speed:.0f}" if speed else "not measured",
            "images": f"{images:,}" if images else "not known",
            "time": duration(images / speed) if images and speed else "not known",
        }
    table = Table("stage", title=f"recipe {request.recipe}")  # a column for each stage: it fits a narrow screen
    for name in facts:
        table.add_column(name, justify="right")
    for fact in next(iter(facts.values())):
        table.add_row(fact, *(of_stage[fact] for of_stage in facts.values()))
    console = Console()
    console.print(table)
    told = f"nothing was written; without --dry-run this trains into {request.out}"
    console.print(told, markup=False, highlight=False, soft_wrap=True)


def _images(prepared: Prepared, speeds: dict[int, float]) -> dict[int, int]:
    """Images of each stage's budget, as far as it can be told: as asked, the recipe's own, or by time and speed. One
    that training would refuse is refused here too."""
    request, todo = prepared.request, prepared.todo
    stages = [prepared.config.stages[k] for k in todo]
    own = [own_images(request, stage) for stage in stages]
    if all(own):
        return dict(zip(todo, map(round_budget, own, stages), strict=True))
    if len(speeds) < len(todo):
        return {}
    seconds = 60 * (request.minutes or DEFAULT_MINUTES) - (time.monotonic() - prepared.began)
    shares = share_minutes(stages, [speeds[k] for k in todo], seconds)
    return {k: images for k, (images, _) in zip(todo, shares, strict=True)}
