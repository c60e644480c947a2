"""Densities are what is drawn; weights give one loss, whatever the target and the density."""

import numpy as np
import pytest
import torch

from cdm.config import ConfigError, DensityConfig, LossConfig, ScheduleConfig
from cdm.noise.process import add_noise, target
from cdm.noise.schedule import make_schedule
from cdm.noise.weighting import density, loss_weight, sample_logsnr

KINDS = ["eps", "x0", "v", "edm"]
DENSITIES = [DensityConfig(kind=kind) for kind in ("schedule", "logsnr", "lognormal")]
SCHEDULE = make_schedule(ScheduleConfig(shift=-1.0))
TABLE = make_schedule(ScheduleConfig(kind="cosine_table"))
UNIFORM = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000


def name(config):
    return config.kind


@pytest.mark.parametrize("config", DENSITIES, ids=name)
def test_density_is_that_of_the_draws(config):
    """Integrated up to a drawn level it gives back the uniform number (from above, for "schedule": t falls)."""
    logsnr = torch.linspace(SCHEDULE.logsnr_min, SCHEDULE.logsnr_max, 20001, dtype=torch.float64)
    cumulative = torch.cumulative_trapezoid(density(config, SCHEDULE, logsnr), logsnr)
    assert cumulative[-1].item() == pytest.approx(1, abs=1e-5)
    levels = sample_logsnr(config, SCHEDULE, UNIFORM)
    assert levels.dtype == torch.float32
    assert levels.min() >= SCHEDULE.logsnr_min and levels.max() <= SCHEDULE.logsnr_max
    below = torch.from_numpy(np.interp(levels.double(), logsnr[1:], cumulative))
    expected = 1 - UNIFORM if config.kind == "schedule" else UNIFORM
    torch.testing.assert_close(below, expected, rtol=0, atol=1e-4)


def test_edm_density():
    """Karras et al. 2022, table 1: ln sigma is normal with mean -1.2 and deviation 1.2, uncut here."""
    wide = make_schedule(ScheduleConfig(logsnr_min=-20.0, logsnr_max=25.0))
    log_sigma = -sample_logsnr(DensityConfig(kind="lognormal"), wide, UNIFORM).double() / 2
    assert log_sigma.mean().item() == pytest.approx(-1.2, abs=1e-3)
    assert log_sigma.std().item() == pytest.approx(1.2, abs=1e-3)


def test_a_table_gives_each_entry_equally_often():
    drawn = TABLE.index(sample_logsnr(DensityConfig(), TABLE, UNIFORM))
    assert torch.bincount(drawn, minlength=1000).eq(20).all()


def test_a_table_refuses_other_densities():
    with pytest.raises(ConfigError, match="table"):
        sample_logsnr(DensityConfig(kind="logsnr"), TABLE, UNIFORM)


@pytest.mark.parametrize("schedule", [SCHEDULE, TABLE], ids=["continuous", "table"])
@pytest.mark.parametrize("weight", ["min_snr", "sigmoid"])
def test_parametrisations_agree(weight, schedule):
    """One pair of estimates (x0_hat, eps_hat), read as the output of each kind of network: one loss."""
    config, own = LossConfig(weight=weight, param=2.0), DensityConfig()
    generator = torch.Generator().manual_seed(0)
    x0, eps, x0_hat = (torch.randn(64, 1, 2, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    logsnr = sample_logsnr(own, schedule, UNIFORM[::320][1:63].repeat(2)[:64])
    x0, eps, x0_hat = (x[: len(logsnr)] for x in (x0, eps, x0_hat))
    x_t = add_noise(x0, eps, logsnr.double())
    alpha, sigma = (torch.sigmoid(s * logsnr.double()).sqrt().view(-1, 1, 1, 1) for s in (1, -1))
    eps_hat = (x_t - alpha * x0_hat) / sigma
    losses = []
    for kind in KINDS:
        error = target(kind, x0_hat, eps_hat, logsnr.double(), 0.4) - target(kind, x0, eps, logsnr.double(), 0.4)
        losses.append(loss_weight(config, kind, logsnr, own, schedule, 0.4) * error.square().mean((1, 2, 3)))
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("weight", ["min_snr", "sigmoid"])
def test_expected_loss_does_not_depend_on_the_density(weight):
    config = LossConfig(weight=weight, param=3.0)
    logsnr = torch.linspace(SCHEDULE.logsnr_min, SCHEDULE.logsnr_max, 20001, dtype=torch.float64)
    error = 1 / (1 + (logsnr - 1) ** 2)  # any error curve
    expected = [
        torch.trapezoid(
            density(own, SCHEDULE, logsnr) * loss_weight(config, "v", logsnr, own, SCHEDULE).double() * error, logsnr
        ).item()
        for own in DENSITIES
    ]
    assert expected[1] == pytest.approx(expected[0], rel=1e-5)
    assert expected[2] == pytest.approx(expected[0], rel=1e-5)


def test_min_snr_on_x0_is_the_smaller_of_snr_and_gamma():
    """Hang et al. 2023, section 3.4, for levels drawn from the schedule."""
    logsnr = torch.linspace(-8, 8, 33)
    weight = loss_weight(LossConfig(weight="min_snr", param=5.0), "x0", logsnr, DensityConfig(), SCHEDULE)
    torch.testing.assert_close(weight, logsnr.exp().clamp(max=5.0), rtol=1e-5, atol=0)


def test_simple_is_one_on_the_own_target():
    for kind in KINDS:
        weight = loss_weight(LossConfig(), kind, torch.tensor([-9.0, 0.0, 9.0]), DensityConfig(), SCHEDULE)
        assert weight.tolist() == [1, 1, 1]
