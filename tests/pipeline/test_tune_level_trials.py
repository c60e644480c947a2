"""What the search of levels looks at: the cascade's own images, on the same seeds at every level, made once."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.fakes import random_cascade, stage_config

from cdm.cascade import Cascade, image_seed, run_stage
from cdm.conditioning import upsample
from cdm.config import AugmentationConfig
from cdm.data.pixels import FULL_8, to_float, to_images
from cdm.evaluate.extractors.base import Features
from cdm.evaluate.paired import paired_metric
from cdm.evaluate.stats import feature_stats
from cdm.pipeline.generate import no_progress
from cdm.pipeline.tune_level_trials import SEEDS, LevelTrials, LowRes
from cdm.pipeline.tune_search import Budget
from cdm.rng import Rng

IMAGES = 48


class Quarters:
    """Mean of each channel in each quarter; remembers what it was shown."""

    name, hash, dim, spatial_dim, num_probabilities, resize, verified = "quarters", "0", 4, 0, 0, "", True

    def __init__(self) -> None:
        self.shown: list[torch.Tensor] = []

    def __call__(self, images) -> Features:
        self.shown.append(images)
        return Features(torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1))


@pytest.fixture(scope="module")
def cascade() -> Cascade:
    options = {"num_labels": 3, "augmentation": AugmentationConfig(level_min=0.0, level_max=0.6)}
    return random_cascade(
        stage_config(8, num_labels=3), stage_config(16, 8, **options), stage_config(32, 16, **options), classes="ab"
    )


def trials_of(
    cascade: Cascade, folder: Path, hand_over: str = "non_truncated", stage: int = 2, **changes
) -> LevelTrials:
    depth = len(cascade.stages)
    settings = cascade.settings(steps=[3, 2, 2][:depth], aug_level=[0.3, 0.1][: depth - 1], hand_over=hand_over)
    real = np.random.default_rng(0).normal(size=(200, 4))
    labels = np.repeat(np.arange(IMAGES) % 2, SEEDS)[:IMAGES]
    made = LevelTrials(
        cascade, stage, settings, Quarters(), paired_metric("fd", feature_stats(real), real), labels, IMAGES, 7, 8,
        folder, Budget(600.0, time.monotonic()), no_progress,
    )  # fmt: skip
    return replace(made, **changes)


def shown(trials: LevelTrials) -> torch.Tensor:
    return torch.cat(trials.extractor.shown)


@pytest.mark.parametrize("hand_over", ["non_truncated", "truncated"])
@pytest.mark.parametrize("stage", [1, 2])
def test_images_are_those_of_the_cascade(cascade: Cascade, tmp_path: Path, hand_over: str, stage: int) -> None:
    """Three sampling seeds in turn, each with the same classes; enlarged where the stage is not the last."""
    trials = trials_of(cascade, tmp_path, hand_over, stage)
    trials.rows(0.2, 24)
    seeds = [image_seed(7 + i % 3, i // 3) for i in range(24)]
    levels = [0.2, 0.1] if stage == 1 else [0.3, 0.2]
    settings = replace(trials.settings, aug_level=tuple(levels))
    labels = torch.tensor([i // 3 % 2 for i in range(24)])
    made = cascade.sample(labels, seeds, settings=settings, stop_after=stage, batch_size=8).images[-1]
    expected = to_images(upsample(to_float(to_images(made, FULL_8), FULL_8), 32), FULL_8)
    assert torch.equal(shown(trials), expected)


def test_level_zero_is_the_same_images_for_both_hand_overs(cascade: Cascade, tmp_path: Path) -> None:
    """Made for one, they are there for the other."""
    first, second = (trials_of(cascade, tmp_path, how, stage=1) for how in ("non_truncated", "truncated"))
    rows = np.array(first.rows(0.0, 16))
    assert np.array_equal(second.rows(0.0, 16), rows) and second.made == 0
    assert not np.array_equal(second.rows(0.3, 16), first.rows(0.3, 16))


def test_more_images_go_on_from_those_that_are_there(cascade: Cascade, tmp_path: Path) -> None:
    trials = trials_of(cascade, tmp_path)
    few = np.array(trials.rows(0.2, 16))
    assert trials.made == 16
    many = trials.rows(0.2, 48)
    assert trials.made == 48 and np.array_equal(many[:16], few)
    again = trials_of(cascade, tmp_path)  # as after a stop
    assert np.array_equal(again.rows(0.2, 48), many) and again.made == 0
    other = trials_of(cascade, tmp_path, seed=8)
    assert not np.array_equal(other.rows(0.2, 16), few) and other.made == 16


def test_levels_share_their_seeds(cascade: Cascade, tmp_path: Path) -> None:
    """Neighbouring levels differ less than other seeds at one level: so a comparison needs fewer images."""
    trials = trials_of(cascade, tmp_path)
    here, near = np.array(trials.rows(0.2, 48)), np.array(trials.rows(0.21, 48))
    other = np.array(trials_of(cascade, tmp_path, seed=50).rows(0.2, 48))
    assert np.abs(here - near).mean() < np.abs(here - other).mean() / 3
    gap, apart = trials.metric.worse(here, near), trials.metric.worse(here, other)
    assert gap.high - gap.low < (apart.high - apart.low) / 2


def test_real_low_res_images_are_put_in_below(cascade: Cascade, tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (IMAGES, 1, 16, 16), dtype=np.uint8)
    real = LowRes(images, FULL_8, np.arange(IMAGES) % 2, "real")
    trials = trials_of(cascade, tmp_path, real=real, labels=real.labels)
    trials.rows(0.0, 16)
    seeds = torch.tensor([image_seed(7 + i % 3, i // 3) for i in range(8)])
    stage = cascade.stages[2]
    x = torch.from_numpy(images[:8]).float() / 127.5 - 1
    cond, _ = stage.condition(x, torch.arange(8) % 2, stage.aug_logsnr(0.0), Rng(0, 2), seeds)
    expected = run_stage(stage, cond, seeds, trials.settings, 2).image
    off = (shown(trials)[:8].int() - to_images(expected, FULL_8).int()).abs()
    assert off.max() <= 1


def test_truncated_levels_are_those_that_the_stage_below_can_stop_at(tmp_path: Path) -> None:
    """Its cleanest log-SNR is 4, level 0.09; at level 0 nothing is truncated."""
    cascade = random_cascade(stage_config(8, num_labels=3), stage_config(16, 8, num_labels=3), classes="ab")
    cascade.stages[0].denoiser.logsnr_range = (-12.0, 4.0)
    cut = trials_of(cascade, tmp_path, "truncated", stage=1, settings=cascade.settings(hand_over="truncated"))
    assert [level for level in (0.0, 0.05, 0.1, 0.9) if cut.allows(level)] == [0.0, 0.1, 0.9]
    whole = replace(cut, settings=cascade.settings())
    assert all(whole.allows(level) for level in (0.0, 0.05, 0.1, 0.9))


def test_what_is_allowed_and_what_the_time_suffices_for(cascade: Cascade, tmp_path: Path) -> None:
    trials = trials_of(cascade, tmp_path)
    assert [level for level in (0.0, 0.3, 0.6, 0.7) if trials.allows(level)] == [0.0, 0.3, 0.6]
    trials.rows(0.3, 8)
    trials.budget = Budget(0.0, time.monotonic())
    assert trials.affords(0.3, 8) and not trials.affords(0.3, 16)  # what is there costs nothing
    fresh = trials_of(cascade, tmp_path / "fresh", budget=Budget(1.0, time.monotonic()), images=10**9)
    assert not fresh.affords(0.3, 10**9) and fresh.made == 0  # a few images tell the pace
