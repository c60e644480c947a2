"""Images as files: nothing is lost, the making is told, and the same gives the same bytes."""

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from cdm.data.decode import decode
from cdm.data.save import read_png_info, save_png
from cdm.errors import UserError

INFO = {"class": "snow ☃ <b>\"'\n", "seed": 0, "index": 7, "settings": {"steps": [32, 16], "aug": 0.2}, "weights": "a1"}


def random_image(channels: int, dtype: torch.dtype) -> torch.Tensor:
    high = 256 if dtype == torch.uint8 else 65536
    return torch.randint(0, high, (channels, 6, 5), generator=torch.Generator().manual_seed(channels)).to(dtype)


@pytest.mark.parametrize(
    ("channels", "dtype"), [(1, torch.uint8), (3, torch.uint8), (4, torch.uint8), (1, torch.uint16)]
)
def test_png_round_trip(tmp_path, channels, dtype):
    image = random_image(channels, dtype)
    path = save_png(tmp_path / "a.png", image, INFO)
    pixels = np.asarray(PILImage.open(path))
    assert pixels.dtype == image.numpy().dtype
    np.testing.assert_array_equal(pixels.reshape(6, 5, channels).transpose(2, 0, 1), image.numpy())
    assert read_png_info(path) == INFO


@pytest.mark.parametrize(("channels", "dtype"), [(2, torch.uint8), (7, torch.uint8), (3, torch.uint16)])
def test_what_png_cannot_hold_becomes_an_array_with_json_beside_it(tmp_path, channels, dtype):
    image = random_image(channels, dtype)
    path = save_png(tmp_path / "a.png", image, INFO)
    assert path == tmp_path / "a.npy"
    assert {p.name for p in tmp_path.iterdir()} == {"a.npy", "a.json"}
    np.testing.assert_array_equal(decode(path.read_bytes(), channels), image.numpy().transpose(1, 2, 0))
    assert read_png_info(path) == INFO


def test_same_settings_give_the_same_bytes(tmp_path):
    image = random_image(3, torch.uint8)
    first = save_png(tmp_path / "a.png", image, INFO).read_bytes()
    turned = dict(reversed(INFO.items()))
    assert save_png(tmp_path / "b.png", image, turned).read_bytes() == first
    assert save_png(tmp_path / "c.png", image, INFO | {"seed": 1}).read_bytes() != first


def test_plain_png_tells_nothing(tmp_path):
    path = tmp_path / "plain.png"
    PILImage.new("RGB", (4, 4)).save(path)
    with pytest.raises(UserError, match=r"plain\.png does not tell how it was made"):
        read_png_info(path)


@pytest.mark.parametrize("content", [b"", b"not a picture", "cut"])
def test_broken_file_is_told_in_words(tmp_path, content):
    path = tmp_path / "a.png"
    whole = save_png(path, random_image(3, torch.uint8), INFO).read_bytes()
    path.write_bytes(whole[:60] if content == "cut" else content)
    with pytest.raises(UserError, match="does not tell how it was made"):
        read_png_info(path)


def test_missing_file_is_told_in_words(tmp_path):
    with pytest.raises(UserError, match="is not there"):
        read_png_info(tmp_path / "none.png")


def test_array_without_its_json_is_told_in_words(tmp_path):
    path = save_png(tmp_path / "a.png", random_image(2, torch.uint8), INFO)
    (tmp_path / "a.json").unlink()
    with pytest.raises(UserError, match="is not there"):
        read_png_info(path)
