"""Trains the arms of the plan, each one stage in a run folder of its own; an arm that was stopped goes on."""

from __future__ import annotations

from pathlib import Path

from cdm.config import CascadeConfig, DataConfig
from cdm.data.source import open_source
from cdm.pipeline.generate import no_progress
from cdm.pipeline.request import TrainRequest
from cdm.pipeline.train_run import prepare, train
from paper.plan import PLAN, arm_config, arm_images


def train_arm(name: str, data: str, work: Path) -> Path:
    """Returns the arm's run folder."""
    arm = PLAN["arms"][name]
    sizes, out = tuple(arm["sizes"]), work / "arms" / name
    images = arm_images(name, DataConfig(), open_source(data).class_names)
    request = TrainRequest(
        data=data, out=out, sizes=sizes, images=images, stage=arm.get("stage", 0) if len(sizes) > 1 else None
    )

    def recipe(sizes: tuple[int, ...], class_names: tuple[str, ...], config: DataConfig, count: int) -> CascadeConfig:
        return arm_config(name, sizes, class_names, config, count)

    train(prepare(request, recipe, None, print, no_progress), print)
    return out
