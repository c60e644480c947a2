"""The next batch is gathered meanwhile; what comes out is what would have come without."""

import threading
import time

import pytest
import torch
from tests.data.test_batches import random_array

from cdm.data.ahead import Ahead
from cdm.data.batches import TrainingImages
from cdm.rng import Rng
from cdm.types import Batch

SIZES = (8, 16, 32)


def test_batches_are_the_same_in_every_bit_also_after_a_roll_back() -> None:
    array = random_array(size=32)
    plain, other = (TrainingImages(array, SIZES, flip=True) for _ in "ab")
    threads = set[str]()

    def gather(rng: Rng, positions: torch.Tensor):
        threads.add(threading.current_thread().name)
        return other.gather(2, rng, positions, crop_size=16)

    ahead = Ahead(gather, other.place)
    asked = [(0, start) for start in range(0, 96, 12)] + [(1, 24), (1, 36), (0, 36), (0, 0)]
    for attempt, start in asked:
        rng, positions = Rng(5, 2, attempt), torch.arange(start, start + 12)
        expected, got = plain.batch(2, rng, positions, crop_size=16), ahead(rng, positions)
        assert torch.equal(got.x0, expected.x0) and torch.equal(got.index, expected.index)
        assert (got.labels is None) == (expected.labels is None)
        assert got.labels is None or torch.equal(got.labels, expected.labels)
    assert len(threads) == 2


def slow(rng: Rng, positions: torch.Tensor) -> torch.Tensor:
    time.sleep(0.05)
    return positions


def placed(positions: torch.Tensor) -> Batch:
    return Batch(positions[:, None, None, None].float(), None, positions)


def test_gathering_takes_no_time_of_its_own() -> None:
    """0.05 s each, while updates take 0.1 s."""
    ahead, waited = Ahead(slow, placed), 0.0
    for k in range(6):
        began = time.perf_counter()
        ahead(Rng(0), torch.arange(4 * k, 4 * k + 4))
        waited += (time.perf_counter() - began) * (k > 0)
        time.sleep(0.1)
    assert waited < 0.05


def test_an_error_comes_with_its_own_batch() -> None:
    def fails(rng: Rng, positions: torch.Tensor) -> torch.Tensor:
        if int(positions[0]) == 4:
            raise ValueError("the fifth image")
        return positions

    ahead = Ahead(fails, placed)
    ahead(Rng(0), torch.arange(0, 4))
    with pytest.raises(ValueError, match="the fifth image"):
        ahead(Rng(0), torch.arange(4, 8))
    ahead(Rng(0), torch.arange(0, 4))
    assert int(ahead(Rng(0), torch.arange(8, 12)).index[0]) == 8
