"""``cdm train --dry-run``: stages, parameters, FLOPs, memory and time, before anything costly."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from cdm.nn.flops import count_flops, count_parameters, estimate_training_memory
from cdm.pipeline.budget import DEFAULT_MINUTES
from cdm.pipeline.train_run import Prepared
from cdm.rng import Rng
from cdm.train.log import duration
from cdm.train.plan import measure_speed, share_minutes
from cdm.train.step import Trainee

MEASURED_BELOW = 5e13
"""FLOPs of a training step up to which the speed is measured on this machine; a larger one is not tried."""


def describe(prepared: Prepared) -> None:
    """Print the plan of a run."""
    request, stages = prepared.request, prepared.config.stages
    speeds: dict[int, float] = {}
    table = Table(title=f"{request.recipe}: {' -> '.join(map(str, prepared.config.sizes))}")
    for title in ("stage", "parameters", "GFLOPs/image", "batch", "memory", "images/s", "images", "time"):
        table.add_column(title, justify="right")
    rows = []
    for k in prepared.todo:
        stage = stages[k]
        size = stage.optim.crop_size or stage.size
        flops = count_flops(stage.net, size)
        memory = estimate_training_memory(stage.net, stage.optim.micro_batch or stage.optim.batch_size, size)
        if 3 * flops * stage.optim.batch_size < MEASURED_BELOW:
            speeds[k] = measure_speed(
                Trainee(prepared.stage(k)), prepared.batches(k), Rng(prepared.config.seed, k), seconds=1.0
            )
        rows.append((k, count_parameters(stage.net), flops, memory))
    shares: dict[int, tuple[int, float]] = {}
    if request.images is None and len(speeds) == len(rows):
        seconds = 60 * (request.minutes or DEFAULT_MINUTES)
        made = share_minutes([stages[k] for k in prepared.todo], [speeds[k] for k in prepared.todo], seconds)
        shares = dict(zip(prepared.todo, made, strict=True))
    for k, parameters, flops, memory in rows:
        speed = speeds.get(k)
        images = request.images or (shares[k][0] if k in shares else None)
        table.add_row(
            prepared.stage_name(k),
            f"{parameters / 1e6:.2f} M",
            f"{flops / 1e9:.2f}",
            str(stages[k].optim.batch_size),
            f"{memory / 2**30:.2f} GiB",
            f"{speed:.0f}" if speed else "not measured",
            f"{images:,}" if images else "?",
            duration(images / speed) if images and speed else "?",
        )
    console = Console()
    console.print(table)
    console.print(f"nothing was written; without --dry-run this trains into {request.out}", markup=False)
