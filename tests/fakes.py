"""Small stages for tests: nets whose weights are alive everywhere, and nets that are a given function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cdm.artifacts import make_folder, save_json
from cdm.cascade import Cascade
from cdm.config import AugmentationConfig, CascadeConfig, DataConfig, NetConfig, SamplingConfig, StageConfig, to_dict
from cdm.nn.unet import UNet
from cdm.stage import Stage, build_stage
from cdm.train.checkpoint import save_weights

Function = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]


def stage_config(size: int, low: int = 0, *, channels: int = 1, num_labels: int = 0, **changes: Any) -> StageConfig:
    """A base (``low`` 0) or SR stage with the smallest net that has every part. ``changes``: fields of the stage."""
    kind = changes.pop("augmentation", AugmentationConfig(kind="gaussian" if low else "none"))
    net = NetConfig(
        image_size=size,
        in_channels=2 * channels if low else channels,
        out_channels=2 * channels if changes.get("variance") == "learned" else channels,
        width=16,
        multipliers=(1, 2),
        num_blocks=1,
        num_labels=num_labels,
        has_aug_level=kind.has_noise,
    )
    values = {"size": size, "low_res_size": low, "channels": channels, "net": net, "augmentation": kind}
    return StageConfig(**(values | {"label_dropout": 0.0} | changes))


def shake(net: nn.Module, seed: int = 0) -> None:
    """Fill what is initialised to zero, so that every weight matters to the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                scale = (parameter[0].numel() if parameter.ndim > 1 else 100) ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def random_stage(config: StageConfig, index: int = 0, *, num_classes: int = 0, levels: int = 256) -> Stage:
    stage = build_stage(config, index, num_classes=num_classes, levels=levels, seed=3)
    shake(stage.net, seed=index)
    stage.net.eval().requires_grad_(False)
    return stage


def cascade_config(
    *configs: StageConfig, classes: Sequence[str] = (), sampling: SamplingConfig | None = None
) -> CascadeConfig:
    return CascadeConfig(
        stages=configs,
        class_names=tuple(classes),
        data=DataConfig(channels=configs[0].channels),
        sampling=sampling or SamplingConfig(),
    )


def random_cascade(*configs: StageConfig, classes: Sequence[str] = (), dtype: torch.dtype = torch.float32) -> Cascade:
    stages = [random_stage(c, i, num_classes=len(classes)).to("cpu", dtype) for i, c in enumerate(configs)]
    return Cascade(cascade_config(*configs, classes=classes), stages)


class FunctionNet(UNet):
    """Stands in for a network: ``function(x, noise_input, labels, aug_input)`` is its output."""

    def __init__(self, function: Function) -> None:
        nn.Module.__init__(self)
        self.function = function
        self.checkpointing = False
        self.nothing = nn.Parameter(torch.zeros(()))  # whoever asks for the device asks a parameter

    def forward(self, x, noise_input, labels, aug_input, dropout=None):  # type: ignore[override]
        return self.function(x, noise_input, labels, aug_input)


def function_stage(config: StageConfig, function: Function, index: int = 0, **options: Any) -> Stage:
    return Stage(config, index, FunctionNet(function), **({"num_classes": 0} | options))


def save_run(run: Path, cascade: Cascade) -> Path:
    """The run folder that training would leave, its EMA profiles being the weights themselves, halved and doubled."""
    make_folder(run)
    save_json(run / "cascade.json", {"config": to_dict(cascade.config)})
    for stage in cascade.stages:
        params = {name: p.detach() for name, p in stage.net.named_parameters()}
        emas = {s: {name: p * by for name, p in params.items()} for s, by in ((0.05, 0.5), (0.10, 2.0))}
        save_weights(run / stage.name, params, emas, {"images_seen": 64})
    return run
