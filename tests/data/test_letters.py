"""The built-in letters: a pure function of seed and index, readable, all classes, faces, colours and poses."""

import time
from functools import lru_cache

import numpy as np
import pytest
from matplotlib import font_manager

from cdm.data.arrays import load_images
from cdm.data.letters import CLASS_NAMES, FACES, draw, letters_array
from cdm.data.source import open_source
from cdm.errors import UserError

LUMA = np.array([0.299, 0.587, 0.114]).reshape(3, 1, 1)


@lru_cache(maxsize=1)
def some() -> np.ndarray:
    return letters_array(26 * 40, 32).images


def test_any_subset_draws_the_same_letters():
    picked = np.array([700, 3, 51])
    np.testing.assert_array_equal(draw(picked, 32), some()[picked])


def test_labels_and_names():
    array = letters_array(60, 16, seed=5)
    assert array.class_names == CLASS_NAMES
    assert array.labels.tolist() == [i % 26 for i in range(60)]
    assert array.images.shape == (60, 3, 16, 16) and array.images.dtype == np.uint8
    assert all(name.startswith(CLASS_NAMES[label]) for name, label in zip(array.names, array.labels, strict=True))


def test_seeds_differ():
    assert (letters_array(26, 32, seed=1).images != letters_array(26, 32, seed=0).images).mean() > 0.9
    assert letters_array(26, 32, seed=1).fingerprint != letters_array(26, 32, seed=0).fingerprint


def test_a_letter_is_the_same_at_every_size():
    small, large = draw(np.arange(52), 16).astype(float), draw(np.arange(52), 64).astype(float)
    shrunk = large.reshape(52, 3, 16, 4, 16, 4).mean(axis=(3, 5))
    assert np.abs(small - shrunk).mean() < 4
    assert np.abs(small - shrunk).mean() < 0.1 * np.abs(small - np.roll(shrunk, 26, axis=0)).mean()


def test_no_letter_is_cut():
    images = draw(np.arange(26 * 8), 128)
    border = np.concatenate([images[:, :, 0], images[:, :, -1], images[..., 0], images[..., -1]], axis=2)
    assert (border == border[:, :, :1]).all(), "the frame is ground all round"


def test_every_letter_stands_out():
    luma = (some() * LUMA).sum(axis=1) / 255
    contrast = np.abs(luma - luma[:, :1, :1]).max(axis=(1, 2))
    assert contrast.min() > 0.2 and np.median(contrast) > 0.4, "thin strokes may cover no pixel wholly"


def test_one_channel_is_the_luma_of_three():
    grey, colour = draw(np.arange(26), 32, channels=1), draw(np.arange(26), 32)
    assert np.abs(grey[:, 0] - (colour * LUMA).sum(axis=1)).max() <= 1
    with pytest.raises(UserError, match="1 or 3 channels; got --channels 5"):
        draw(np.arange(26), 32, channels=5)


def test_faces_are_the_text_faces_that_matplotlib_ships():
    from matplotlib import get_data_path

    files = font_manager.findSystemFonts([f"{get_data_path()}/fonts/ttf"])
    shipped = {name.rsplit("/", 1)[1].removesuffix(".ttf") for name in files}
    assert len(FACES) == len(set(FACES)) == 22
    assert set(FACES) <= shipped
    symbols = {"cmex10", "cmsy10", "DejaVuSansDisplay", "DejaVuSerifDisplay", "LastResortHE-Regular"}
    rest = {name for name in shipped - set(FACES) - symbols if not name.startswith(("STIXNonUni", "STIXSiz"))}
    assert not rest, "every other face has the 26 letters as text"


def test_a_template_per_letter_tells_most_letters_apart():
    """Nearest class mean of the covered shape, poses and faces unknown: far above the 1 / 26 of chance."""

    def shapes(seed: int) -> np.ndarray:
        luma = (letters_array(26 * 40, 16, seed).images * LUMA).sum(axis=1)
        shape = np.abs(luma - luma[:, :1, :1]).reshape(-1, 256)
        return shape / np.linalg.norm(shape, axis=1, keepdims=True)

    labels = np.arange(26 * 40) % 26
    train, test = shapes(1), shapes(2)
    means = np.stack([train[labels == c].mean(axis=0) for c in range(26)])
    nearest = np.argmin(((test[:, None] - means) ** 2).sum(axis=2), axis=1)
    assert (nearest == labels).mean() > 0.2


def test_loader_draws_the_default_letters_at_the_size_asked_for():
    source = open_source("builtin:letters")
    start = time.process_time()
    array = load_images(source, 32)
    assert time.process_time() - start < 10
    assert array.images.shape == (10400, 3, 32, 32)
    assert array.names == tuple(e.path for e in source.entries)
    np.testing.assert_array_equal(array.images[2 * 400 + 3], draw(np.array([3 * 26 + 2]), 32)[0])
