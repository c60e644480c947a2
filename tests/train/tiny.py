"""A stage and data small enough that an update takes milliseconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from cdm.config import AugmentationConfig, NetConfig, OptimConfig, StageConfig
from cdm.rng import Purpose, Rng
from cdm.stage import Stage, build_stage
from cdm.types import Batch

CLASSES = 2
OPTIM: dict[str, Any] = {"batch_size": 8, "warmup_images": 32, "lr": 2e-3}


def stage_config(*, size: int = 8, low: int = 0, dropout: float = 0.0, **optim: Any) -> StageConfig:
    net = NetConfig(
        image_size=size, in_channels=2 if low else 1, out_channels=1, width=8, multipliers=(1,), num_blocks=1,
        head_channels=8, dropout=dropout, num_labels=CLASSES + 1, has_aug_level=low > 0,
    )  # fmt: skip
    augmentation = AugmentationConfig(kind="gaussian" if low else "none")
    return StageConfig(
        size=size,
        low_res_size=low,
        channels=1,
        net=net,
        augmentation=augmentation,
        optim=OptimConfig(**(OPTIM | optim)),
    )


def make_stage(config: StageConfig, index: int = 0, seed: int = 0) -> Stage:
    return build_stage(config, index, num_classes=CLASSES, seed=seed).to("cpu", torch.float32)


def awake(stage: Stage) -> Stage:
    """The same stage with weights that are nowhere 0, so that every weight has a gradient."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in stage.net.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator)
    return stage


@dataclass
class Images:
    """A batch source: images that are a pure function of attempt and position; ``nan`` at planted places.

    nan: (attempt, first position) of the updates that meet a NaN; attempt None: all.
    """

    size: int = 8
    nan: set[tuple[int | None, int]] = field(default_factory=set)

    def __call__(self, rng: Rng, positions: Int64[Tensor, " b"]) -> Batch:
        shape = (1, self.size, self.size)
        x0 = rng.normal(Purpose.CROP, positions, shape).mul(0.3).clamp(-1, 1)
        begin = int(positions[0])
        if {(rng.attempt, begin), (None, begin)} & self.nan:
            x0[0] = torch.nan
        return Batch(x0, positions % CLASSES, positions)


def weights_of(folder: Path) -> dict[str, Tensor]:
    """All weights of a stage folder: raw and every EMA profile."""
    from cdm.artifacts import load_tensors

    return {f"{p.stem}/{k}": v for p in sorted(folder.glob("*.safetensors")) for k, v in load_tensors(p)[0].items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit, NaNs included."""
    bits = lambda x: x.contiguous().view(-1).view(torch.uint8)  # noqa: E731
    return a.keys() == b.keys() and all(torch.equal(bits(a[k]), bits(b[k])) for k in a)
