"""Recipes: every one builds for every size it may meet, and the paper's are what the paper says."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch

from cdm.config import CascadeConfig, ConfigError, DataConfig, NetConfig, StageConfig, from_dict, to_dict
from cdm.errors import UserError
from cdm.nn.flops import count_parameters
from cdm.nn.unet import UNet
from cdm.recipes import RECIPES, SIZES, make_config
from cdm.recipes.facts import Facts
from cdm.stage import build_stage

CLASSES = ("a", "b", "c")
PAPER = [name for name in RECIPES if name.startswith("cdm-imagenet")]


def facts(sizes: tuple[int, ...], classes: tuple[str, ...] = CLASSES, channels: int = 3) -> Facts:
    return Facts(sizes, classes, DataConfig(channels=channels), num_images=1000, seed=4)


def make(recipe: str, **options) -> CascadeConfig:
    return make_config(recipe, facts(SIZES.get(recipe, (16, 64)), **options))


@cache  # the paper's recipes share nets
def output_shape(net: NetConfig) -> tuple[int, ...]:
    """Of a batch of two, run on the meta device: nothing is allocated."""
    with torch.device("meta"):
        x, level = torch.empty(2, net.in_channels, net.image_size, net.image_size), torch.empty(2)
        labels = torch.zeros(2, dtype=torch.int64) if net.num_labels else None
        return tuple(UNet(net)(x, level, labels, level if net.has_aug_level else None).shape)


count = cache(count_parameters)
OWN = [name for name in RECIPES if name not in PAPER]
FORMS = [(recipe, classes, channels) for recipe in OWN for classes in (CLASSES, ()) for channels in (1, 3, 5)]
FORMS += [(recipe, CLASSES, 3) for recipe in PAPER] + [("cdm-imagenet-64", (), 1)]


@pytest.mark.parametrize(("recipe", "classes", "channels"), FORMS, ids=str)
def test_every_recipe_builds(recipe, classes, channels):
    """Shapes, labels and levels fit together."""
    config = make(recipe, classes=classes, channels=channels)
    assert config.recipe == recipe and config.seed == 4 and config.class_names == classes
    assert config.sizes == SIZES.get(recipe, (16, 64))
    for k, stage in enumerate(config.stages):
        assert stage.is_base == (k == 0) and stage.channels == channels
        dropped = 1 if classes and stage.label_dropout > 0 else 0
        assert stage.net.num_labels == len(classes) + dropped
        assert stage.net.in_channels == channels * (1 if stage.is_base else 2)
        assert stage.net.has_aug_level == (stage.augmentation.kind == "gaussian")  # told exactly where there is noise
        learned = stage.variance == "learned"
        assert output_shape(stage.net) == (2, channels * (1 + learned), stage.size, stage.size)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_goes_through_json(recipe):
    config = make(recipe)
    assert from_dict(CascadeConfig, json.loads(json.dumps(to_dict(config)))) == config


SIZE_PLANS = [
    (8, 16),
    (16,),
    (24, 48),
    (16, 48),
    (24, 96),
    (48, 96),
    (16, 32, 64),
    (32, 128),
    (64, 256),
    (10, 20),
    (9, 27),
]


@pytest.mark.parametrize("sizes", SIZE_PLANS, ids=str)
def test_the_small_recipe_takes_any_sizes(sizes):
    """Patches divide the image and are no wider than the net, halvings divide the rest, crops bound the cost."""
    for stage in make_config("small", facts(sizes)).stages:
        net = stage.net
        assert stage.size % (net.patch * 2 ** (len(net.multipliers) - 1)) == 0
        assert net.patch**2 * stage.channels <= net.width, "noise does not pass through a net narrower than a patch"
        assert (stage.optim.crop_size or stage.size) // net.patch <= 48
        assert stage.optim.crop_size % (stage.factor * net.patch * 2 ** (len(net.multipliers) - 1)) == 0
        assert output_shape(net) == (2, 3, stage.size, stage.size)


@pytest.mark.parametrize("sizes", [*SIZE_PLANS, (15, 45), (11, 33), (9, 18, 36)], ids=str)
def test_the_demo_recipe_takes_any_sizes(sizes):
    """Where a size does not halve as often, the patch goes first, then the halvings; a net is left in any case."""
    for stage in make_config("demo", facts(sizes)).stages:
        net = stage.net
        assert net.multipliers and (net.patch == 1 or len(net.multipliers) == 3)
        assert output_shape(net) == (2, 3, stage.size, stage.size)


@pytest.mark.parametrize(
    ("size", "base", "sr"), [(16, 1, 1), (24, 1, 1), (32, 2, 1), (48, 2, 1), (64, 2, 2), (96, 2, 2), (128, 2, 2)]
)
def test_patches_of_the_small_recipe(size, base, sr):
    """Pixels enter two by two where the net would else work at over 16 positions per side, or 32 in an SR stage."""
    assert make_config("small", facts((size, 2 * size))).stages[0].net.patch == base
    assert make_config("small", facts((size // 2, size))).stages[1].net.patch == sr


@pytest.mark.parametrize("size", range(8, 65))
def test_every_base_size_makes_a_net(size):
    net = make_config("small", facts((size,))).stages[0].net
    assert size % (net.patch * 2 ** (len(net.multipliers) - 1)) == 0
    assert len(net.multipliers) == 3 or size % 4


def test_small_nets_are_small():
    for recipe in ("demo", "small"):
        assert all(count(stage.net) < 12e6 for stage in make(recipe).stages)


def test_schedules_are_shifted_by_resolution():
    """Hoogeboom et al. 2023, eq. 4: 2 ln(ref / size), so twice the size is shifted by -2 ln 2."""
    first, second = (stage.schedule.shift for stage in make_config("small", facts((32, 64))).stages)
    assert first == 0 and second == pytest.approx(-1.3862943611)


def test_cost_shares_add_up():
    for sizes in ((16,), (16, 32), (16, 32, 64)):
        shares = [stage.optim.cost_share for stage in make_config("small", facts(sizes)).stages]
        assert len(sizes) == 1 or sum(shares) == pytest.approx(1)


TABLE = {  # of Ho et al. 2021: width, multipliers, blocks, attention, heads, dropout, batch, updates, steps
    "base": (256, (1, 2, 3, 4), 6, {8, 16}, 4, 0.1, 2048, 700_000, 4000),
    "32-64": (256, (1, 2, 3, 4), 5, {8, 16}, 4, 0.1, 2048, 400_000, 4000),
    "64-128": (128, (1, 2, 4, 8, 8), 3, {16}, 1, 0.0, 1024, 500_000, 100),
    "64-256": (128, (1, 2, 4, 4, 8, 8), 3, {16}, 1, 0.0, 1024, 500_000, 100),
}
MILLIONS = {"base": 826, "32-64": 750, "64-128": 575, "64-256": 634}  # our count; the paper gives none


def paper_name(stage: StageConfig) -> str:
    return "base" if stage.is_base else f"{stage.low_res_size}-{stage.size}"


@pytest.mark.parametrize("recipe", PAPER)
def test_paper_recipes_agree_with_the_papers_table(recipe):
    config = make(recipe)
    for k, stage in enumerate(config.stages):
        net, optim = stage.net, stage.optim
        got = (net.width, net.multipliers, net.num_blocks, set(net.attention), net.num_heads, net.dropout,
               optim.batch_size, optim.images // optim.batch_size, config.sampling.steps[k])  # fmt: skip
        assert got == TABLE[paper_name(stage)]
        assert stage.prediction == "eps" and optim.lr == 1e-4 and stage.label_dropout == 0
        if stage.size <= 64:
            assert stage.variance == "learned" and stage.loss.vlb_weight == 0.001 and stage.loss.weight == "simple"
            assert stage.schedule.kind == "cosine_table" and stage.schedule.num_timesteps == 4000
        else:
            assert stage.variance == "fixed" and not stage.schedule.kind.endswith("_table")
        kind = {32: "none", 64: "gaussian"}.get(stage.size, "blur")
        assert stage.augmentation.kind == kind
        if kind == "gaussian":
            assert stage.augmentation.clean_fraction == 0 and stage.augmentation.num_timesteps == 4000
            assert (stage.augmentation.level_min, stage.augmentation.level_max) == (0, 1)
        if kind == "blur":
            assert (stage.augmentation.blur_min, stage.augmentation.blur_max) == (0.4, 0.6)
            assert stage.augmentation.blur_fraction == 0.5


@pytest.mark.parametrize("recipe", PAPER)
def test_paper_recipes_have_the_counted_parameters(recipe):
    config = make(recipe, classes=tuple(map(str, range(1000))))
    for stage in config.stages:
        assert count(stage.net) / 1e6 == pytest.approx(MILLIONS[paper_name(stage)], rel=0.02)


@pytest.mark.parametrize("recipe", PAPER)
def test_paper_recipes_refuse_other_sizes(recipe):
    with pytest.raises(ConfigError, match="leave --sizes out"):
        make_config(recipe, facts((16, 64)))


def test_unknown_recipe():
    with pytest.raises(UserError, match=r"unknown recipe 'smal'; expected one of .*small"):
        make_config("smal", facts((16,)))


def test_a_seed_is_a_net():
    """Fresh weights are a function of seed and stage; torch's own generator is left alone."""
    config = make_config("demo", facts((16, 32))).stages[0]
    state = torch.get_rng_state()
    nets = [
        build_stage(config, index, num_classes=3, seed=seed).net for seed, index in ((1, 0), (1, 0), (2, 0), (1, 1))
    ]
    assert torch.equal(torch.get_rng_state(), state)
    weights = [net.first.weight for net in nets]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[3])
