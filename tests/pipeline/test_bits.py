"""``cdm info --bits-per-dim``: the bound of a run on images, through the run folder and the image reader."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tests.fakes import random_cascade, random_stage, save_run, stage_config

from cdm.cascade import Cascade
from cdm.config import AugmentationConfig, DataConfig, LossConfig, ScheduleConfig
from cdm.data.pixels import to_float
from cdm.errors import UserError
from cdm.losses import make_cond, prior_bits_per_dim, reconstruction_bits_per_dim, vlb_term
from cdm.noise.process import add_noise
from cdm.pipeline.bits import bits_per_dim, stage_bound
from cdm.rng import Purpose, Rng
from cdm.types import Batch, Cond

TABLE = ScheduleConfig(kind="cosine_table", num_timesteps=70)  # more than one chunk of levels
COUNT = 3


def learned(size: int, low: int = 0, **changes):
    return stage_config(size, low, schedule=TABLE, prediction="eps", variance="learned", loss=LossConfig(), **changes)


@pytest.fixture
def images(tmp_path) -> np.ndarray:
    """Three classes of one greyscale image each, 16 pixels."""
    pixels = np.random.default_rng(1).integers(0, 256, (COUNT, 16, 16), dtype=np.uint8)
    for name, image in zip("abc", pixels, strict=True):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / "data" / name / "1.png")
    return pixels


def numbers(line: str) -> tuple[float, float]:
    mean, half = re.search(r"([\d.]+) \+- ([\d.]+|nan) bits per dimension", line).groups()
    return float(mean), float(half)


def test_one_line_for_each_stage(tmp_path, images):
    """The mean and interval are those of the bound of each image; of a table and of a continuous stage alike."""
    configs = [learned(8, num_labels=4), stage_config(16, 8, num_labels=4)]
    cascade = random_cascade(*configs, classes="abc")
    run = save_run(tmp_path / "run", cascade)
    lines = list(bits_per_dim(run, str(tmp_path / "data"), 10, "cpu", "fp32"))
    assert len(lines) == 2 and lines[0].endswith("on 3 images")
    assert lines[1].startswith("stage 1-16: ") and numbers(lines[1])[0] > 0
    stage = Cascade.load(run, precision="fp32").stages[0]
    x = to_float(torch.from_numpy(images)[:, None])
    blocks = ((x.double().view(3, 1, 8, 2, 8, 2).mean((3, 5)) + 1) * 127.5).round() / 127.5 - 1
    bounds = torch.stack(
        [
            stage_bound(
                stage, Batch(blocks[i : i + 1].float(), torch.tensor([i]), torch.tensor([i])), torch.device("cpu")
            )
            for i in range(3)
        ]
    )
    mean, half = numbers(lines[0])
    assert mean == pytest.approx(bounds.mean().item(), abs=6e-4)
    assert half == pytest.approx(1.96 * bounds.std().item() / 3**0.5, abs=6e-4)
    assert numbers(next(bits_per_dim(run, str(tmp_path / "data"), 1, "cpu", "fp32")))[0] == pytest.approx(
        bounds[0].item(), abs=6e-4
    )


def test_a_stage_that_never_saw_clean_low_res_images_has_no_bound(tmp_path, images):
    own = AugmentationConfig(kind="gaussian", level_min=0.2, level_max=0.2, clean_fraction=0.0)
    cascade = random_cascade(
        learned(8, num_labels=4), stage_config(16, 8, num_labels=4, augmentation=own), classes="abc"
    )
    lines = list(bits_per_dim(save_run(tmp_path / "run", cascade), str(tmp_path / "data"), 1, "cpu", "fp32"))
    assert numbers(lines[0])[0] > 0
    assert lines[1].startswith("stage 1-16: no bound") and lines[1].endswith("this stage knows noise of 0.2 alone")


def test_images_of_every_class_are_measured(tmp_path, images):
    """Two of three classes' images asked for: the first and the last, not the first two."""
    run = save_run(tmp_path / "run", random_cascade(learned(16, num_labels=4), classes="abc"))
    stage = Cascade.load(run, precision="fp32").stages[0]
    ends = [
        stage_bound(stage, Batch(x, torch.tensor([i]), torch.tensor([i])), torch.device("cpu")).item()
        for i, x in (
            (0, to_float(torch.from_numpy(images[:1])[:, None])),
            (2, to_float(torch.from_numpy(images[2:])[:, None])),
        )
    ]
    told = numbers(next(bits_per_dim(run, str(tmp_path / "data"), 2, "cpu", "fp32")))[0]
    assert told == pytest.approx(sum(ends) / 2, abs=6e-4)


@pytest.mark.parametrize("low", [0, 8])
def test_the_bound_of_an_image_is_the_sum_of_its_terms(low):
    """Entry by entry, without chunks; labels kept and the low-res image clean, whatever training does to them."""
    stage = random_stage(learned(16, low, num_labels=4, label_dropout=0.9), 1 if low else 0, num_classes=3)
    x0 = to_float(np.random.default_rng(2).integers(0, 256, (1, 1, 16, 16), dtype=np.uint8))
    one, rng, table = Batch(x0, torch.tensor([2]), torch.tensor([4])), Rng(0, stage.index), stage.denoiser.table
    clean = replace(stage.config, label_dropout=0.0, augmentation=replace(stage.config.augmentation, level_max=0.0))
    cond, augmented = make_cond(random_stage(clean, stage.index, num_classes=3), one, rng)
    assert cond.labels.item() == 2 and (not low or augmented.aug_logsnr.item() == 12)
    total = prior_bits_per_dim(stage.denoiser, x0).item()
    for i, logsnr in enumerate(table.float()):
        eps = rng.normal(Purpose.EVALUATE, torch.tensor([i + 4 * len(table)]), (1, 16, 16))
        x_t = add_noise(x0, eps, logsnr[None])
        prediction = stage.denoiser(x_t, logsnr[None], cond)
        total += vlb_term(stage.denoiser, prediction, x0, x_t, logsnr[None]).item()
    assert stage_bound(stage, one, torch.device("cpu")).item() == pytest.approx(total, rel=1e-4)


def test_the_bound_of_a_continuous_stage_is_an_integral_over_levels():
    """Against the integral in log-SNR by the trapezoidal rule on levels of its own, with other noise."""
    stage = random_stage(stage_config(8, schedule=ScheduleConfig(logsnr_min=-6.0, logsnr_max=7.0)), 0)
    x0 = to_float(np.random.default_rng(2).integers(0, 256, (1, 1, 8, 8), dtype=np.uint8))
    one = Batch(x0, None, torch.tensor([4]))
    levels = torch.linspace(-6, 7, 4001)
    eps = torch.randn(4001, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    x_t = add_noise(x0.expand(4001, -1, -1, -1), eps, levels)
    with torch.no_grad():
        error = (stage.denoiser(x_t, levels, Cond()).eps - eps).square().mean((1, 2, 3))
    last = reconstruction_bits_per_dim(x0, x_t[-1:], 7.0).item()
    expected = 0.5 * torch.trapezoid(error, levels).item() / np.log(2) + last
    expected += prior_bits_per_dim(stage.denoiser, x0).item()
    assert stage_bound(stage, one, torch.device("cpu")).item() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("logsnr", [2.0, 8.0, 14.0])
def test_pixels_are_told_from_their_noisy_values_by_bayes(logsnr):
    """Against the posterior over all 16 values, one after the other, at the ends of the range too."""
    values = torch.linspace(-1, 1, 16, dtype=torch.float64)
    x0 = values[torch.tensor([[0, 15, 7, 8]])].view(1, 1, 2, 2).float()
    x_t = add_noise(x0, torch.tensor([-1.5, 2.0, 0.3, -0.4]).view(1, 1, 2, 2), torch.tensor([logsnr]))
    scaled = x_t.double().flatten() / (1 / (1 + np.exp(-logsnr))) ** 0.5
    log_weight = -0.5 * (scaled[:, None] - values) ** 2 * np.exp(logsnr)
    posterior = log_weight.softmax(1)[torch.arange(4), torch.tensor([0, 15, 7, 8])]
    expected = -posterior.log2().mean().item()
    assert reconstruction_bits_per_dim(x0, x_t, logsnr, 16).item() == pytest.approx(
        expected, rel=1e-3, abs=1e-5
    )  # x_t is float32


def test_deep_images_are_read_in_the_runs_own_window(tmp_path):
    """Not in that of the images measured: the same picture, alone or beside a brighter one, has the same bound."""
    for name, top in (("dark", 300), ("bright", 1000)):
        pixels = np.full((16, 16), 100, np.uint16)
        pixels[0, 0] = top
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "1.png")
    cascade = random_cascade(learned(16))
    data = DataConfig(channels=1, bit_depth=16, window=(0, 1000))
    run = save_run(tmp_path / "run", Cascade(replace(cascade.config, data=data), cascade.stages))
    dark, bright = (
        numbers(next(bits_per_dim(run, str(tmp_path / n), 1, "cpu", "fp32")))[0] for n in ("dark", "bright")
    )
    pixels = np.full((1, 1, 16, 16), 100, np.uint16)
    pixels[0, 0, 0, 0] = 300
    stage = Cascade.load(run, precision="fp32").stages[0]
    assert stage.levels == 1001
    x0 = to_float(pixels, (0, 1000))
    truth = stage_bound(stage, Batch(x0, None, torch.tensor([0])), torch.device("cpu")).item()
    assert dark == pytest.approx(truth, abs=6e-4) and dark != bright


def test_classes_that_the_run_does_not_know(tmp_path, images):
    run = save_run(tmp_path / "run", random_cascade(learned(16, num_labels=3), classes="ab"))
    with pytest.raises(UserError, match="got the class 'c'; expected the classes a, b"):
        next(bits_per_dim(run, str(tmp_path / "data"), 10, "cpu", "fp32"))
