"""The variational bound of exact denoisers, against mutual information and entropy in closed form.

With the exact reverse process the terms telescope: those of entries 1 to T - 1 sum to I(x0; x_0) - I(x0; x_T), the
mutual informations of the image with its noisy versions, at every T.
"""

from __future__ import annotations

import math

import pytest
import torch
from tests.analytic.exact import GaussianDenoiser
from tests.fakes import random_stage, stage_config

from cdm.conditioning import quantise
from cdm.config import ScheduleConfig
from cdm.losses import prior_bits_per_dim, vlb_term
from cdm.noise.process import add_noise
from cdm.noise.schedule import cosine_table, linear_table
from cdm.pipeline.bits import stage_bound
from cdm.types import Batch, Cond

C = 0.3


def with_exact_variances(table: torch.Tensor) -> GaussianDenoiser:
    return GaussianDenoiser((0.0, C), grid=torch.cat([table.flip(0), torch.tensor([math.inf])]), table=table)


def information(logsnr: float) -> float:
    """I(x0; x_t) in bits of x0 ~ N(0, C^2)."""
    return 0.5 * math.log2(1 + C**2 * math.exp(logsnr))


@pytest.mark.parametrize("table", [cosine_table(4), cosine_table(100), linear_table(150)], ids=["c4", "c100", "l150"])
def test_terms_sum_to_the_information_at_every_number_of_steps(table):
    """They are quadratic in image and noise, so their mean over (+-C, +-1) is the exact expectation."""
    denoiser = with_exact_variances(table)
    x0 = torch.tensor([C, C, -C, -C], dtype=torch.float64).view(1, 1, 2, 2)
    eps = torch.tensor([1, -1, 1, -1], dtype=torch.float64).view(1, 1, 2, 2)
    total = 0.0
    for logsnr in table[1:]:
        level = logsnr[None]
        x_t = add_noise(x0, eps, level)
        total += vlb_term(denoiser, denoiser(x_t, level, Cond()), x0, x_t, level.float()).item()
    assert total == pytest.approx(information(table[0].item()) - information(table[-1].item()), rel=1e-5)


def test_the_prior_term_is_the_rest():
    """Mean KL to N(0, 1) for x0 ~ N(0, C^2), again exactly by (+-C)."""
    denoiser = with_exact_variances(torch.tensor([4.0, 1.0, -2.0], dtype=torch.float64))
    alpha2, sigma2 = 1 / (1 + math.exp(2)), 1 / (1 + math.exp(-2))
    x0 = torch.tensor([C, -C], dtype=torch.float64).view(1, 1, 1, 2)
    expected = 0.5 * (sigma2 + alpha2 * C**2 - 1 - math.log(sigma2)) / math.log(2)
    assert prior_bits_per_dim(denoiser, x0).item() == pytest.approx(expected, rel=1e-6)


def test_bits_per_dimension_of_gaussian_pixels_is_their_entropy():
    """N(0, C^2) rounded to 256 values has h - log2(bin) bits; no code is shorter, and the bound comes within 3 %.

    The entropy is taken over these very pixels, so that their scatter is in both.
    """
    config = stage_config(64, schedule=ScheduleConfig(kind="linear_table", num_timesteps=250))
    stage = random_stage(config)
    stage.denoiser = with_exact_variances(stage.denoiser.table)
    x0 = quantise(C * torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)))
    density = 0.5 * math.log2(2 * math.pi * C**2) + x0.square().mean().item() / (2 * C**2) / math.log(2)
    entropy = density - math.log2(2 / 255)  # -log2 p(x0) - log2(bin), on average over these very pixels
    bound = stage_bound(stage, Batch(x0, None, torch.tensor([3])), torch.device("cpu")).item()
    assert entropy < bound < 1.03 * entropy


def test_the_continuous_bound_of_gaussian_pixels_is_their_entropy():
    """An exact denoiser loses nothing in continuous time: bound and entropy agree, up to the noise drawn."""
    schedule = ScheduleConfig(kind="cosine", logsnr_min=-9.0, logsnr_max=7.0)
    stage = random_stage(stage_config(64, schedule=schedule))
    stage.denoiser = GaussianDenoiser((0.0, C), logsnr_range=(-9.0, 7.0))
    x0 = quantise(C * torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)))
    density = 0.5 * math.log2(2 * math.pi * C**2) + x0.square().mean().item() / (2 * C**2) / math.log(2)
    entropy = density - math.log2(2 / 255)
    bounds = [stage_bound(stage, Batch(x0, None, torch.tensor([k])), torch.device("cpu")).item() for k in range(6)]
    assert sum(bounds) / 6 == pytest.approx(entropy, rel=0.003)
