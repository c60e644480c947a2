"""What is looked at while training: validation by bands of noise level, and pictures that do not touch the training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tests.fakes import cascade_config, function_stage, random_cascade, random_stage, stage_config

from cdm.conditioning import augment_at
from cdm.config import DensityConfig, ScheduleConfig
from cdm.data.batches import TrainingImages
from cdm.data.image_array import ImageArray
from cdm.pipeline.look import PREVIEW_SEED, Preview, Validation, final_grid, super_resolve
from cdm.rng import Purpose, Rng

CLASSES = ("a", "b", "c")


def images(count: int = 70) -> TrainingImages:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 1, 16, 16), dtype=np.uint8)
    array = ImageArray(pixels, np.arange(count) % 3, CLASSES, tuple(map(str, range(count))), "")
    return TrainingImages(array, (8, 16))


def bands(values: dict[str, float]) -> list[tuple[float, float]]:
    return [tuple(map(float, name.split(" to "))) for name in values]


@pytest.mark.parametrize("density", ["schedule", "logsnr", "lognormal"])
def test_bands_are_quarters_of_the_training_levels(density):
    """They meet end to end, and their names give the lower end first, whichever way the density runs."""
    stage = function_stage(
        stage_config(8, density=DensityConfig(kind=density)), lambda x, *rest: torch.zeros_like(x), num_classes=3
    )
    ends = sorted(bands(Validation(images(), seed=1)(stage)))
    assert len(ends) == 4 and all(low < high for low, high in ends)
    assert [high for _, high in ends[:-1]] == [low for low, _ in ends[1:]]
    assert ends[0][0] == pytest.approx(-12, abs=0.5) and ends[-1][1] == 12


def test_validation_is_the_error_on_the_stages_own_target():
    """A net that says 0 of x0 is wrong by the images' own mean square, in every band."""
    stage = function_stage(stage_config(8, prediction="x0"), lambda x, *rest: torch.zeros_like(x), num_classes=3)
    data = images()
    truth = data.target(0, torch.arange(70)).square().mean().item()
    for value in Validation(data, seed=1)(stage).values():
        assert value == pytest.approx(truth, rel=1e-5)
    some = Validation(data, seed=1, limit=10)(stage)
    truth = data.target(0, torch.linspace(0, 69, 10).round().long()).square().mean().item()
    assert all(value == pytest.approx(truth, rel=1e-5) for value in some.values())


def test_validation_sees_every_class_although_they_stand_one_after_the_other():
    pixels = np.zeros((300, 1, 16, 16), np.uint8)
    array = ImageArray(pixels, np.arange(300) // 100, CLASSES, tuple(map(str, range(300))), "")
    data = TrainingImages(array, (8, 16))
    seen = data.labels[Validation(data, seed=1, limit=12).index.numpy()]
    assert np.bincount(seen).tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    ("classes", "count", "shown"), [(0, 16, 0), (3, 24, 3), (26, 104, 26), (40, 80, 40), (300, 104, 104)]
)
def test_last_sheet_shows_every_class_and_stays_bounded(classes, count, shown):
    names = tuple(f"{k:03}" for k in range(classes))
    cascade = random_cascade(stage_config(8, num_labels=classes + 1 if classes else 0), classes=names)
    told = []
    sampled, picture = final_grid(cascade, told.append)
    assert len(sampled.images[0]) == count == told[-1]
    if classes:
        assert len(sampled.labels.unique()) == shown and sampled.labels[-1] == classes - 1
    assert picture.startswith(b"\x89PNG") and sampled.evaluations == (32,)


def test_validation_always_meets_the_same_noise():
    stage, data = random_stage(stage_config(16, 8, num_labels=4), 1, num_classes=3), images(12)
    first = Validation(data, seed=1)(stage)
    assert Validation(data, seed=1)(stage) == first != Validation(data, seed=2)(stage)


def test_super_resolution_of_given_images_is_that_of_a_cascade():
    """At the run's default level, with the noise of their seeds."""
    configs = [stage_config(8), stage_config(16, 8)]
    stage, seeds = random_stage(configs[1], 1), torch.tensor([5, 6])
    low_res = images().target(0, torch.arange(2))
    made, noisy = super_resolve(cascade_config(*configs), stage, low_res, None, seeds, 2)
    told = torch.full((2,), stage.aug_logsnr(0.2))
    eps = Rng(0, 1).normal(Purpose.HAND_OVER_NOISE, seeds, (1, 8, 8))
    assert torch.equal(noisy, augment_at(configs[1].augmentation, low_res, 16, told, eps).noisy)
    assert made.shape == (2, 1, 16, 16)


@pytest.mark.parametrize("index", [0, 1])
def test_pictures_are_written_and_nothing_else_changes(index, tmp_path):
    config = cascade_config(stage_config(8, num_labels=4), stage_config(16, 8, num_labels=4), classes=CLASSES)
    stage = random_stage(config.stages[index], index, num_classes=3)
    before = [p.clone() for p in stage.net.parameters()]
    state = torch.get_rng_state()
    Preview(config, tmp_path, images(), seed=0, steps=2)(stage, 640)
    assert all(map(torch.equal, before, stage.net.parameters())) and torch.equal(state, torch.get_rng_state())
    (picture,) = (tmp_path / "samples").iterdir()
    assert picture.name == ("panel-0000000640.png" if index else "0000000640.png")
    with Image.open(picture) as opened:
        assert np.asarray(opened).std() > 1


def test_previews_do_not_use_the_seeds_of_people():
    assert PREVIEW_SEED >= 1 << 40


def test_stages_with_few_levels_can_be_looked_at(tmp_path):
    """Fewer than a preview's usual steps."""
    few = ScheduleConfig(kind="cosine_table", num_timesteps=5)
    config = cascade_config(stage_config(8, schedule=few), stage_config(16, 8, schedule=few))
    for index, stage in enumerate(config.stages):
        Preview(config, tmp_path, images(), seed=0)(random_stage(stage, index), 64)
    assert len(list((tmp_path / "samples").iterdir())) == 2
