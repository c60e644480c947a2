"""What CI asks of a short demo run: pictures pass, noise does not."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PATH = Path(__file__).parents[1] / ".ci" / "check_demo.py"


@pytest.fixture(scope="module")
def check_demo():
    spec = importlib.util.spec_from_file_location("check_demo", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save(folder, tiles):
    for k, tile in enumerate(tiles):
        Image.fromarray(tile.clip(0, 255).astype(np.uint8)).save(folder / f"{k:03}.png")


def test_letters_pass_and_so_do_noisy_ones(check_demo, tmp_path):
    noise = np.random.default_rng(0).normal(size=(260, 32, 32))
    save(tmp_path, [tile + 15 * eps for tile, eps in zip(check_demo.real_letters(), noise, strict=True)])
    check_demo.check_samples(tmp_path)


@pytest.mark.parametrize("letters", [0.0, 0.1])
def test_noise_does_not_pass_even_with_a_trace_of_letters(check_demo, tmp_path, letters):
    noise = np.random.default_rng(0).normal(128, 40, size=(260, 32, 32))
    save(tmp_path, [letters * tile + eps for tile, eps in zip(check_demo.real_letters(), noise, strict=True)])
    with pytest.raises(SystemExit, match="look like noise"):
        check_demo.check_samples(tmp_path)
