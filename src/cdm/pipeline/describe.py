"""``cdm train --dry-run``: stages, parameters, FLOPs, memory and time, before anything costly."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from cdm.pipeline.forecast import Forecast, forecast, warning
from cdm.pipeline.train_run import Prepared
from cdm.train.log import duration


def describe(prepared: Prepared) -> None:
    """Print the plan of a run."""
    request, stages = prepared.request, prepared.config.stages
    told = forecast(prepared)
    facts: dict[str, dict[str, str]] = {}
    for stage in told.stages:
        facts[prepared.stage_name(stage.index)] = {
            "parameters": f"{stage.parameters / 1e6:.2f} M",
            "GFLOPs per image": f"{stage.flops / 1e9:.2f}",
            "batch": str(stages[stage.index].optim.batch_size),
            "memory": f"{stage.memory / 2**30:.2f} GiB",
            "images/s": f"{stage.speed:.0f}" if stage.speed else "not measured",
            "images": f"{stage.images:,}" if stage.images is not None else "not known",
            "time": duration(stage.seconds) if stage.seconds is not None else "not known",
        }
    table = Table("stage", title=f"recipe {request.recipe}")  # a column for each stage: it fits a narrow screen
    for name in facts:
        table.add_column(name, justify="right")
    for fact in next(iter(facts.values())):
        table.add_row(fact, *(of_stage[fact] for of_stage in facts.values()))
    console = Console()
    console.print(table)
    lines = [f"nothing was written; without --dry-run this {_what(prepared, told)}"]
    if told.seconds is not None and not _is_done(told):
        lines.insert(0, f"about {duration(told.seconds)} in all, with reading the data and the last samples")
    if prepared.device.type == "cpu":
        lines.insert(
            0, "memory is that of all tensors; the process takes up to 1.9 times as much, and 0.4 GiB for itself"
        )
    if (sentence := warning(prepared, told)) is not None:
        lines.insert(0, sentence)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _is_done(told: Forecast) -> bool:
    return all(stage.images == 0 for stage in told.stages)


def _what(prepared: Prepared, told: Forecast) -> str:
    out = prepared.request.out
    if _is_done(told):
        return f"finds these stages of {out} trained already; a larger --images or --minutes would train them further"
    if (out / "events.jsonl").exists():
        return f"goes on in {out}; images and time are what is left"
    return f"trains into {out}"
