"""The order of images: permutations per epoch, balanced rounds, and a pure function of the position."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from cdm.data.order import Order
from cdm.rng import Rng

RNG = Rng(3)
LABELS = np.array([0] * 5 + [1] * 2 + [4] * 13)


def indices(order: Order, start: int, stop: int, rng: Rng = RNG) -> np.ndarray:
    return order.position_to_index(rng, torch.arange(start, stop)).numpy()


@pytest.mark.parametrize("n", [1, 2, 17, 1000])
def test_each_epoch_is_a_permutation(n):
    order = Order(n)
    epochs = [indices(order, e * n, (e + 1) * n) for e in range(4)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(n))
    if n > 10:
        assert all((a != b).any() for a, b in pairwise(epochs)), "each in another order"


@pytest.mark.parametrize("balanced", [False, True])
def test_any_batching_gives_the_same_stream(balanced):
    order = Order(20, LABELS, balanced=balanced)
    whole = indices(order, 0, 200)
    fresh = Order(20, LABELS, balanced=balanced)
    parts = [indices(fresh, i, min(i + 7, 200)) for i in range(0, 200, 7)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    shuffled = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(fresh.position_to_index(RNG, shuffled).numpy(), whole[shuffled.numpy()])


def test_seeds_stages_and_attempts_differ():
    order = Order(50)
    streams = [indices(order, 0, 50, rng).tolist() for rng in (RNG, Rng(4), RNG.at_stage(1), Rng(3, attempt=1))]
    assert len({tuple(stream) for stream in streams}) == 4


def test_balanced_has_every_class_once_in_each_round():
    labels = LABELS[indices(Order(20, LABELS, balanced=True), 0, 300)].reshape(100, 3)
    assert {tuple(sorted(turn)) for turn in labels.tolist()} == {(0, 1, 4)}
    assert len({tuple(turn) for turn in labels.tolist()}) == 6, "all orders of three classes come"


def test_balanced_uses_all_images_of_a_class_equally():
    stream = indices(Order(20, LABELS, balanced=True), 0, 3 * 5 * 2 * 13)  # whole epochs of each class
    counts = np.bincount(stream, minlength=20)
    for label in (0, 1, 4):
        rows = LABELS == label
        assert (counts[rows] == 130 // rows.sum()).all()


def test_classes_go_through_their_images_in_unrelated_orders():
    labels = np.repeat([0, 1], 200)
    stream = indices(Order(400, labels, balanced=True), 0, 400)
    first, second = stream[stream < 200], stream[stream >= 200] - 200
    assert sorted(first) == sorted(second) == list(range(200))
    assert np.mean(first == second) < 0.1


def test_far_positions():
    far = 10**12
    assert sorted(indices(Order(10), far, far + 10)) == list(range(10))


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    indices(Order(20, LABELS, balanced=True), 0, 50)
    assert torch.equal(torch.get_rng_state(), state)
