"""The paper's cascades (Ho et al. 2021, section 5 and appendix B) as recipes, for those with the machines.

What the paper states is kept: networks, eps-prediction, hybrid loss with learned variances up to 64 pixels, cosine
tables of 4000, augmentation, batch sizes, updates, learning rate. What it does not state is our choice: warm-up,
gradient clipping, and power-function EMA in place of a decay of 0.9999. Pass --flip for the flips of the base and 256
stages.

Hardware: many accelerators for days; nothing here was trained by us. Expected: each recipe names the paper's FIDs.
"""

from __future__ import annotations

from cdm.config import (
    AugmentationConfig,
    CascadeConfig,
    ConfigError,
    LossConfig,
    NetConfig,
    OptimConfig,
    SamplingConfig,
    ScheduleConfig,
    StageConfig,
)
from cdm.recipes.facts import Facts
from cdm.recipes.paper import base_32, sr_32_64, sr_64_128, sr_64_256

TABLE = ScheduleConfig(kind="cosine_table", num_timesteps=4000)
NOISE = AugmentationConfig(kind="gaussian", level_map="cosine_table", num_timesteps=4000, clean_fraction=0.0)
BLUR = AugmentationConfig(kind="blur", blur_min=0.4, blur_max=0.6, blur_fraction=0.5)


def _optim(batch_size: int, updates: int) -> OptimConfig:
    return OptimConfig(
        batch_size=batch_size,
        micro_batch=32,
        images=batch_size * updates,
        lr=1e-4,
        betas=(0.9, 0.999),
        warmup_images=batch_size * 10_000,
        decay_fraction=0.0,
        checkpointing=True,
    )


def _low_stage(facts: Facts, net: NetConfig, low_res_size: int, updates: int) -> StageConfig:
    """Base and 32 to 64: hybrid loss, learned variances."""
    return StageConfig(
        size=net.image_size,
        low_res_size=low_res_size,
        channels=facts.data.channels,
        net=net,
        schedule=TABLE,
        prediction="eps",
        told="timestep",
        variance="learned",
        loss=LossConfig(vlb_weight=0.001),
        label_dropout=0.0,
        augmentation=NOISE if low_res_size else AugmentationConfig(kind="none"),
        optim=_optim(2048, updates),
    )


def _high_stage(facts: Facts, net: NetConfig) -> StageConfig:
    """64 to 128 or 256: simple loss on a continuous noise level, blur."""
    return StageConfig(
        size=net.image_size,
        low_res_size=64,
        channels=facts.data.channels,
        net=net,
        schedule=ScheduleConfig(kind="linear"),
        prediction="eps",
        told="logsnr",
        label_dropout=0.0,
        augmentation=BLUR,
        optim=_optim(1024, 500_000),
    )


def _cascade(name: str, facts: Facts, last: NetConfig | None) -> CascadeConfig:
    labels, channels = len(facts.class_names), facts.data.channels
    stages = [
        _low_stage(facts, base_32(labels, channels), 0, 700_000),
        _low_stage(facts, sr_32_64(labels, channels), 32, 400_000),
    ]
    steps: tuple[int, ...] = (4000, 4000)
    if last is not None:
        stages.append(_high_stage(facts, last))
        steps = (4000, 4000, 100)
    sizes = tuple(stage.size for stage in stages)
    if facts.sizes != sizes:
        raise ConfigError(f"recipe {name} has the sizes {sizes}; got {facts.sizes}: leave --sizes out.")
    return CascadeConfig(
        recipe=name,
        seed=facts.seed,
        class_names=facts.class_names,
        data=facts.data,
        stages=tuple(stages),
        sampling=SamplingConfig(sampler="ddpm", steps=steps, aug_level=(0.25, 0.0)[: len(stages) - 1]),
    )


def cdm_imagenet_64(facts: Facts) -> CascadeConfig:
    """32 to 64; the paper's FID: 1.48 against the training set, 2.48 against the validation set."""
    return _cascade("cdm-imagenet-64", facts, None)


def cdm_imagenet_128(facts: Facts) -> CascadeConfig:
    """32 to 64 to 128; the paper's FID: 3.52 and 3.76, CAS 59.84 / 81.79."""
    return _cascade("cdm-imagenet-128", facts, sr_64_128(len(facts.class_names), facts.data.channels))


def cdm_imagenet_256(facts: Facts) -> CascadeConfig:
    """32 to 64 to 256; the paper's FID: 4.88 and 4.63, CAS 63.02 / 84.06."""
    return _cascade("cdm-imagenet-256", facts, sr_64_256(len(facts.class_names), facts.data.channels))
