"""Batches of each stage: exact low-res chain, crops, flips, and speed."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cdm.conditioning import make_low_res
from cdm.data.arrays import load_images
from cdm.data.batches import TrainingImages
from cdm.data.image_array import ImageArray
from cdm.data.pixels import num_levels
from cdm.data.source import open_source
from cdm.errors import UserError
from cdm.rng import Rng

DATA = Path(__file__).parents[2].parent / "shared" / "data"
SIZES = (8, 16, 64)
POSITIONS = torch.arange(1000, 1064)


def random_array(n: int = 50, dtype=np.uint8, window=(0, 255), channels: int = 3, size: int = 64) -> ImageArray:
    gen = np.random.default_rng(1)
    images = gen.integers(window[0], window[1], (n, channels, size, size), endpoint=True).astype(dtype)
    labels = np.arange(n) % 4
    names = tuple(str(i) for i in range(n))
    return ImageArray(images, labels, ("a", "b", "c", "d"), names, "f" * 64, window, 8 * images.itemsize)


ARRAYS = {
    "8 bits": random_array(),
    "16 bits": random_array(dtype=np.uint16, window=(500, 40000), channels=1),
    "narrow window": random_array(dtype=np.uint16, window=(100, 130), channels=1),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", [0, 16, 32])
@pytest.mark.parametrize("stage", [1, 2])
def test_targets_are_bitwise_the_next_stage_s_clean_low_res(name, flip, crop, stage):
    """Flips and crops first, then area-down and quantisation: the low-res of what an SR stage sees must be, to the
    last bit, the same flip and crop of a target of the stage below."""
    array = ARRAYS[name]
    images = TrainingImages(array, SIZES, flip=flip)
    rng = Rng(0, stage=stage)
    high = images.batch(stage, rng, POSITIONS, crop_size=crop)
    factor = SIZES[stage] // SIZES[stage - 1]
    side = high.x0.shape[-1] // factor
    low_res = make_low_res(high.x0, side, num_levels(array.window))
    below = images.target(stage - 1, images._order.position_to_index(rng, POSITIONS))
    for mine, whole in zip(low_res, below, strict=True):
        turned = [whole, whole.flip(-1)] if flip else [whole]
        windows = [w.unfold(1, side, 1).unfold(2, side, 1) for w in turned]
        assert any((w == mine[:, None, None]).all(-1).all(-1).all(0).any() for w in windows)


@pytest.mark.parametrize("name", ARRAYS)
def test_uncropped_targets_in_order(name):
    array = ARRAYS[name]
    images = TrainingImages(array, SIZES)
    everything = torch.arange(len(array))
    x = images.target(2, everything)
    assert (x.dtype, x.min(), x.max()) == (torch.float32, -1, 1)
    levels = num_levels(array.window)
    assert torch.equal(images.target(1, everything), make_low_res(x, 16, levels))
    assert torch.equal(images.target(0, everything), make_low_res(make_low_res(x, 16, levels), 8, levels))


def test_batch_is_a_pure_function_of_positions():
    images = TrainingImages(random_array(), SIZES, flip=True)
    rng = Rng(0, stage=2)
    whole = images.batch(2, rng, POSITIONS, crop_size=32)
    fresh = TrainingImages(random_array(), SIZES, flip=True)
    parts = [fresh.batch(2, rng, part, crop_size=32) for part in POSITIONS.split(7)]
    assert torch.equal(torch.cat([part.x0 for part in parts]), whole.x0)
    assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
    assert torch.equal(whole.index, POSITIONS)


def test_labels_belong_to_their_images():
    array = random_array()
    array.images[:] = array.labels[:, None, None, None] * 50
    batch = TrainingImages(array, SIZES, flip=True).batch(2, Rng(0), POSITIONS, crop_size=16)
    assert torch.equal(batch.labels, (((batch.x0[:, 0, 0, 0] + 1) * 127.5).round() / 50).long())


def test_half_of_the_images_are_mirrored_only_if_asked():
    array = random_array(n=1)
    many = torch.arange(2000)
    plain = TrainingImages(array, SIZES).batch(0, Rng(0), many).x0
    assert torch.equal(plain, plain[:1].expand_as(plain))
    mirrored = TrainingImages(array, SIZES, flip=True).batch(0, Rng(0), many).x0
    same = (mirrored == plain).flatten(1).all(1)
    assert torch.equal(mirrored[~same], plain[~same].flip(-1))
    assert abs(int(same.sum()) - 1000) < 5 * np.sqrt(500)


def test_crops_reach_every_place_equally_often():
    gradient = np.arange(64, dtype=np.uint8).reshape(1, 1, 64, 1) + 64 * np.zeros((1, 1, 1, 64), np.uint8)
    across = np.concatenate([gradient, gradient.swapaxes(2, 3), gradient], axis=1)
    array = ImageArray(np.ascontiguousarray(across), None, (), ("a",), "f")
    x0 = TrainingImages(array, (16, 64)).batch(1, Rng(0), torch.arange(5000), crop_size=48).x0
    corner = ((x0[:, :2, 0, 0] + 1) * 127.5).round().long()
    assert set(corner.flatten().tolist()) == {0, 4, 8, 12, 16}, "multiples of the factor"
    counts = torch.bincount(corner[:, 0] // 4 * 5 + corner[:, 1] // 4)
    assert len(counts) == 25 and ((counts - 200).abs() < 5 * np.sqrt(200)).all()


def test_crop_that_does_not_fit_the_factor():
    with pytest.raises(UserError, match="multiple of the factor 4; got 30: use 28"):
        TrainingImages(random_array(), SIZES).batch(2, Rng(0), POSITIONS, crop_size=30)


def test_rows_select_and_share():
    array = random_array()
    rows = np.array([4, 9, 30])
    images = TrainingImages(array, SIZES)
    part = TrainingImages(array, SIZES, rows=rows, pyramid=images.pyramid)
    assert len(part) == 3
    assert torch.equal(part.target(0, torch.arange(3)), images.target(0, torch.from_numpy(rows)))
    drawn = part.batch(2, Rng(0), torch.arange(3))
    assert sorted(drawn.labels.tolist()) == sorted((rows % 4).tolist())
    assert {x.sum().item() for x in drawn.x0} == {x.sum().item() for x in images.target(2, torch.from_numpy(rows))}


def test_balanced_needs_classes():
    array = random_array()
    array = array.with_classes(())
    with pytest.raises(UserError, match="balanced sampling needs classes"):
        TrainingImages(array, SIZES, balanced=True)


def test_balanced_batches_have_every_class_equally_often():
    array = random_array()
    uneven = TrainingImages(array, SIZES, rows=np.array([0, 1, 2, 3, 4, 8, 12, 16, 20]), balanced=True)
    labels = uneven.batch(0, Rng(0), torch.arange(400)).labels
    assert torch.bincount(labels).tolist() == [100] * 4


@pytest.mark.skipif(not DATA.is_dir(), reason="the real image sets are not beside this checkout")
def test_mapped_batches_equal_those_in_memory_on_real_images(tmp_path):
    source = open_source(DATA / "emoji128-val.zip")
    sizes = (32, 64, 128)
    in_memory = TrainingImages(load_images(source, 128), sizes, flip=True)
    for _ in range(2):  # the second time all of it comes from the cache
        array = load_images(source, 128, cache_dir=tmp_path, memory_limit=0)
        mapped = TrainingImages(array, sizes, flip=True)
        for stage in range(3):
            a, b = (t.batch(stage, Rng(0, stage), POSITIONS) for t in (in_memory, mapped))
            assert torch.equal(a.x0, b.x0) and torch.equal(a.labels, b.labels)
            assert torch.equal(in_memory.target(stage, POSITIONS % 123), mapped.target(stage, POSITIONS % 123))
    assert len(list(tmp_path.glob("*.pixels"))) == 3


def test_a_batch_takes_far_less_time_than_a_training_step():
    images = TrainingImages(random_array(n=2000), SIZES, flip=True)
    times = []
    for i in range(20):
        start = time.perf_counter()
        images.batch(2, Rng(0), torch.arange(64 * i, 64 * i + 64))
        times.append(time.perf_counter() - start)
    assert min(times) < 0.005
