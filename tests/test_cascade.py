"""Cascades: the same seed is the same picture, hand-overs stop where they say, wrong requests are refused at once."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.fakes import cascade_config, random_cascade, random_stage, save_run, stage_config
from torch import Tensor

import cdm.cascade
from cdm.cascade import Cascade, Samples, _batch, _integers, image_seed, run_stage
from cdm.conditioning import augment_for_training, quantise, upsample
from cdm.config import AugmentationConfig, ConfigError, SamplingConfig, ScheduleConfig
from cdm.data.pixels import to_images
from cdm.errors import CorruptError, UserError
from cdm.noise.schedule import AUG_LOGSNR_MAX
from cdm.rng import Purpose, Rng
from cdm.types import Cond

LETTERS = Path(__file__).parents[1] / "examples" / "letters"
STEPS = (5, 3, 2)
LABELS, SEEDS = torch.arange(7) % 3, torch.arange(7) * 5 + 100
EACH = {"labels": LABELS, "seeds": SEEDS}


def three_stages(dtype: torch.dtype = torch.float32) -> Cascade:
    """8 to 16 to 32, random weights in every layer, three classes and the null label."""
    options = {"channels": 3, "num_labels": 4}
    configs = [stage_config(8, **options), stage_config(16, 8, **options), stage_config(32, 16, **options)]
    return random_cascade(*configs, classes="abc", dtype=dtype)


def two_stages(**changes) -> Cascade:
    return random_cascade(stage_config(8, **changes), stage_config(16, 8))


@pytest.fixture(scope="module")
def rough() -> Cascade:
    return three_stages()


@pytest.fixture(scope="module")
def letters_cascade() -> Cascade:
    """A really trained cascade, 16 to 64."""
    if not (LETTERS / "cascade.json").exists():
        pytest.skip("examples/letters, the trained cascade, is not there yet")
    return Cascade.load(LETTERS, precision="fp32")


@pytest.fixture(params=["random", "letters"])
def cascade(request) -> Cascade:
    return request.getfixturevalue({"random": "rough", "letters": "letters_cascade"}[request.param])


def settings(cascade: Cascade, **options) -> SamplingConfig:
    return cascade.settings(**({"steps": STEPS[: len(cascade.stages)]} | options))


def equal(one: Samples, other: Samples) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.images, other.images, strict=True))


# ---- determinism -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["dpmpp", "ddpm"])
def test_random_streams_are_bit_identical_for_every_batch_size(rough, sampler, monkeypatch):
    draw, drawn = Rng.normal, {}

    def recorded(self, purpose, index, shape, step=0):
        made = draw(self, purpose, index, shape, step)
        for seed, row in zip(index.tolist(), made, strict=True):
            drawn.setdefault((self.stage, int(purpose), step, seed), row)
        return made

    monkeypatch.setattr(Rng, "normal", recorded)
    streams = []
    for batch_size in (1, 3, 7):
        drawn.clear()
        rough.sample(**EACH, settings=settings(rough, steps=[3, 2, 2], sampler=sampler), batch_size=batch_size)
        streams.append(dict(drawn))
    assert streams[0].keys() == streams[1].keys() == streams[2].keys()
    assert all(torch.equal(streams[0][key], other[key]) for other in streams[1:] for key in streams[0])
    purposes = {(stage, purpose) for stage, purpose, *_ in streams[0]}
    expected = {(k, Purpose.START_NOISE) for k in range(3)} | {(k, Purpose.HAND_OVER_NOISE) for k in (1, 2)}
    expected |= {(k, Purpose.SAMPLER_NOISE) for k in range(3)} if sampler.startswith("ddpm") else set()
    assert purposes == expected
    assert len({row.flatten()[0].item() for row in streams[0].values()}) == len(streams[0])  # no two alike


def test_base_output_for_batch_1_and_7(cascade):
    """float32, before rounding to intensities."""
    base, own = cascade.stages[0], settings(cascade)
    whole = run_stage(base, Cond(LABELS), SEEDS, own, 8).x_t
    for i in range(7):
        alone = run_stage(base, Cond(LABELS[i : i + 1]), SEEDS[i : i + 1], own, 8).x_t
        torch.testing.assert_close(alone[0], whole[i], rtol=0, atol=1e-4)
    assert whole.std() > 0.1


@pytest.mark.parametrize("hand_over", ["non_truncated", "truncated"])
def test_final_images_for_batch_1_and_7(cascade, hand_over):
    own = settings(cascade, hand_over=hand_over)
    whole, alone = (cascade.sample(**EACH, settings=own, batch_size=size).images[-1] for size in (7, 1))
    off = (to_images(whole).int() - to_images(alone).int()).abs()
    assert off.max() <= 3 and (off == 0).double().mean() >= 0.99


def psnr(one: Tensor, other: Tensor) -> float:
    error = (to_images(one).double() - to_images(other).double()).square().mean()
    return 10 * math.log10(255**2 / error)


def test_bfloat16_images_are_near_float32_ones(cascade, request):
    exact = cascade.sample(**EACH, settings=settings(cascade)).images[-1]
    letters = "letters" in request.node.name
    half = Cascade.load(LETTERS, precision="bf16") if letters else three_stages(torch.bfloat16)
    rough = half.sample(**EACH, settings=settings(cascade)).images[-1]
    assert psnr(exact, rough) >= 30
    assert not torch.equal(exact, rough)


def test_an_image_depends_on_its_own_seed_and_label_alone(rough):
    """Not on what else is asked for, nor on its place."""
    own = settings(rough)
    whole = rough.sample(**EACH, settings=own)
    order = torch.tensor([4, 0, 6])
    some = rough.sample(LABELS[order], SEEDS[order], settings=own)
    for all_images, images in zip(whole.images, some.images, strict=True):
        off = (to_images(all_images[order]).int() - to_images(images).int()).abs()
        assert off.max() <= 1 and (off == 0).double().mean() > 0.99  # batches of another size round otherwise
    others = rough.sample((LABELS + 1) % 3, SEEDS, settings=own)
    assert not equal(whole, others)
    again = rough.sample(LABELS.tolist(), SEEDS.tolist(), settings=own)
    assert equal(whole, again)


def test_labels_do_not_reach_the_random_stream(rough, monkeypatch):
    """Every number drawn, in order, for other labels and for none."""
    draw, drawn = Rng.normal, []

    def recorded(self, purpose, index, shape, step=0):
        drawn.append(draw(self, purpose, index, shape, step))
        return drawn[-1]

    monkeypatch.setattr(Rng, "normal", recorded)
    runs = []
    for labels in ([0, 0], [1, 2], None):
        drawn.clear()
        images = rough.sample(labels, [8, 9], settings=settings(rough, steps=[3, 2, 2], sampler="ddpm")).images
        runs.append((list(drawn), images))
    for numbers, images in runs[1:]:
        assert len(numbers) == len(runs[0][0]) and all(map(torch.equal, numbers, runs[0][0]))
        assert not torch.equal(images[-1], runs[0][1][-1])


def test_two_cascades_interleaved_do_not_meet(rough):
    """One is sampled inside of the other's progress callback, step by step."""
    other = two_stages()
    few = settings(other, steps=[2, 2])
    alone, other_alone = rough.sample([1], [5], settings=settings(rough)), other.sample(seeds=[5], settings=few)
    inside = []

    def progress(stage, done, of, preview):
        inside.append(other.sample(seeds=[5], settings=few))

    assert equal(rough.sample([1], [5], settings=settings(rough), progress=progress), alone)
    assert len(inside) == sum(STEPS) and all(equal(made, other_alone) for made in inside)


def test_conditioning_noise_of_sampling_is_none_that_a_run_was_trained_on(rough):
    """Seed 0 of both is the usual case, and image i of seed 0 has the number of the i-th image of training."""
    stage, index = rough.stages[1], torch.arange(8)
    low_res = quantise(torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    seeds = torch.tensor([image_seed(0, i) for i in range(8)])
    assert torch.equal(seeds, index)
    level = stage.aug_logsnr(0.5)
    _, sampled = stage.condition(low_res, LABELS.new_zeros(8), level, Rng(0, 1), seeds)
    fixed = replace(stage.config.augmentation, level_min=0.5, level_max=0.5, clean_fraction=0.0)
    trained = augment_for_training(fixed, low_res, 16, Rng(0, 1), index)
    assert torch.equal(trained.aug_logsnr, sampled.aug_logsnr)
    noises = [(augmented.noisy - low_res).flatten(1) for augmented in (sampled, trained)]
    assert (noises[0] == noises[1]).double().mean() < 0.01
    both = torch.stack([noise.flatten() for noise in noises])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.2  # they share the low-res image's own part


def test_a_stage_stopped_early_equals_it_in_a_full_run(cascade):
    own = settings(cascade)
    full = cascade.sample(**EACH, settings=own)
    for last in range(len(cascade.stages)):
        early = cascade.sample(**EACH, settings=own, stop_after=last)
        assert len(early.images) == last + 1
        assert all(torch.equal(a, b) for a, b in zip(early.images, full.images, strict=False))


def test_progress_tells_every_step_and_shows_clean_estimates(rough):
    calls = []
    result = rough.sample([0], [1], settings=settings(rough), progress=lambda *call: calls.append(call))
    assert [call[:3] for call in calls] == [(k, i + 1, n) for k, n in enumerate(STEPS) for i in range(n)]
    assert torch.equal(quantise(calls[-1][3]), result.images[-1])
    assert all(call[3].abs().max() <= 1 for call in calls)


def test_previews_and_time_steps_of_a_truncated_run_are_those_of_the_whole_run(rough):
    """Truncation cuts the run, it does not make another one: the base is the same up to the cut."""
    seen = {}
    for hand_over in ("non_truncated", "truncated"):
        previews = seen.setdefault(hand_over, [])
        keep = lambda stage, done, of, preview, to=previews: to.append(preview) if stage == 0 else None  # noqa: E731
        result = rough.sample([0], [1], settings=settings(rough, hand_over=hand_over), progress=keep)
    assert 0 < len(seen["truncated"]) == 5 - result.saved_evaluations[0] < 5
    for cut, whole in zip(seen["truncated"], seen["non_truncated"], strict=False):
        assert torch.equal(cut, whole)


# ---- hand-overs ------------------------------------------------------------------------------------------------------


class Spy:
    """Sees what a stage's network is conditioned on."""

    def __init__(self, cascade: Cascade, stage: int, monkeypatch) -> None:
        self.conds: list[Cond] = []
        run = cdm.cascade.run_stage
        self.runs = []

        def spied(this, cond, *args, **options):
            if this.index == stage:
                self.conds.append(cond)
            made = run(this, cond, *args, **options)
            self.runs.append(made)
            return made

        monkeypatch.setattr(cdm.cascade, "run_stage", spied)


@pytest.mark.parametrize("level", [0.1, 0.35, 0.8])
def test_truncation_stops_exactly_at_the_level(level, monkeypatch):
    """The SR net is told that level and given that very x_t, float32, neither clipped nor rounded."""
    cascade = two_stages()
    spy = Spy(cascade, 1, monkeypatch)
    result = cascade.sample(seeds=[1, 2], settings=settings(cascade, hand_over="truncated", aug_level=level))
    told = -2 * math.log(math.tan(math.pi * level / 2))
    cond, base = spy.conds[0], spy.runs[0]
    assert base.logsnr == pytest.approx(told, rel=1e-6)
    assert cond.aug_logsnr.tolist() == [pytest.approx(told, rel=1e-6)] * 2
    assert torch.equal(cond.low_res, upsample(base.x_t, 16)) and base.x_t.dtype == torch.float32
    assert not torch.equal(base.x_t, quantise(base.x_t)) and base.x_t.abs().max() > 1
    assert torch.equal(result.images[0], base.image) and torch.equal(base.image, quantise(base.image))
    low, high = cascade.stages[0].denoiser.logsnr_range
    before = sum(low + (high - low) * i / 4 < told for i in range(5))  # evaluations at noisier levels
    assert result.evaluations == (before, 3) and result.saved_evaluations == (5 - before, 0)


@pytest.mark.parametrize("level", [0.1, 0.35, 0.8])
def test_a_table_stops_at_its_nearest_entry_and_the_next_net_is_told_that(level, monkeypatch):
    cascade = two_stages(schedule=ScheduleConfig(kind="cosine_table", num_timesteps=30), told="timestep")
    spy = Spy(cascade, 1, monkeypatch)
    result = cascade.sample(seeds=[1], settings=settings(cascade, hand_over="truncated", aug_level=level))
    table, asked = cascade.stages[0].denoiser.table, -2 * math.log(math.tan(math.pi * level / 2))
    entry = table[(table - asked).abs().argmin()].item()
    assert spy.conds[0].aug_logsnr.item() == pytest.approx(entry, rel=1e-6)
    assert spy.runs[0].logsnr == entry and abs(entry - asked) > 1e-3
    assert result.saved_evaluations[0] == 5 - result.evaluations[0] > 0


def test_the_finished_hand_over_is_the_saved_image_with_noise(monkeypatch):
    cascade = two_stages()
    spy = Spy(cascade, 1, monkeypatch)
    result = cascade.sample(seeds=[3, 4], settings=settings(cascade, aug_level=0.3))
    alpha, sigma = math.cos(0.15 * math.pi), math.sin(0.15 * math.pi)
    eps = Rng(0, 1).normal(Purpose.HAND_OVER_NOISE, torch.tensor([3, 4]), (1, 8, 8))
    expected = upsample(alpha * result.images[0] + sigma * eps, 16)
    torch.testing.assert_close(spy.conds[0].low_res, expected)
    assert torch.equal(result.images[0], quantise(result.images[0])) and result.saved_evaluations == (0, 0)


def test_level_zero_is_one_code_path(rough):
    runs = [
        rough.sample(**EACH, settings=settings(rough, hand_over=h, aug_level=0.0))
        for h in ("truncated", "non_truncated")
    ]
    assert equal(*runs) and runs[0].evaluations == runs[1].evaluations == STEPS


def test_level_zero_draws_no_noise_and_tells_the_cleanest_level(monkeypatch):
    cascade = two_stages()
    spy = Spy(cascade, 1, monkeypatch)
    result = cascade.sample(seeds=[3], settings=settings(cascade, aug_level=0.0))
    assert spy.conds[0].aug_logsnr.item() == AUG_LOGSNR_MAX
    assert torch.equal(spy.conds[0].low_res, upsample(result.images[0], 16))


def test_each_sr_stage_has_its_own_level(rough, monkeypatch):
    told = []
    for k in (1, 2):
        spy = Spy(rough, k, monkeypatch)
        rough.sample([0], [1], settings=settings(rough, aug_level=[0.0, 0.5]))
        told.append(spy.conds[0].aug_logsnr.item())
    assert told == [AUG_LOGSNR_MAX, pytest.approx(0, abs=1e-6)]


def test_given_low_res_images_take_the_place_of_the_base(rough):
    own = settings(rough)
    full = rough.sample(**EACH, settings=own)
    given = rough.sample(**EACH, settings=own, low_res=full.images[0])
    assert equal(given, full) and given.evaluations == (0, 3, 2)
    truncated = rough.sample(**EACH, settings=settings(rough, hand_over="truncated"), low_res=full.images[0])
    assert torch.equal(truncated.images[0], full.images[0])  # the base does not run, so it is not truncated
    assert truncated.saved_evaluations[0] == 0 < truncated.saved_evaluations[1]
    with pytest.raises(UserError, match="no SR stage to run on them; expected stop_after of 1 or more"):
        rough.sample(**EACH, settings=own, low_res=full.images[0], stop_after=0)


@pytest.mark.parametrize("kind", ["none", "blur"])
def test_truncation_is_refused_before_stages_without_noise(kind):
    """Before the base has run, even where the stage comes later."""
    configs = [stage_config(8), stage_config(16, 8), stage_config(32, 16, augmentation=AugmentationConfig(kind=kind))]
    cascade, calls = random_cascade(*configs), []
    with pytest.raises(UserError, match=f"needs a stage trained with Gaussian augmentation; stage 2 has '{kind}'"):
        cascade.sample(settings=settings(cascade, hand_over="truncated"), progress=lambda *call: calls.append(call))
    assert not calls
    assert len(cascade.sample(settings=settings(cascade, hand_over="truncated"), stop_after=1).images) == 2
    assert len(cascade.sample(settings=settings(cascade)).images) == 3


def test_truncation_is_refused_where_the_base_cannot_stop():
    cascade = two_stages(schedule=ScheduleConfig(logsnr_min=-2.0, logsnr_max=2.0))
    with pytest.raises(UserError, match=r"level 0.1 .* lies outside what stage 0 can stop at \(-2.00 to 2.00\)"):
        cascade.sample(settings=settings(cascade, hand_over="truncated", aug_level=0.1))


def test_images_are_what_a_file_holds(rough):
    for images, size in zip(rough.sample(**EACH, settings=settings(rough)).images, (8, 16, 32), strict=True):
        assert images.shape == (7, 3, size, size) and images.dtype == torch.float32
        assert torch.equal(images, quantise(images))


def test_another_depth_of_intensities():
    """A stage rounds to its data's window, and the next one gets that."""
    configs = [stage_config(8), stage_config(16, 8)]
    stages = [random_stage(config, i, levels=10_001) for i, config in enumerate(configs)]
    images = Cascade(cascade_config(*configs), stages).sample(steps=[3, 2]).images
    assert torch.equal(images[0], quantise(images[0], 10_001)) and not torch.equal(images[0], quantise(images[0]))


# ---- requests --------------------------------------------------------------------------------------------------------


def test_settings_are_the_runs_own_with_what_is_given_over_them(rough):
    assert rough.settings() == SamplingConfig(sampler="dpmpp", steps=(32, 16, 16), aug_level=(0.2, 0.2))
    assert rough.settings(steps=[4]).steps == (4, 16, 16)
    assert rough.settings(aug_level=0.1).aug_level == (0.1, 0.1)
    stored = SamplingConfig(sampler="ddim", steps=(5, 4, 3), aug_level=(0.3, 0.0), hand_over="truncated", clip=False)
    tuned = Cascade(replace(rough.config, sampling=stored), rough.stages)
    assert tuned.settings() == stored
    assert tuned.settings(sampler="ddpm", clip=True) == replace(stored, sampler="ddpm", clip=True)
    timid = stage_config(16, 8, augmentation=AugmentationConfig(level_max=0.1))
    table = stage_config(8, schedule=ScheduleConfig(kind="cosine_table", num_timesteps=30))
    small = random_cascade(table, timid).settings()
    assert small.aug_level == (0.1,) and small.steps == (30, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": []}, "got 0 numbers of steps for 3 stages; expected one per stage from the base up, as 32,16,16"),
        ({"steps": [1, 2, 3, 4]}, "got 4 numbers of steps for 3 stages"),
        ({"steps": [0]}, "got 0 steps for the stage at 8; expected 1 to 100000"),
        ({"aug_level": [0.1]}, "got 1 augmentation levels, but the number of SR stages is 2"),
        ({"aug_level": 1.5}, "augmentation level 1.5 is out of range"),
        ({"aug_level": [0.0, -0.1]}, "augmentation level -0.1 is out of range"),
        ({"aug_level": math.nan}, "augmentation level nan is out of range"),
        ({"sampler": "dppm"}, "unknown sampler 'dppm'; expected one of dpmpp, dpmpp_sde, ddim, ddpm, ddpm_large"),
        ({"sampler": "ddpm,ddim"}, "got 2 names of a sampler; expected one, or one for each of the 3 stages"),
        ({"grid": "even"}, "unknown grid 'even'; expected one of logsnr, edm, cosine"),
        ({"grid": "tuned"}, "unknown grid 'tuned'"),  # as long as nothing is tuned
        ({"threshold": 0.3}, "got the threshold 0.3; expected 0 (none), or a percentile from 0.5 to 1"),
        ({"hand_over": "cut"}, "unknown hand-over 'cut'; expected non_truncated or truncated"),
    ],
)
def test_wrong_settings(rough, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        rough.settings(**options)
    with pytest.raises(UserError, match=re.escape(message)):
        rough.sample(**options)


def test_more_steps_than_a_table_has_and_more_noise_than_trained_with():
    table = stage_config(8, schedule=ScheduleConfig(kind="cosine_table", num_timesteps=30))
    timid = stage_config(16, 8, augmentation=AugmentationConfig(level_max=0.6))
    with pytest.raises(UserError, match="got 31 steps for the stage at 8; expected 1 to 30"):
        random_cascade(table, timid).settings(steps=[31])
    with pytest.raises(
        UserError, match=r"0.7 is more noise than the stage at 16 was trained with; expected at most 0.6"
    ):
        random_cascade(table, timid).settings(aug_level=0.7)


@pytest.mark.parametrize("values", [[0.5], ["cat"], 0, "A", [True], [2**70], [[1], [2]], torch.tensor(1)])
def test_labels_and_seeds_are_lists_of_whole_numbers(values):
    with pytest.raises(UserError, match=r"got seeds .*expected a list of whole numbers"):
        _integers("seeds", values)
    assert _integers("labels", [1, 2]).dtype == torch.int64


@pytest.mark.parametrize(
    ("low_res", "got"),
    [
        ("small.png", "of type str"),
        (np.zeros((2, 3, 8, 8)), "of type ndarray"),
        (torch.zeros(3, 8, 8), "a torch.float32 tensor [3, 8, 8]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "a torch.uint8 tensor [2, 3, 8, 8]"),
    ],
)
def test_low_res_is_a_batch_of_floats(low_res, got):
    with pytest.raises(UserError, match=re.escape(f"got low_res {got}; expected a tensor [B, C, h, w] of floats")):
        _batch(low_res)
    assert _batch(torch.zeros(2, 3, 8, 8, dtype=torch.float64)).dtype == torch.float32


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"labels": [3, 4]}, "got labels from 3 to 4; expected 0 to 2, or 3 for any class"),
        ({"labels": [-1]}, "got labels from -1 to -1"),
        ({"labels": [0, 1], "seeds": [1]}, "got 1 seeds for 2 images"),
        ({"labels": [0], "num_images": 2}, "got 1 labels for 2 images"),
        ({"labels": []}, "got 0 images to sample"),
        ({"num_images": 0}, "got num_images 0; expected a whole number, at least 1"),
        ({"num_images": -1}, "got num_images -1"),
        ({"stop_after": 3}, "got stop_after 3; expected a whole number, a stage, 0 to 2"),
        ({"stop_after": -1}, "got stop_after -1"),
        ({"low_res": torch.zeros(2, 3, 16, 16)}, "got low_res images of shape (3, 16, 16); expected (3, 8, 8)"),
        ({"low_res": torch.zeros(2, 1, 8, 8)}, "got low_res images of shape (1, 8, 8)"),
        ({"low_res": torch.full((2, 3, 8, 8), math.nan)}, "got low_res images from nan to nan; expected [-1, 1]"),
        ({"low_res": torch.full((2, 3, 8, 8), 255.0)}, "got low_res images from 255 to 255; expected [-1, 1]"),
        ({"seeds": [3, -1]}, "got the seed -1; expected 0 or more"),
        ({"batch_size": 0}, "got batch_size 0; expected a whole number, at least 1, or None, which chooses"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_computed(rough, request_, message):
    calls = []
    with pytest.raises(UserError, match=re.escape(message)):
        rough.sample(**request_, progress=lambda *call: calls.append(call))
    assert not calls


def test_labels_where_there_are_no_classes():
    with pytest.raises(UserError, match="trained without classes: leave them out"):
        two_stages().sample(labels=[0])


def test_a_class_is_needed_where_none_was_ever_dropped():
    """Trained without label dropout: the label table has no row for "any class"."""
    cascade = random_cascade(stage_config(8, num_labels=3), classes="abc")
    with pytest.raises(UserError, match="trained without label dropout and needs a class for every image"):
        cascade.sample()
    with pytest.raises(UserError, match=re.escape("got labels from 3 to 3; expected 0 to 2.")):
        cascade.sample(labels=[3])


def test_what_is_not_given_is_counted_from_zero(rough):
    own = settings(rough, steps=[2, 2, 2])
    assert rough.sample(num_images=3, settings=own).seeds.tolist() == [0, 1, 2]
    assert equal(rough.sample(num_images=2, settings=own), rough.sample([3, 3], [0, 1], settings=own))
    assert len(rough.sample(settings=own).images[0]) == 1


def test_image_seeds_do_not_meet():
    seeds = {image_seed(seed, index) for seed in (0, 1, 2, 2**31 - 1) for index in (0, 1, 2**20)}
    assert len(seeds) == 12 and max(seeds) < 2**63


# ---- run folders -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, rough) -> Path:
    return save_run(tmp_path / "run", rough)


def scale(loaded: Cascade, rough: Cascade) -> list[float]:
    """Stored weights against the original ones."""
    firsts = [stage.net.first.weight.flatten()[0].item() for stage in loaded.stages]
    return [one / s.net.first.weight.flatten()[0].item() for one, s in zip(firsts, rough.stages, strict=False)]


@pytest.mark.parametrize(
    ("weights", "factor"), [("raw", 1.0), ("ema", 0.5), ("0.050", 0.5), ("0.100", 2.0)], ids=lambda value: str(value)
)
def test_weights_are_those_asked_for(run, rough, weights, factor):
    loaded = Cascade.load(run, weights=weights, precision="fp32")
    assert scale(loaded, rough) == [factor] * 3
    assert loaded.config == rough.config
    assert all(not p.requires_grad for stage in loaded.stages for p in stage.net.parameters())


@pytest.mark.parametrize(
    "options", [{"steps": [3]}, {"sampler": "ddim"}, {"aug_level": 0.1}, {"hand_over": "truncated"}], ids=str
)
def test_settings_and_a_keyword_of_them_are_refused(rough, options):
    (name,) = options
    with pytest.raises(UserError, match=f"got both settings and {name}; expected one of them"):
        rough.sample([0], settings=settings(rough), **options)
    with pytest.raises(TypeError, match="stepz"):
        rough.sample([0], stepz=[3])


@pytest.mark.parametrize("stages", [range(4), [1], [1, 0], [], [-1]], ids=str)
def test_stages_that_the_run_lacks_or_that_have_no_base_are_refused(run, stages):
    with pytest.raises(UserError, match=r"got the stages .* which has 3 \(0 to 2\); expected the first so many"):
        Cascade.load(run, stages=stages)


def test_a_loaded_run_samples_what_was_saved(run, rough):
    loaded = Cascade.load(run, weights="raw", precision="fp32")
    assert equal(loaded.sample(**EACH, settings=settings(rough)), rough.sample(**EACH, settings=settings(rough)))


def test_the_hash_names_the_weights(run, rough, tmp_path):
    hashes = {Cascade.load(run, weights=weights).hash for weights in ("raw", "ema", "0.100")}
    assert len(hashes) == 3
    assert Cascade.load(save_run(tmp_path / "copy", rough)).hash == Cascade.load(run).hash
    assert Cascade.load(run).hash == "-".join(stage.hash for stage in Cascade.load(run).stages)


def test_nothing_stands_in_for_lost_averages_unasked(run, rough):
    """Neither the other profile nor the raw weights, which ``weights`` can name."""
    for path in run.rglob("ema-*"):
        path.unlink()
    with pytest.raises(UserError, match=r"stage 0 .* has no weights at .*ema-0.050"):
        Cascade.load(run)
    assert scale(Cascade.load(run, weights="raw", precision="fp32"), rough) == [1.0] * 3


def test_the_first_stages_alone(run, rough):
    """The others need not be trained."""
    for path in (run / "2-32").iterdir():
        path.unlink()
    loaded = Cascade.load(run, stages=range(2), weights="raw", precision="fp32")
    early = loaded.sample(**EACH, settings=settings(rough))
    assert len(early.images) == 2
    whole = rough.sample(**EACH, settings=settings(rough))
    assert all(map(torch.equal, early.images, whole.images))
    with pytest.raises(UserError, match=r"stage 2 \(32 pixels\) has no weights .* run `cdm train` again"):
        Cascade.load(run)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"is not a run folder \(no cascade.json in it\)"):
        Cascade.load(tmp_path)


def test_unknown_weights(run):
    with pytest.raises(UserError, match=r"unknown weights '0.2' in .*; expected ema, raw or 0.050 or 0.100"):
        Cascade.load(run, weights="0.2")


@pytest.mark.parametrize("name", ["0-8/ema-0.050.safetensors", "cascade.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "empty"])
def test_damaged_files_are_named(run, name, how):
    path = run / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"flipped": bytes(content), "cut": bytes(content[:-9]), "empty": b""}[how])
    with pytest.raises(CorruptError, match=re.escape(str(path))):
        Cascade.load(run)


def test_weights_of_another_net(run):
    (run / "1-16" / "ema-0.050.safetensors").write_bytes((run / "0-8" / "ema-0.050.safetensors").read_bytes())
    with pytest.raises(ConfigError, match=r"does not fit its config.json"):
        Cascade.load(run)


@pytest.mark.parametrize("page", ["docs/library.md", "README.md"])
def test_the_lines_in_the_documentation_work(page, tmp_path, monkeypatch):
    """All Python blocks of each page, one after the other, on a run of two stages."""
    options = {"channels": 3, "num_labels": 4}
    cascade = random_cascade(stage_config(8, **options), stage_config(16, 8, **options), classes="ABC")
    for name in ("letters", "photos"):
        save_run(tmp_path / "runs" / name, cascade)
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / page).read_text(encoding="utf-8")
    names: dict = {}
    exec("".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), names)
    assert names["result"].images[0].shape == (3, 3, 8, 8) and names["images"].shape[1:] == (3, 16, 16)
    if page == "docs/library.md":
        assert names["larger"].shape == (3, 3, 16, 16) and names["preview"].abs().max() <= 1
        assert sorted(path.name for path in tmp_path.glob("*.png")) == ["A-1.png", "A-2.png"]
