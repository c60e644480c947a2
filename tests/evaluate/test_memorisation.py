"""Copies are found, new images are not, the rates are what chance says, whatever the tiles."""

import numpy as np
import pytest
import torch
from scipy.stats import betabinom

from cdm.errors import UserError
from cdm.evaluate import memorisation as module
from cdm.evaluate.memorisation import Known, copy_rate, memorisation, nearest


def drawn(n: int, seed: int) -> Known:
    """Random pictures and, as features, their pixels."""
    images = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, 3, 4, 4), dtype=np.uint8))
    return Known(images, images.flatten(1).float().numpy())


def joined(*parts: Known) -> Known:
    images = torch.cat([torch.as_tensor(part.images) for part in parts])
    return Known(images, np.concatenate([part.features for part in parts]))


def rows(known: Known, slices: slice) -> Known:
    return Known(known.images[slices], known.features[slices])


def test_nearest_is_the_nearest_of_all_whatever_the_tiles(monkeypatch):
    samples, train = drawn(50, 1), drawn(333, 0)
    every = np.linalg.norm(samples.features[:, None].astype(float) - train.features[None], axis=2)
    for tile in (2048, 7):
        monkeypatch.setattr(module, "TILE", tile)
        found = nearest(samples, train)
        assert (found.index == every.argmin(axis=1)).all()
        np.testing.assert_allclose(found.distance, every.min(axis=1), rtol=1e-12)
        np.testing.assert_allclose(found.pixels, every.min(axis=1) / np.sqrt(48), rtol=1e-12)


def test_copies_are_found_and_shown():
    train, val = drawn(400, 0), drawn(300, 2)
    found = memorisation(joined(drawn(150, 1), rows(train, slice(0, 50))), val, train)
    for rate in (found.by_features, found.by_pixels):
        assert rate.rate.low > 0.15 and rate.rate.value >= 0.25  # type: ignore[operator]
        assert rate.expected == pytest.approx(3 / 301) and rate.chance < 1e-9
    assert [pair.train for pair in found.pairs] == list(range(16))
    assert all(pair.sample == pair.train + 150 and pair.distance == pair.pixels == 0 for pair in found.pairs)
    assert (found.sample_count, found.val_count, found.train_count, found.val_in_train) == (200, 300, 400, 0)


def test_new_images_are_not_taken_for_copies():
    chances = [
        memorisation(drawn(200, 10 + i), drawn(300, 50 + i), drawn(300, 0)).by_features.chance for i in range(20)
    ]
    assert min(chances) > 1e-3


def test_one_training_image_is_shown_once():
    train = drawn(30, 0)
    found = memorisation(joined(*(rows(train, slice(5, 6)) for _ in range(10)), drawn(5, 1)), drawn(30, 2), train)
    assert len({pair.train for pair in found.pairs}) == len(found.pairs) and found.pairs[0].train == 5


def test_training_images_given_as_validation_are_counted():
    train = drawn(60, 0)
    found = memorisation(drawn(40, 1), joined(rows(train, slice(0, 20)), drawn(20, 2)), train)
    assert found.val_in_train == found.by_features.left_out == 20 and found.by_features.expected == 1 / 21
    assert found.by_features.chance > 0.01


def test_leaked_validation_images_do_not_hide_copies():
    """With the threshold at the distance of a leaked image, 0, no sample would ever be nearer."""
    train = drawn(60, 0)
    found = memorisation(rows(train, slice(0, 50)), joined(rows(train, slice(0, 20)), drawn(20, 2)), train)
    assert found.by_features.rate.value == found.by_pixels.rate.value == 1 and found.samples_in_train == 50
    assert found.by_features.chance < 1e-6
    with pytest.raises(UserError, match=r"55 of 60 validation .* 50 of 50 samples are training images"):
        memorisation(rows(train, slice(0, 50)), joined(rows(train, slice(0, 55)), drawn(5, 2)), train)


def test_copies_up_to_rounding_always_count():
    """Samples one grey level off in a few pixels, whatever their features say."""
    train = drawn(60, 0)
    images = torch.as_tensor(train.images[:30]).clone()
    images[:, 0, 0, 0] ^= 1
    assert memorisation(Known(images, images.flatten(1).float().numpy()), drawn(40, 2), train).samples_in_train == 30
    rate = copy_rate(np.full(30, 9.0), np.linspace(1, 2, 40), np.ones(30, bool), np.zeros(40, bool))
    assert rate.rate.value == 1 and rate.left_out == 0


def test_chance_is_the_beta_binomial_tail():
    rng = np.random.default_rng(0)
    for n, m in ((50, 99), (400, 1000), (7, 20)):
        rate = copy_rate(rng.normal(size=n) + 9, rng.normal(size=m) + 10, np.zeros(n, bool), np.zeros(m, bool))
        k = max(1, round((m + 1) / 100))
        hits = round(rate.rate.value * n)
        assert rate.chance == pytest.approx(betabinom(n, k, m + 1 - k).sf(hits - 1), abs=1e-9)


def test_what_cannot_be_compared_is_refused():
    train = drawn(10, 0)
    with pytest.raises(UserError, match="no validation images"):
        memorisation(drawn(5, 1), rows(train, slice(0, 0)), train)
    other = Known(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), np.zeros((3, 48), np.float32))
    with pytest.raises(UserError, match=r"generated images of shape \(1, 4, 4\)"):
        memorisation(other, drawn(5, 2), train)
