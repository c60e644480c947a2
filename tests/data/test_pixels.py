"""Stored intensities and floats: exact round trips, the same grid as the quantisation of low-res images."""

import numpy as np
import pytest
import torch

from cdm.conditioning import quantise
from cdm.data.pixels import FULL_8, num_levels, to_float, to_images

WINDOWS = [FULL_8, (0, 65535), (100, 4195), (0, 1), (60000, 65535)]


def every(window) -> np.ndarray:
    return np.arange(window[0], window[1] + 1, dtype=np.uint8 if window[1] <= 255 else np.uint16).reshape(1, 1, 1, -1)


@pytest.mark.parametrize("window", WINDOWS)
def test_round_trip_of_every_intensity(window):
    images = every(window)
    x = to_float(images, window)
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1, 1)
    back = to_images(x, window).numpy()
    assert back.dtype == images.dtype
    np.testing.assert_array_equal(back, images)


@pytest.mark.parametrize("window", WINDOWS)
def test_stored_images_lie_bitwise_on_the_grid_of_quantise(window):
    x = to_float(every(window), window)
    assert torch.equal(quantise(x, num_levels(window)), x)


def test_eight_bits_are_x_over_127_5_minus_1():
    images = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_float(images), torch.from_numpy(images).float() / 127.5 - 1)
    assert torch.equal(to_float(torch.from_numpy(images)), to_float(images))


def test_outside_the_window_and_outside_one_is_clipped():
    images = np.array([[[[0, 100, 200, 65535]]]], dtype=np.uint16)
    assert to_float(images, (100, 200)).flatten().tolist() == [-1, -1, 1, 1]
    x = torch.tensor([[[[-3.0, -1.0, 0.0, 1.0, 7.0]]]])
    assert to_images(x).flatten().tolist() == [0, 0, 128, 255, 255]
    assert to_images(x, (100, 300)).flatten().tolist() == [100, 100, 200, 300, 300]
