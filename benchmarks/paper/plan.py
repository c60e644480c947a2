"""The plan of the experiments, as it was written before the first run (``plan.json``), and what was added when the
paper's findings did not appear (``remedies.json``), which stands beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from cdm.config import CascadeConfig, DataConfig
from cdm.nn.flops import count_flops
from cdm.pipeline.augmentation_request import AugmentationRequest, with_augmentation
from cdm.recipes import make_config
from cdm.recipes.facts import Facts


def read_plan() -> dict[str, Any]:
    plan, more = (json.loads((Path(__file__).parent / name).read_text()) for name in ("plan.json", "remedies.json"))
    for name in ("arms", "experiments"):
        plan[name] |= more[name]
    return plan | {"bases": more["bases"], "remedy_levels": more["levels"]}


PLAN = read_plan()
RECIPE = "small"


def kind_of(experiment: str) -> str:
    """Its letter in the plan; a remedy's: of the one it was written for."""
    return PLAN["experiments"][experiment].get("of", experiment)


def arm_config(
    name: str, sizes: tuple[int, ...], class_names: tuple[str, ...], data: DataConfig, count: int
) -> CascadeConfig:
    """The recipe with what the arm changes in the one stage that it trains."""
    arm = PLAN["arms"][name]
    config = make_config(RECIPE, Facts(sizes, class_names, data, count, 0))
    k = arm["stage"] if "stage" in arm else 0
    if k:
        kind = arm.get("kind", "gaussian")
        trained = arm.get("level", arm.get("levels", PLAN["trained_levels"]))
        levels = (str(trained),) if "gaussian" in kind else None
        own = AugmentationRequest(kind=(kind,), levels=levels)
        config = with_augmentation(config, own)
    if not arm.get("classes", True):
        stage = config.stages[k]
        stage = replace(stage, net=replace(stage.net, num_labels=0), label_dropout=0.0)
        config = replace(config, stages=(*config.stages[:k], stage, *config.stages[k + 1 :]))
    return config


def arm_images(name: str, data: DataConfig, class_names: tuple[str, ...]) -> int:
    """Images that an arm is trained on; "flops": as many as cost what a base and its amortised stage cost together."""
    images = PLAN["arms"][name]["images"]
    if images != "flops":
        return int(images)

    def flops(arm: str) -> int:
        config = arm_config(arm, tuple(PLAN["arms"][arm]["sizes"]), class_names, data, 1000)
        stage = config.stages[PLAN["arms"][arm].get("stage", 0)]
        return count_flops(stage.net, stage.optim.crop_size or stage.size)

    spent = sum(
        flops(arm) * arm_images(arm, data, class_names) for arm in PLAN["arms"][name].get("as", ("base-8", "amortised"))
    )
    batch = 64
    return round(spent / flops(name) / batch) * batch
