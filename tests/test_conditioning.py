"""The low-res image and its augmentation, against definitions; and that everyone gets the same one."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from tests.fakes import random_cascade, random_stage, stage_config
from torch import Tensor

from cdm.conditioning import (
    add_aug_noise,
    augment_at,
    augment_for_training,
    blur,
    make_low_res,
    quantise,
    upsample,
)
from cdm.config import AugmentationConfig
from cdm.data.batches import TrainingImages
from cdm.data.image_array import ImageArray
from cdm.data.pixels import num_levels, to_float, to_images
from cdm.losses import noise_batch, stage_loss
from cdm.noise.schedule import AUG_LOGSNR_MAX, aug_level_to_logsnr
from cdm.rng import Purpose, Rng
from cdm.stage import build_stage
from cdm.types import Batch

GAUSSIAN = AugmentationConfig()
RNG = Rng(5, 1)


def images(batch: int = 4, size: int = 8, channels: int = 2, seed: int = 0) -> Tensor:
    """Any floats in [-1, 1] that a file can hold."""
    generator = torch.Generator().manual_seed(seed)
    return quantise(torch.rand(batch, channels, size, size, generator=generator) * 2 - 1)


def levels_of(*levels: float) -> Tensor:
    return aug_level_to_logsnr(GAUSSIAN, torch.tensor(levels, dtype=torch.float64))


def test_level_zero_is_the_identity_bitwise():
    low_res, eps = images(), torch.full((4, 2, 8, 8), 1e30)  # any trace of the noise would show
    told = levels_of(0, 0, 0, 0)
    assert told.tolist() == [AUG_LOGSNR_MAX] * 4
    assert torch.equal(add_aug_noise(low_res, told, eps), low_res)
    augmented = augment_at(GAUSSIAN, low_res, 16, told, eps)
    assert torch.equal(augmented.noisy, low_res) and torch.equal(augmented.up, upsample(low_res, 16))
    assert not torch.equal(add_aug_noise(low_res, levels_of(2e-3, 0, 0, 0), torch.ones_like(low_res))[0], low_res[0])


def test_levels_are_per_sample():
    low_res, eps = images(), torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    told = levels_of(0, 0.2, 0.5, 1)
    whole = add_aug_noise(low_res, told, eps)
    for k, level in enumerate((0, 0.2, 0.5, 1)):
        alone = add_aug_noise(low_res[k : k + 1], told[k : k + 1], eps[k : k + 1])
        assert torch.equal(alone[0], whole[k])
        expected = math.cos(math.pi * level / 2) * low_res[k] + math.sin(math.pi * level / 2) * eps[k]
        torch.testing.assert_close(whole[k], expected, rtol=0, atol=0.01 if level == 1 else 1e-6)  # clamped at -10
        assert level == 0 or not torch.equal(whole[k], low_res[k])


def test_variance_of_the_augmented_image():
    """alpha^2 var + sigma^2, over 2^20 numbers: five standard errors are 0.7 %."""
    index = torch.arange(1024)
    low_res = 0.3 * Rng(9).normal(Purpose.START_NOISE, index, (1, 32, 32))
    eps = RNG.normal(Purpose.AUG_NOISE, index, (1, 32, 32))
    for level in (0.1, 0.5, 0.9):
        told = levels_of(level).expand(1024)
        alpha2 = math.cos(math.pi * level / 2) ** 2
        got = add_aug_noise(low_res, told, eps).double().var().item()
        assert got == pytest.approx(alpha2 * 0.09 + 1 - alpha2, rel=0.007)


def test_training_levels_are_uniform_with_a_clean_share():
    config = AugmentationConfig(level_min=0.1, level_max=0.6, clean_fraction=0.25)
    count = 20000
    told = augment_for_training(config, torch.zeros(count, 1, 1, 1), 2, RNG, torch.arange(count)).aug_logsnr
    clean = told == AUG_LOGSNR_MAX
    assert clean.double().mean().item() == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / count))
    level = torch.atan(torch.exp(-told[~clean].double() / 2)) * 2 / math.pi
    assert level.min() >= 0.1 - 1e-6 and level.max() <= 0.6 + 1e-6
    share = torch.histc((level - 0.1) / 0.5, bins=10, min=0, max=1) / len(level)
    assert (share - 0.1).abs().max() < 5 * math.sqrt(0.09 / len(level))


def test_noise_is_added_before_enlarging():
    low_res, index = images(), torch.arange(4) + 70
    augmented = augment_for_training(AugmentationConfig(clean_fraction=0.0), low_res, 32, RNG, index)
    assert augmented.noisy.shape == low_res.shape
    assert torch.equal(augmented.up, upsample(augmented.noisy, 32))
    alpha, sigma = (torch.sigmoid(s * augmented.aug_logsnr)[:, None, None, None].sqrt() for s in (1, -1))
    eps = RNG.normal(Purpose.AUG_NOISE, index, (2, 8, 8))
    torch.testing.assert_close(augmented.noisy, alpha * low_res + sigma * eps)


def test_training_augmentation_is_a_function_of_the_position():
    low_res, index = images(), torch.arange(4) + 1000
    for config in (GAUSSIAN, AugmentationConfig(kind="blur")):
        whole = augment_for_training(config, low_res, 16, RNG, index)
        for k in range(4):
            alone = augment_for_training(config, low_res[k : k + 1], 16, RNG, index[k : k + 1])
            assert torch.equal(alone.noisy[0], whole.noisy[k])
            assert (alone.aug_logsnr is None) == (config.kind == "blur")
        assert not torch.equal(whole.noisy, augment_for_training(config, low_res, 16, RNG, index + 4).noisy)


def test_blur_is_the_normalised_gaussian_with_reflected_borders():
    """Against the 3x3 kernel written out, pixel by pixel."""
    x, sigma = images(3, 5, 1).double(), torch.tensor([0.4, 0.6, 1.5])
    got = blur(x, sigma)
    for b in range(3):
        kernel = np.array(
            [[math.exp(-(i * i + j * j) / (2 * sigma[b].item() ** 2)) for j in (-1, 0, 1)] for i in (-1, 0, 1)]
        )
        kernel /= kernel.sum()
        padded = np.pad(x[b, 0].numpy(), 1, mode="reflect")  # without repeating the border pixel
        for y in range(5):
            for z in range(5):
                expected = (kernel * padded[y : y + 3, z : z + 3]).sum()
                assert got[b, 0, y, z].item() == pytest.approx(expected, abs=1e-7)


def test_blur_sums_to_one_and_is_the_identity_at_zero():
    x = images(2, 6)
    assert torch.equal(blur(x, torch.zeros(2)), x)
    mixed = blur(x, torch.tensor([0.0, 0.6]))
    assert torch.equal(mixed[0], x[0]) and not torch.equal(mixed[1], x[1])
    torch.testing.assert_close(blur(torch.full((1, 1, 4, 4), 0.7), torch.tensor([0.9])), torch.full((1, 1, 4, 4), 0.7))
    point = torch.zeros(1, 1, 7, 7)
    point[0, 0, 3, 3] = 1
    assert blur(point, torch.tensor([0.6])).sum().item() == pytest.approx(1, abs=1e-6)
    tiny = blur(x, torch.full((2,), 1e-4))  # no overflow on the way to 0
    torch.testing.assert_close(tiny, x)


def test_blur_is_drawn_for_its_share_of_training_images_and_never_at_sampling():
    config = AugmentationConfig(kind="blur", blur_min=0.4, blur_max=0.6, blur_fraction=0.5)
    count = 4000
    point = torch.zeros(count, 1, 3, 3)
    point[:, :, 1, 1] = 1
    centre = augment_for_training(config, point, 6, RNG, torch.arange(count)).noisy[:, 0, 1, 1].double()
    share = (centre < 1).double().mean().item()
    assert share == pytest.approx(0.5, abs=5 * math.sqrt(0.25 / count))
    line = centre[centre < 1].sqrt()  # the centre's weight in each direction, 1 / (1 + 2 w)
    sigma = torch.sqrt(-0.5 / torch.log((1 / line - 1) / 2))  # w = exp(-1 / (2 sigma^2))
    assert sigma.min() >= 0.4 - 1e-4 and sigma.max() <= 0.6 + 1e-4
    assert sigma.mean().item() == pytest.approx(0.5, abs=5 * 0.2 / math.sqrt(12 * len(sigma)))
    assert torch.equal(augment_at(config, point, 6, None, None).noisy, point)


def test_blur_and_noise_together_are_blurred_and_then_noised():
    """The same blur as of ``blur`` alone and the same noise as of ``gaussian`` alone; the other order is another image.
    In sampling only the noise is left."""
    both = AugmentationConfig(kind="gaussian+blur", blur_fraction=1.0, level_min=0.1)
    low_res, index = images(), torch.arange(4) + 50
    alone = {kind: augment_for_training(replace(both, kind=kind), low_res, 16, RNG, index)
             for kind in ("blur", "gaussian")}  # fmt: skip
    got, told = augment_for_training(both, low_res, 16, RNG, index), alone["gaussian"].aug_logsnr
    assert torch.equal(got.aug_logsnr, told)
    eps = RNG.normal(Purpose.AUG_NOISE, index, (2, 8, 8))
    assert torch.equal(got.noisy, add_aug_noise(alone["blur"].noisy, told, eps))
    assert torch.equal(got.up, upsample(got.noisy, 16))
    draw = RNG.uniform(Purpose.BLUR, index, (2,))[:, 1]
    sigma = (both.blur_min + (both.blur_max - both.blur_min) * draw).float()
    assert not torch.allclose(got.noisy, blur(add_aug_noise(low_res, told, eps), sigma), atol=1e-3)
    sampled, clean = augment_at(both, low_res, 16, told, eps), levels_of(0, 0, 0, 0)
    assert torch.equal(sampled.noisy, alone["gaussian"].noisy)
    assert torch.equal(augment_at(both, low_res, 16, clean, eps).noisy, low_res)


def test_blur_and_noise_are_drawn_apart():
    """Whether an image is blurred says nothing of its level: their correlation is 0 to five standard errors."""
    config = AugmentationConfig(kind="gaussian+blur", level_density="logsnr", clean_fraction=0.2)
    point = torch.zeros(4000, 1, 3, 3)
    point[:, :, 1, 1] = 1
    index = torch.arange(4000)
    told = augment_for_training(config, point, 6, RNG, index).aug_logsnr
    blurred = augment_for_training(replace(config, kind="blur"), point, 6, RNG, index).noisy[:, 0, 1, 1] < 1
    both = torch.stack([blurred.double(), told.double()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 5 / math.sqrt(4000)
    assert (told == AUG_LOGSNR_MAX).double().mean().item() == pytest.approx(0.2, abs=5 * math.sqrt(0.16 / 4000))


@pytest.mark.parametrize("density", ["s", "logsnr"])
def test_a_fixed_level_is_exactly_fixed(density):
    """Every image of training meets one level, the same to the last bit as in sampling, and none is left clean."""
    fixed = AugmentationConfig(level_min=0.35, level_max=0.35, clean_fraction=0.0, level_density=density)
    low_res = images(1).expand(5000, 2, 8, 8)
    told = augment_for_training(fixed, low_res, 8, RNG, torch.arange(5000)).aug_logsnr
    assert told.unique().tolist() == levels_of(0.35).tolist()


def test_enlarging_is_bilinear_between_pixel_centres():
    """A straight line stays one inside the outermost centres; beyond them it is held."""
    line = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    for factor in (2, 3, 4):
        up = upsample(line, 4 * factor)
        centres = (torch.arange(4 * factor) + 0.5) / factor - 0.5
        assert up.shape == (1, 1, 4 * factor, 4 * factor)
        torch.testing.assert_close(up[0, 0], centres.clamp(0, 3).expand(4 * factor, -1))
    x = images()
    assert upsample(x, 8) is x


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_low_res_is_the_mean_of_each_block(factor):
    x = images(3, 4 * factor, seed=2)
    got = make_low_res(x, 4, levels=0)
    blocks = x.double().view(3, 2, 4, factor, 4, factor).mean((3, 5))
    torch.testing.assert_close(got.double(), blocks, rtol=0, atol=1e-7)
    assert torch.equal(make_low_res(x, 4), quantise(got))
    assert torch.equal(make_low_res(x, 4 * factor), x)  # ratio 1 of an image that a file can hold


def test_a_crop_of_the_low_res_is_the_low_res_of_the_crop():
    x = images(2, 24, seed=3)
    whole = make_low_res(x, 6)
    assert torch.equal(make_low_res(x[:, :, 8:20, 4:16], 3), whole[:, :, 2:5, 1:4])


WINDOWS = [(0, 255), (0, 65535), (100, 60000), (7, 9)]
windows = pytest.mark.parametrize("window", WINDOWS, ids=str)


@windows
def test_quantising_is_what_saving_does_bitwise(window):
    """Every stored intensity, and any floats: through a file and back is ``quantise``."""
    low, high = window
    codes = np.arange(low, high + 1, dtype=np.uint16 if high > 255 else np.uint8).reshape(1, 1, 1, -1)
    floats, levels = to_float(codes, window), num_levels(window)
    assert torch.equal(quantise(floats, levels), floats)
    assert np.array_equal(to_images(floats, window).numpy(), codes)
    assert floats.min() == -1 and floats.max() == 1
    x = torch.randn(1, 1, 100, 100, generator=torch.Generator().manual_seed(0))  # some beyond [-1, 1]
    assert torch.equal(to_float(to_images(x, window), window), quantise(x, levels))
    assert torch.equal(quantise(quantise(x, levels), levels), quantise(x, levels))


def test_no_levels_means_untouched():
    x = 3 * images()
    assert quantise(x, 0) is x


def array(size: int, window=(0, 255), count: int = 5) -> ImageArray:
    dtype = np.uint8 if window[1] <= 255 else np.uint16
    pixels = np.random.default_rng(0).integers(window[0], window[1] + 1, (count, 2, size, size), dtype=dtype)
    names = tuple(str(i) for i in range(count))
    return ImageArray(pixels, None, (), names, "", window=window, bit_depth=8 * dtype().itemsize)


@windows
@pytest.mark.parametrize("sizes", [(8, 16), (4, 8, 32), (4, 12, 24)], ids=str)
def test_targets_of_a_stage_are_the_clean_low_res_of_the_next_bitwise(sizes, window):
    """In training of both stages, and when the lower one's image is handed over after sampling."""
    data, index = TrainingImages(array(sizes[-1], window), sizes), torch.arange(5)
    levels = num_levels(window)
    for k, (low, size) in enumerate(pairwise(sizes), start=1):
        none = AugmentationConfig(kind="none")
        stage = random_stage(stage_config(size, low, channels=2, augmentation=none), k, levels=levels)
        batch = data.batch(k, Rng(0, k), torch.arange(50))
        order = [int((data.target(k, index) == x).flatten(1).all(1).nonzero()[0]) for x in batch.x0]
        target = data.target(k - 1, torch.tensor(order))
        noised = noise_batch(stage, batch, Rng(0, k))
        assert torch.equal(noised.augmented.noisy, target)
        assert torch.equal(noised.cond.low_res, upsample(target, size))
        handed, _ = stage.condition(quantise(target, levels), None, None, Rng(0, k), torch.arange(50))
        assert torch.equal(handed.low_res, noised.cond.low_res)


def test_crops_get_the_same_low_res_as_whole_images():
    """A cropped SR batch sees the crop of the lower stage's target."""
    data = TrainingImages(array(24), (8, 24))
    whole = data.target(0, torch.arange(5))
    batch = data.batch(1, RNG, torch.arange(20), crop_size=12)
    low = make_low_res(batch.x0, 4)
    for crop in low:
        places = whole.unfold(2, 4, 1).unfold(3, 4, 1)  # all 4x4 crops of all images
        assert (places == crop[None, :, None, None]).flatten(4).all(4).all(1).any()


def test_conditioning_noise_is_drawn_once_per_image():
    """Both halves of a guided denoiser see one image: the noise depends on the seed alone, not on label or batch."""
    stage = random_stage(stage_config(16, 8, channels=2, num_labels=4), 1, num_classes=3)
    low_res, seeds = images(), torch.tensor([11, 12, 13, 14])
    told = stage.aug_logsnr(0.3)
    cond, augmented = stage.condition(low_res, torch.tensor([0, 1, 2, 0]), told, RNG, seeds)
    null, _ = stage.condition(low_res, torch.full((4,), 3), told, RNG, seeds)
    assert torch.equal(null.low_res, cond.low_res)
    assert cond.with_labels(null.labels).low_res is cond.low_res
    alone, _ = stage.condition(low_res[2:3], None, told, RNG, seeds[2:3])
    assert torch.equal(alone.low_res[0], cond.low_res[2])
    assert torch.equal(cond.aug_logsnr, levels_of(0.3).expand(4))
    eps = (augmented.noisy - math.cos(0.15 * math.pi) * low_res) / math.sin(0.15 * math.pi)
    assert (eps[0] - eps[1]).abs().mean() > 0.5  # another image, other noise


@pytest.mark.parametrize("density", ["s", "logsnr"])
@pytest.mark.parametrize("kind", ["none", "gaussian", "blur", "gaussian+blur"])
def test_every_augmentation_trains_and_samples(kind, density):
    """The net is told a level exactly where there is noise, and a gradient comes back."""
    augmentation = AugmentationConfig(kind=kind, level_density=density)
    stage = build_stage(stage_config(16, 8, channels=2, augmentation=augmentation), 1, num_classes=0, seed=0)
    batch = Batch(images(4, 16), None, torch.arange(4))
    assert (noise_batch(stage, batch, RNG).cond.aug_logsnr is None) == (kind in ("none", "blur"))
    stage_loss(stage, batch, RNG).loss.mean().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in stage.net.parameters())
    cascade = random_cascade(stage_config(8, channels=2), stage.config)
    assert cascade.sample(steps=[1, 1]).images[-1].isfinite().all()


@pytest.mark.parametrize("kind", ["none", "blur"])
def test_stages_without_noise_take_the_clean_image_whatever_the_level(kind):
    stage = random_stage(stage_config(16, 8, channels=2, augmentation=AugmentationConfig(kind=kind)), 1)
    assert stage.aug_logsnr(0.7) is None
    cond, _ = stage.condition(images(), None, None, RNG, torch.arange(4))
    assert cond.aug_logsnr is None and torch.equal(cond.low_res, upsample(images(), 16))


@pytest.mark.parametrize("kind", ["none", "blur", "gaussian", "gaussian+blur"])
def test_augmentation_runs_where_the_images_are(kind):
    """Positions stay on the CPU; the meta device refuses to mix, as a GPU does."""
    low_res = torch.zeros(4, 2, 8, 8, device="meta")
    augmented = augment_for_training(AugmentationConfig(kind=kind), low_res, 16, RNG, torch.arange(4))
    assert augmented.up.device.type == "meta" and augmented.up.shape == (4, 2, 16, 16)
