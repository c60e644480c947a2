"""The tables of docs/conditioning-augmentation.md, worked out anew: our units, and those of other code."""

import math
import re
from pathlib import Path

import pytest
import torch

from cdm.config import AugmentationConfig
from cdm.noise.schedule import aug_level_to_logsnr, cosine_table

PAGE = Path(__file__).parents[2] / "docs" / "conditioning-augmentation.md"


def rows(pattern: str) -> list[list[str]]:
    """Cells of the table rows whose first cell matches."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if re.fullmatch(pattern, row[0])]


def level_of(logsnr: float) -> float:
    """s with tan(pi s / 2) = sigma / alpha."""
    return 2 / math.pi * math.atan(math.exp(-logsnr / 2))


def test_our_own_units() -> None:
    found = rows(r"[01](\.\d+)?")
    assert len(found) == 7
    for level, ratio, logsnr, _ in found:
        s = float(level)
        told = float(aug_level_to_logsnr(AugmentationConfig(), torch.tensor([s], dtype=torch.float64))[0])
        assert told == pytest.approx(float(logsnr.replace("−", "-")), abs=0.006)
        if ratio not in ("0", "–"):
            assert math.tan(math.pi * s / 2) == pytest.approx(float(ratio), abs=6e-4)


def test_units_of_other_code() -> None:
    """Noise on an image enlarged by f is averaged over f x f pixels."""
    found = rows(r"(paper, step|imagen-pytorch, 0|DeepFloyd IF, 0).*")
    assert len(found) == 9
    for name, ratio, enlarged, logsnr, level in found:
        value = float(re.findall(r"[\d.]+", name)[0])
        if name.startswith("paper"):
            there = float(cosine_table(4000)[int(value) - 1])
        elif name.startswith("imagen"):
            there = -math.log(math.expm1(1e-4 + 10 * value**2))
        else:
            there = float(cosine_table(1000)[int(1000 * value)])
        assert math.exp(-there / 2) == pytest.approx(float(ratio), abs=6e-4), name
        low = there + (2 * math.log(4) if enlarged == "4 times" else 0.0)
        assert low == pytest.approx(float(logsnr), abs=0.006) and level_of(low) == pytest.approx(float(level), abs=6e-4)


def test_noise_on_an_image_of_repeated_pixels_averages_out() -> None:
    """The rule behind the conversion: as much is known of the low-res image at log-SNR + 2 ln f."""
    generator = torch.Generator().manual_seed(0)
    there, factor, size = 0.7, 4, 64
    alpha, sigma = (math.sqrt(1 / (1 + math.exp(-sign * there))) for sign in (1, -1))
    low = torch.randn(8, 1, size, size, generator=generator, dtype=torch.float64)
    large = low.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    noisy = alpha * large + sigma * torch.randn(large.shape, generator=generator, dtype=torch.float64)
    left = torch.nn.functional.avg_pool2d(noisy, factor) / alpha - low  # all that it tells of ``low``, and its noise
    assert float(left.var()) == pytest.approx(math.exp(-(there + 2 * math.log(factor))), rel=0.02)
