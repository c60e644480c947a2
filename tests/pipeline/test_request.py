"""What may be asked of training, and what may change when a run is asked for again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cdm.errors import UserError
from cdm.pipeline.request import TrainRequest, check_same, check_same_data

FIRST = TrainRequest(data="data", out=Path("run"), sizes=(8, 16), images=800)
STORED = {"options": FIRST.fixed(), "fingerprint": "a" * 64}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"images": 800, "minutes": 1.0}, "both --images and --minutes"),
        ({"images": 0}, "--images is 0"),
        ({"minutes": -1.0}, "--minutes is -1"),
        ({"minutes": float("nan")}, "--minutes is nan"),
        ({"minutes": float("inf")}, "--minutes is inf"),
        ({"checkpoint_images": 0}, "--checkpoint-images is 0"),
        ({"channels": 0}, "--channels is 0"),
        ({"val_fraction": 1.0}, "--val-fraction is 1.0"),
        ({"val_fraction": float("nan")}, "--val-fraction is nan"),
        ({"keep": 0}, "--keep is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"data": "da\0ta"}, r"DATA is 'da\x00ta'"),
        ({"out": Path("r\0un")}, r"--out is 'r\x00un'"),
        ({"out": Path("caf\udce9")}, r"--out is 'caf\udce9', which is no UTF-8"),
        ({"val": "v\0al"}, r"--val is 'v\x00al'"),
        ({"augmentation": ("noise",)}, "--augmentation is 'noise'; expected one of none, gaussian, blur"),
        ({"aug_levels": ("0.5:0.2",)}, "--aug-levels is '0.5:0.2'; expected a range that rises within 0"),
        ({"aug_levels": ("0:1.2",)}, "--aug-levels is '0:1.2'; expected a range"),
        ({"aug_levels": ("0:0.1:0.2",)}, "--aug-levels is '0:0.1:0.2'; expected a range"),
        ({"aug_levels": ("much",)}, "--aug-levels is 'much'; expected a range"),
        ({"aug_levels": ("nan",)}, "--aug-levels is 'nan'; expected a range"),
        ({"aug_density": ("sigma",)}, "--aug-density is 'sigma'; expected one of s, logsnr"),
    ],
)
def test_refused(asked: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        TrainRequest(**({"data": "data", "out": Path("run")} | asked))
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"recipe": "demo"}, "--recipe small, now it is demo"),
        ({"sizes": (8, 32)}, "--sizes 8,16, now it is 8,32"),
        ({"sizes": None}, "--sizes 8,16, now it is (not given)"),
        ({"val": "held"}, "--val (not given), now it is held"),
        ({"val_fraction": 0.1}, "--val-fraction 0.05, now it is 0.1"),
        ({"channels": 1}, "--channels 3, now it is 1"),
        ({"flip": True}, "--flip False, now it is True"),
        ({"balanced": True}, "--balanced False, now it is True"),
        ({"seed": 1}, "--seed 0, now it is 1"),
        ({"checkpoint_images": 80}, "--checkpoint-images (not given), now it is 80"),
        ({"augmentation": ("blur",)}, "--augmentation (not given), now it is blur"),
        ({"aug_levels": ("0:0.5", "0.2")}, "--aug-levels (not given), now it is 0:0.5,0.2"),
    ],
)
def test_changed_option_is_refused_naming_both_values(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        check_same(STORED, replace(FIRST, **changed))
    assert told in str(error.value)


def test_what_does_not_change_the_run_may_change() -> None:
    other: dict[str, Any] = {
        "images": 1600, "stage": 1, "device": "cpu", "precision": "fp32", "threads": 3, "keep": 5, "command": "again",
    }  # fmt: skip
    for name, value in other.items():
        check_same(STORED, replace(FIRST, **{name: value}))


def test_levels_are_compared_as_numbers() -> None:
    first = replace(FIRST, aug_levels=("0:0.5", "0:0.5"))
    stored = {**STORED, "options": first.fixed()}
    check_same(stored, replace(first, aug_levels=("0.0:0.50",)))
    with pytest.raises(UserError, match=r"--aug-levels 0:0\.5,0:0\.5, now it is 0:0\.4"):
        check_same(stored, replace(first, aug_levels=("0:0.4",)))


def test_every_option_is_either_fixed_or_known_to_be_free() -> None:
    """A new option must be put on one of the two sides."""
    free = {"data", "out", "images", "minutes", "stage", "device", "precision", "threads", "keep", "command"}
    assert set(vars(FIRST)) == set(FIRST.fixed()) | free | {"allow_changed_data"}


def test_changed_data_is_refused_unless_allowed() -> None:
    check_same_data(STORED, "a" * 64, None, FIRST)
    with pytest.raises(UserError, match=r"data at data .*bbbbbbbbbbbb, expected aaaaaaaaaaaa.*--allow-changed-data"):
        check_same_data(STORED, "b" * 64, None, FIRST)
    check_same_data(STORED, "b" * 64, None, replace(FIRST, allow_changed_data=True))


def test_changed_validation_images_are_refused_unless_allowed() -> None:
    stored, asked = STORED | {"val_fingerprint": "c" * 64}, replace(FIRST, val="held")
    check_same_data(stored, "a" * 64, "c" * 64, asked)
    with pytest.raises(UserError, match=r"data at held .*dddddddddddd, expected cccccccccccc.*--allow-changed-data"):
        check_same_data(stored, "a" * 64, "d" * 64, asked)
    check_same_data(stored, "a" * 64, "d" * 64, replace(asked, allow_changed_data=True))
    check_same_data(STORED, "a" * 64, "d" * 64, asked)  # a run from before they were recorded
