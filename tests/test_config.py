"""Configurations: what is stored comes back equal, and what cannot work is refused with the place and the cure."""

import dataclasses
import json
import math
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdm.config import (
    AugmentationConfig,
    CascadeConfig,
    ConfigError,
    DataConfig,
    DensityConfig,
    LossConfig,
    NetConfig,
    OptimConfig,
    SamplingConfig,
    ScheduleConfig,
    StageConfig,
    from_dict,
    to_dict,
)


def net(size: int = 16, in_channels: int = 3, **changes: Any) -> NetConfig:
    values = {"image_size": size, "in_channels": in_channels, "out_channels": 3, "width": 32, "multipliers": (1, 2, 2)}
    return NetConfig(**(values | {"num_blocks": 1} | changes))


def base(size: int = 16, **changes: Any) -> StageConfig:
    return StageConfig(**({"size": size, "channels": 3, "net": net(size)} | changes))


def upsampler(low: int, size: int, **changes: Any) -> StageConfig:
    values = {"size": size, "channels": 3, "low_res_size": low, "net": net(size, 6, has_aug_level=True)}
    return StageConfig(**(values | {"augmentation": AugmentationConfig()} | changes))


def cascade() -> CascadeConfig:
    return CascadeConfig(
        recipe="demo",
        seed=7,
        class_names=("a", "ä ö", "猫"),
        data=DataConfig(channels=1, bit_depth=16, window=(100, 60000)),
        stages=(
            base(schedule=ScheduleConfig(kind="cosine_table"), variance="learned"),
            upsampler(16, 64, optim=OptimConfig(crop_size=32, ema_sigma_rel=(0.1,))),
        ),
        sampling=SamplingConfig(steps=(32, 16), aug_level=(0.2,)),
        sampling_history=(SamplingConfig(sampler="ddim"), SamplingConfig(hand_over="truncated")),
    )


def through_json(config: Any) -> Any:
    return from_dict(type(config), json.loads(json.dumps(to_dict(config))))


def test_round_trip_through_json():
    assert through_json(cascade()) == cascade()


PLAIN = [AugmentationConfig, DataConfig, DensityConfig, LossConfig, OptimConfig, SamplingConfig, ScheduleConfig]


def values_of(hint: Any) -> st.SearchStrategy:
    """Any value of a field's type; tuples keep their length where it is fixed."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return st.sampled_from(args)
    if origin is tuple:
        if args[-1] is Ellipsis:
            return st.lists(values_of(args[0]), max_size=3).map(tuple)
        return st.tuples(*map(values_of, args))
    return {bool: st.booleans(), int: st.integers(), float: st.floats(allow_nan=False), str: st.text()}[hint]


@pytest.mark.parametrize("cls", PLAIN)
@given(data=st.data())
def test_every_value_survives_the_round_trip(cls: type, data: st.DataObject):
    hints = typing.get_type_hints(cls)
    fields = {field.name: data.draw(values_of(hints[field.name])) for field in dataclasses.fields(cls)}
    config = cls(**fields)
    assert through_json(config) == config


def test_missing_keys_take_the_defaults():
    assert from_dict(ScheduleConfig, {"shift": 1}) == ScheduleConfig(shift=1.0)
    assert isinstance(from_dict(ScheduleConfig, {"shift": 1}).shift, float)


def changed(path: str, value: Any) -> dict[str, Any]:
    """``cascade()`` as JSON with one value replaced or added; ``path`` such as "stages.0.net.width"."""
    stored = json.loads(json.dumps(to_dict(cascade())))
    *parents, last = path.split(".")
    place = stored
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[last] = value
    return stored


@pytest.mark.parametrize(
    ("path", "value", "place", "expected"),
    [
        ("colour", 1, "config", "unknown key 'colour'"),
        ("stages.1.net.widht", 32, r"config\.stages\[1\]\.net", "unknown key 'widht'.*'width'"),
        ("seed", "seven", r"config\.seed", "'seven'; expected int"),
        ("seed", True, r"config\.seed", "True; expected int"),
        ("seed", 1.5, r"config\.seed", "1.5; expected int"),
        ("seed", None, r"config\.seed", "None; expected int"),
        ("recipe", 3, r"config\.recipe", "3; expected str"),
        ("data.flip", 1, r"config\.data\.flip", "1; expected bool"),
        ("data.bit_depth", 12, r"config\.data\.bit_depth", r"12; expected one of \[8, 16\]"),
        ("data.window", 255, r"config\.data\.window", "255; expected a list"),
        ("stages.0.net.multipliers", [1, "2"], r"config\.stages\[0\]\.net\.multipliers\[1\]", "'2'; expected int"),
        ("stages.0.net.width", 32.0, r"config\.stages\[0\]\.net\.width", "32.0; expected int"),
        ("stages.0.prediction", "epsilon", r"config\.stages\[0\]\.prediction", "'epsilon'; expected one of .*'eps'"),
        ("stages.1.optim", [], r"config\.stages\[1\]\.optim", "expected an object"),
        ("stages.1.optim.lr", "1e-3", r"config\.stages\[1\]\.optim\.lr", "'1e-3'; expected float"),
        ("stages.1.optim.betas", [0.9], r"config\.stages\[1\]\.optim\.betas", "1 entries; expected 2"),
        ("sampling.hand_over", "", r"config\.sampling\.hand_over", "'non_truncated', 'truncated'"),
    ],
)
def test_wrong_value_is_refused_and_its_place_named(path: str, value: Any, place: str, expected: str):
    with pytest.raises(ConfigError, match=f"^{place} .*{expected}"):
        from_dict(CascadeConfig, changed(path, value))


def test_missing_value_is_named():
    stored = to_dict(cascade())
    del stored["stages"][1]["net"]["width"]
    with pytest.raises(ConfigError, match=r"config\.stages\[1\]\.net is incomplete: .*'width'"):
        from_dict(CascadeConfig, stored)


def test_config_error_is_a_value_error():
    assert issubclass(ConfigError, ValueError)


@pytest.mark.parametrize("size", [18, 30, 2, 33])
def test_net_refuses_a_size_that_does_not_halve(size: int):
    with pytest.raises(ConfigError, match=f"{size} pixels do not divide by 4: use fewer multipliers"):
        net(size)


def test_net_refuses_to_have_no_multipliers():
    with pytest.raises(ConfigError, match="no multipliers; expected one for each size"):
        NetConfig(image_size=16, in_channels=3, out_channels=3, width=32, multipliers=(), num_blocks=1)


def test_net_takes_any_size_that_halves():
    assert [net(size).image_size for size in (4, 12, 20, 16)] == [4, 12, 20, 16]


@pytest.mark.parametrize(("low", "size"), [(16, 24), (16, 16), (32, 16), (24, 64)])
def test_stage_sizes_must_rise_by_whole_factors(low: int, size: int):
    with pytest.raises(ConfigError, match=f"rise by whole factors; got {low} before {size}: use"):
        upsampler(low, size)


@pytest.mark.parametrize(("low", "size", "factor"), [(16, 32, 2), (16, 48, 3), (64, 256, 4)])
def test_factor_of_an_sr_stage(low: int, size: int, factor: int):
    stage = upsampler(low, size)
    assert (stage.factor, stage.is_base) == (factor, False)
    assert (base().factor, base().is_base) == (1, True)


def test_stages_must_follow_each_other():
    with pytest.raises(ConfigError, match="stage 64 expects low-res 32, the one before makes 16"):
        CascadeConfig(stages=(base(16), upsampler(32, 64)))


def test_base_has_nothing_to_augment():
    with pytest.raises(ConfigError, match="base stage has no low-res image"):
        base(augmentation=AugmentationConfig(kind="gaussian"))


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_learned_variances_need_a_table(kind: str):
    with pytest.raises(ConfigError, match=f"continuous schedule '{kind}': use '{kind}_table'"):
        base(schedule=ScheduleConfig(kind=kind), variance="learned")
    assert base(schedule=ScheduleConfig(kind=f"{kind}_table"), variance="learned").variance == "learned"


def test_sizes_and_classes_of_a_cascade():
    assert cascade().sizes == (16, 64)
    assert cascade().num_classes == 3


def test_learned_variances_do_not_go_with_a_direct_path():
    stage = cascade().stages[0]
    table = ScheduleConfig(kind="cosine_table")
    with pytest.raises(ConfigError, match="direct path"):
        dataclasses.replace(stage, net=dataclasses.replace(stage.net, direct=True), schedule=table, variance="learned")


@pytest.mark.parametrize("levels", [(0.6, 0.2), (-0.1, 0.5), (0.0, 1.1), (math.nan, 0.5)], ids=str)
def test_augmentation_levels_that_are_no_range(levels: tuple[float, float]):
    with pytest.raises(ConfigError, match="are no range; expected two numbers that rise within 0"):
        upsampler(16, 64, augmentation=AugmentationConfig(level_min=levels[0], level_max=levels[1]))


def test_runs_from_before_level_densities_load():
    """What a stage's file of an earlier version holds: levels uniform in s, as they were trained."""
    stored = json.loads(json.dumps(to_dict(cascade())))
    for stage in stored["stages"]:
        del stage["augmentation"]["level_density"]
    assert from_dict(CascadeConfig, stored) == cascade() and cascade().stages[1].augmentation.level_density == "s"
