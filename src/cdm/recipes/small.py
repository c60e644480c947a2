"""Recipes for own images on a small budget: one GPU, or a few CPU cores and an hour."""

from __future__ import annotations

from dataclasses import replace
from math import log

from cdm.config import (
    AugmentationConfig,
    CascadeConfig,
    NetConfig,
    OptimConfig,
    ScheduleConfig,
    StageConfig,
)
from cdm.recipes.facts import Facts

SHIFT_REF = 32
"""Resolution whose cosine schedule is not shifted; others add 2 ln(SHIFT_REF / size) (Hoogeboom et al. 2023, eq. 4)."""


def shifted(size: int) -> ScheduleConfig:
    return ScheduleConfig(kind="cosine", shift=2 * log(SHIFT_REF / size))


def _stage(facts: Facts, index: int, net: NetConfig, optim: OptimConfig) -> StageConfig:
    """What all stages of these recipes share: v-prediction, label dropout, amortised Gaussian augmentation."""
    size, low = facts.sizes[index], facts.sizes[index - 1] if index else 0
    kind = "none" if index == 0 else "gaussian"
    return StageConfig(
        size=size,
        low_res_size=low,
        channels=facts.data.channels,
        net=net,
        schedule=shifted(size),
        label_dropout=0.1 if facts.class_names else 0.0,
        augmentation=AugmentationConfig(kind=kind, level_max=0.6 if index else 1.0),
        optim=optim,
    )


def _net(
    facts: Facts, index: int, width: int, multipliers: tuple[int, ...], attention: tuple[int, ...], *, patch: int = 1
) -> NetConfig:
    channels, size = facts.data.channels, facts.sizes[index]
    while size % (patch * 2 ** (len(multipliers) - 1)):  # a size that cannot be halved as often
        if patch > 1:
            patch = 1
        else:
            multipliers = multipliers[:-1]
    return NetConfig(
        image_size=size,
        in_channels=channels if index == 0 else 2 * channels,
        out_channels=channels,
        width=width,
        multipliers=multipliers,
        num_blocks=1,
        patch=patch,
        direct=patch > 1,  # or the noise of a patch does not pass through the net (docs/log.md)
        resample="strided",
        attention=attention,
        num_labels=len(facts.class_names) + 1 if facts.class_names else 0,
        has_aug_level=index > 0,
    )


def small(facts: Facts) -> CascadeConfig:
    """The default: nets of a few million parameters, for a folder of images and an hour of a few CPU cores.

    Many updates of a small net win on such a budget. Larger stages take pixels in patches, so that a base works at
    16 x 16 positions and an SR stage at 32 x 32. An SR net is wide at the top and shallow below: what it adds is local.

    Command: ``cdm train PHOTOS/ --out RUN --minutes 60``. Measured results: docs/results.md.
    """
    stages = []
    for index, size in enumerate(facts.sizes):
        if index == 0:
            net = _net(facts, index, 32, (2, 3, 3), (8,), patch=_patch(size, 16))
            optim = OptimConfig(optimizer="muon", batch_size=64, lr=1.6e-3, cost_share=0.62)
        else:
            crop = _crop(size, facts.sizes[index - 1])
            net = _net(facts, index, 48, (1, 1, 1), (), patch=_patch(size, 32))
            if crop:  # attention would meet more pixels when sampling than it was trained on
                net = replace(net, middle_attention=False)
            optim = OptimConfig(
                optimizer="muon",
                batch_size=32,
                lr=1.2e-3,
                cost_share=0.38 / (len(facts.sizes) - 1),
                crop_size=crop,
            )
        stages.append(_stage(facts, index, net, optim))
    return CascadeConfig(
        recipe="small", seed=facts.seed, class_names=facts.class_names, data=facts.data, stages=tuple(stages)
    )


def _crop(size: int, low_res_size: int) -> int:
    """Crops of 64 pixels for larger SR stages: enlarging is local work, and a crop costs a part of the whole."""
    factor = size // low_res_size
    return 0 if size <= 64 or 64 % (4 * factor) else 64


def _patch(size: int, positions: int) -> int:
    """2 pixels per side where the net would otherwise work at twice ``positions`` or more, else 1.

    Never more: 4 x 4 pixels of colour are 48 numbers, more than the net is wide, and what is narrower than its input
    cannot carry the noise that it is to tell (docs/log.md).
    """
    return 2 if size >= 2 * positions and size % 16 == 0 else 1


def demo(facts: Facts) -> CascadeConfig:
    """16 to 32 pixels in five minutes of two CPU cores, on the built-in letters.

    Command: ``make demo``, that is ``cdm train builtin:letters --recipe demo --minutes 5.4 --out runs/demo``.
    """
    stages = []
    for index in range(len(facts.sizes)):
        if index == 0:
            net = _net(facts, index, 32, (1, 2, 2), (8,))
        else:
            net = _net(facts, index, 48, (1, 1, 1), (), patch=2)
        optim = OptimConfig(
            optimizer="muon",
            batch_size=64,
            lr=2.4e-3 if index == 0 else 1.6e-3,
            warmup_images=640,
            decay_fraction=0.5 if index == 0 else 0.3,
            cost_share=0.7 if index == 0 else 0.3,
        )
        stages.append(_stage(facts, index, net, optim))
    return CascadeConfig(
        recipe="demo", seed=facts.seed, class_names=facts.class_names, data=facts.data, stages=tuple(stages)
    )
