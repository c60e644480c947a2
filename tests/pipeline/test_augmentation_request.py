"""What is asked of the conditioning augmentation, put over a recipe's stages."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cdm.config import AugmentationConfig, CascadeConfig, DataConfig
from cdm.errors import UserError
from cdm.nn.unet import UNet
from cdm.pipeline.augmentation_request import KINDS, AugmentationRequest, with_augmentation
from cdm.recipes import make_config
from cdm.recipes.facts import Facts
from cdm.settings import make_settings


def recipe(*sizes: int) -> CascadeConfig:
    return make_config("small", Facts(sizes or (8, 16, 32), ("a", "b"), DataConfig(), num_images=100))


def asked(**options: Any) -> AugmentationRequest:
    return AugmentationRequest(**{name: tuple(value.split(",")) for name, value in options.items()})


def test_nothing_asked_changes_nothing() -> None:
    assert with_augmentation(recipe(), AugmentationRequest()) == recipe()


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_that_of_every_sr_stage_and_its_net_fits(kind: str) -> None:
    config = with_augmentation(recipe(), asked(kind=kind))
    assert config.stages[0] == recipe().stages[0]
    for stage in config.stages[1:]:
        assert stage.augmentation.kind == kind
        assert stage.net.has_aug_level == stage.augmentation.has_noise == kind.startswith("gaussian")
        with torch.device("meta"):
            UNet(stage.net)


def test_each_stage_takes_its_own() -> None:
    config = with_augmentation(recipe(), asked(kind="gaussian+blur,blur", levels="0:0.4", density="logsnr"))
    first, second = (stage.augmentation for stage in config.stages[1:])
    assert (first.kind, first.level_min, first.level_max, first.level_density) == ("gaussian+blur", 0, 0.4, "logsnr")
    assert first.clean_fraction == AugmentationConfig().clean_fraction
    assert second.kind == "blur" and not config.stages[2].net.has_aug_level


def test_one_level_is_the_only_one_trained_and_the_default_of_sampling() -> None:
    config = with_augmentation(recipe(), asked(levels="0.3,0.05:0.1"))
    fixed, ranged = (stage.augmentation for stage in config.stages[1:])
    assert (fixed.level_min, fixed.level_max, fixed.clean_fraction) == (0.3, 0.3, 0.0)
    assert make_settings(config).aug_level == (0.3, 0.1)
    for levels, words in (
        ([0.2, 0.1], "0.2 is less noise than the stage at 16 was trained with; expected at least 0.3"),
        ([0.4, 0.1], "0.4 is more noise than the stage at 16 was trained with; expected at most 0.3"),
        ([0.3, 0.01], "0.01 is less noise than the stage at 32 was trained with; expected at least 0.05, or 0"),
    ):
        with pytest.raises(UserError, match=words):
            make_settings(config, aug_level=levels)
    assert ranged.trained_at(0.0) and make_settings(config, aug_level=[0.3, 0.0]).aug_level == (0.3, 0.0)


@pytest.mark.parametrize(
    ("sizes", "options", "words"),
    [
        ((8, 16), {"kind": "blur,none"}, "--augmentation has 2 entries, but this cascade has 1 SR stage; expected one"),
        ((8, 16, 32), {"levels": "0.1,0.2,0.3"}, "--aug-levels has 3 entries"),
        ((8, 16), {"kind": "blur", "levels": "0:0.2"}, "got --aug-levels, but no stage is trained with noise"),
        ((8, 16), {"kind": "none", "density": "s"}, "got --aug-density, but no stage is trained with noise"),
        ((16,), {"kind": "blur"}, "no SR stage to augment for"),
    ],
)
def test_refused(sizes: tuple[int, ...], options: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        with_augmentation(recipe(*sizes), asked(**options))


@pytest.mark.parametrize(("levels", "words"), [("0", "use --augmentation none"), ("0.1,1:1", "below 1, as 0.2")])
def test_a_fixed_level_of_nothing_or_of_noise_alone_is_refused(levels: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        asked(levels=levels)
