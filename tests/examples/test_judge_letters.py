"""The figures that judge a letters cascade: intervals, distances and the views of images that they rest on."""

import json

import pytest
import torch

from cdm.artifacts import save_json, save_tensors
from cdm.conditioning import quantise
from cdm.config import AugmentationConfig, CascadeConfig, NetConfig, SamplingConfig, StageConfig, to_dict
from cdm.stage import build_stage
from examples import judge_letters


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    # Brown, Cai & DasGupta 2001, formula 4, by hand: p = 0.5 gives 0.5 -+ z sqrt(n + z^2) / (2 (n + z^2))
    [(50, 100, 0.40383, 0.59617), (0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0)],
)
def test_wilson_interval(hits, count, low, high):
    assert judge_letters.wilson_interval(hits, count) == pytest.approx((low, high), abs=1e-5)


def test_nearest_distance_is_the_smallest_of_all():
    generator = torch.Generator().manual_seed(0)
    x, training = (torch.rand(count, 3, 8, 8, generator=generator) * 2 - 1 for count in (150, 40))
    every = ((x[:, None] - training[None]) / 2).square().sum(dim=(2, 3, 4)).sqrt()
    torch.testing.assert_close(judge_letters.nearest_distances(x, training), every.amin(dim=1), atol=1e-4, rtol=1e-4)


def test_a_copy_is_found_out():
    generator = torch.Generator().manual_seed(0)
    training, real = (quantise(torch.rand(50, 3, 32, 32, generator=generator) * 2 - 1) for _ in range(2))
    found = judge_letters.copies(training[:20], real, training)
    assert found["samples"]["95 %"] == pytest.approx(0, abs=1e-4)  # of about 22 between strangers
    assert found["samples_nearer_than_1_percent_of_real"] == 1.0
    assert judge_letters.copies(real, real, training)["samples_nearer_than_1_percent_of_real"] <= 0.02


def test_judge_sees_saved_images_area_downsampled():
    x = torch.full((1, 3, 64, 64), -1.0)
    x[:, :, ::2] = 1.0
    torch.testing.assert_close(judge_letters.at_judge_size(x), torch.full((1, 3, 32, 32), 1 / 255), atol=1e-6, rtol=0)


def make_run(folder):
    """An untrained cascade 16 -> 32 of all letters, as a run folder."""
    nets = [
        NetConfig(
            image_size=size, in_channels=inputs, out_channels=3, width=32, multipliers=(1,), num_blocks=1, num_labels=27
        )
        for size, inputs in ((16, 3), (32, 6))
    ]
    top = StageConfig(size=32, channels=3, low_res_size=16, net=nets[1], augmentation=AugmentationConfig(kind="none"))
    config = CascadeConfig(
        class_names=tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
        stages=(StageConfig(size=16, channels=3, net=nets[0]), top),
        sampling=SamplingConfig(steps=(2, 1)),
    )
    folder.mkdir()
    save_json(folder / "cascade.json", {"config": to_dict(config)})
    for index, stage in enumerate(config.stages):
        built = build_stage(stage, index, num_classes=26, seed=0)
        (folder / built.name).mkdir()
        save_tensors(folder / built.name / "ema-0.050.safetensors", dict(built.net.named_parameters()), {})
    return folder


def test_both_commands_from_end_to_end(tmp_path, monkeypatch):
    """With so little of everything, an untrained cascade is read at chance and the report is whole."""
    monkeypatch.setattr(judge_letters, "FRESH_TRAIN", (1001, 26 * 8))
    monkeypatch.setattr(judge_letters, "FRESH_VAL", (1002, 26 * 2))
    monkeypatch.setattr(judge_letters, "EPOCHS", 1)
    data, judge, out = "builtin:letters", tmp_path / "judge.safetensors", tmp_path / "results.json"
    judge_letters.train_judge(data, data, judge)
    run = make_run(tmp_path / "run")
    judge_letters.judge_run(run, judge, data, data, out, n=2, n_collapse=6)
    results = json.loads(out.read_text())
    assert results["generated"]["images"] == 52
    assert results["generated"]["share"] < 0.3
    low, high = results["generated"]["interval_95"]
    assert low <= results["generated"]["share"] <= high
    assert results["trained_on_generated"]["images"] == 156
    assert set(results["per_class"]) == set("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert {"base_only", "sr_from_real_low_res", "real", "nearest_training_image", "judge"} <= set(results)
