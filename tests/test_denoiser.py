"""Denoisers: exact for a perfect net of every kind, told what they were trained with, float32 at every border."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tests.fakes import function_stage, random_stage, stage_config
from torch import Tensor

from cdm.config import ScheduleConfig
from cdm.denoiser import Denoiser
from cdm.noise.process import add_noise, target
from cdm.noise.schedule import make_schedule
from cdm.types import Cond

KINDS = ["eps", "x0", "v", "edm"]
LEVELS = torch.linspace(-12, 12, 25)


def draw(seed: int, batch: int = 25, channels: int = 1, size: int = 4) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


def constant(answer: Tensor):
    return lambda x, noise_input, labels, aug_input: answer


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_net_of_every_kind_gives_the_exact_image_and_noise(kind):
    """To float32: the estimate that a kind does not make itself loses as much as alpha or sigma is small."""
    x0, eps, sigma_data = draw(0) * 0.5, draw(1), 0.4
    wanted = target(kind, x0, eps, LEVELS, sigma_data)
    stage = function_stage(stage_config(4, prediction=kind, sigma_data=sigma_data), constant(wanted))
    got = stage.denoiser(add_noise(x0, eps, LEVELS), LEVELS, Cond())
    assert got.x0.dtype == got.eps.dtype == torch.float32 and got.var_fraction is None
    alpha, sigma = (torch.sigmoid(s * LEVELS).sqrt()[:, None, None, None] for s in (1, -1))
    slack = {"eps": (1 / alpha, 1), "x0": (1, 1 / sigma), "v": (1, 1), "edm": (1, 1)}[kind]
    assert ((got.x0 - x0).abs() < 3e-6 * slack[0]).all()
    assert ((got.eps - eps).abs() < 3e-6 * slack[1]).all()


def test_the_net_of_an_edm_stage_sees_unit_variance():
    """c_in of Karras et al. 2022, table 1: sigma_data^2 + sigma_edm^2 is the variance of x_t / alpha."""
    seen = []
    stage = function_stage(
        stage_config(4, prediction="edm", sigma_data=0.3), lambda x, *rest: seen.append(x) or torch.zeros_like(x)
    )
    x_t = draw(0)
    stage.denoiser(x_t, LEVELS, Cond())
    sigma_edm = torch.exp(-LEVELS / 2)[:, None, None, None]
    alpha = torch.sigmoid(LEVELS).sqrt()[:, None, None, None]
    torch.testing.assert_close(seen[0], x_t / alpha / torch.sqrt(sigma_edm**2 + 0.3**2), rtol=1e-5, atol=1e-6)


def told(config, logsnr: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor | None]:
    seen = []

    def net(x, noise_input, labels, aug_input):
        seen.append((noise_input, aug_input))
        return torch.zeros(len(x), config.net.out_channels, *x.shape[2:])

    function_stage(config, net).denoiser(draw(0, len(logsnr)), logsnr, Cond(**cond))
    assert seen[0][0].dtype == torch.float32
    return seen[0]


@pytest.mark.parametrize("kind", ["cosine_table", "linear_table"])
@pytest.mark.parametrize("count", [50, 1000, 4000])
def test_table_nets_are_told_the_timestep(kind, count):
    """Each entry, come in float32, is its own index: neighbours are not confused where they lie close."""
    schedule = ScheduleConfig(kind=kind, num_timesteps=count)
    config = stage_config(4, schedule=schedule, told="timestep", prediction="eps")
    table = make_schedule(schedule).table
    assert told(config, table.float())[0].tolist() == list(range(count))
    between = (0.6 * table[3] + 0.4 * table[4]).float()
    assert told(config, between[None])[0].tolist() == [3]
    outside = torch.tensor([table[0] + 9, table[-1] - 9]).float()
    assert told(config, outside)[0].tolist() == [0, count - 1]


def test_continuous_nets_may_be_told_time_log_snr_or_edms_number():
    cosine = stage_config(4, told="timestep", schedule=ScheduleConfig(logsnr_min=-20.0, logsnr_max=20.0))
    level = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64) * math.pi / 2
    logsnr = (-2 * torch.log(torch.tan(level))).float()
    torch.testing.assert_close(told(cosine, logsnr)[0], torch.tensor([200.0, 500.0, 900.0]), rtol=1e-4, atol=0)
    torch.testing.assert_close(told(stage_config(4), LEVELS)[0], -40 * LEVELS)
    c_noise = torch.exp(-LEVELS / 2).log() / 4  # Karras et al. 2022, table 1
    torch.testing.assert_close(told(stage_config(4, told="edm"), LEVELS)[0], 1000 * c_noise, rtol=1e-5, atol=1e-3)


def test_the_augmentation_level_and_low_res_reach_the_net():
    seen = []

    def net(x, noise_input, labels, aug_input):
        seen.append((x, aug_input, labels))
        return torch.zeros_like(x[:, :1])

    stage = function_stage(stage_config(4, 2), net, 1)
    x_t, low_res, labels = draw(0, 3), draw(1, 3), torch.tensor([2, 0, 1])
    stage.denoiser(x_t, torch.zeros(3), Cond(labels, low_res, torch.tensor([12.0, 0.0, -10.0])))
    x, aug_input, got_labels = seen[0]
    assert torch.equal(x, torch.cat([x_t, low_res], 1)) and torch.equal(got_labels, labels)
    assert aug_input.tolist() == [-480.0, 0.0, 400.0]


def test_learned_variances_are_the_second_half_of_the_channels():
    """Nichol & Dhariwal 2021, eq. 15: an output of -1 is the small variance, 1 the large one."""
    answer = torch.cat([torch.full((2, 1, 4, 4), 7.0), torch.linspace(-1, 1, 32).view(2, 1, 4, 4)], dim=1)
    config = stage_config(4, schedule=ScheduleConfig(kind="cosine_table"), prediction="x0", variance="learned")
    got = function_stage(config, constant(answer)).denoiser(draw(0, 2), torch.zeros(2), Cond())
    assert (got.x0 == 7).all()
    assert got.var_fraction.min() == 0 and got.var_fraction.max() == 1
    torch.testing.assert_close(got.var_fraction.flatten(), torch.linspace(0, 1, 32))


LABELLED = stage_config(16, 8, channels=3, num_labels=4)


def cond(batch: int = 4) -> Cond:
    return Cond(torch.arange(batch) % 4, draw(5, batch, 3, 16), torch.linspace(-9, 12, batch))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision_stays_inside_the_network(kind, dtype):
    """float32 goes in and comes out, weights stay float32, convolutions run in ``dtype``."""
    stage = random_stage(replace(LABELLED, prediction=kind), 1, num_classes=3).to("cpu", dtype)
    inside = []
    stage.net.first.register_forward_hook(lambda module, inputs, output: inside.append((inputs[0].dtype, output.dtype)))
    got = stage.denoiser(draw(6, 4, 3, 16), torch.linspace(-9, 9, 4), cond())
    assert inside == [(torch.float32, dtype)]
    assert got.x0.dtype == got.eps.dtype == torch.float32
    assert {p.dtype for p in stage.net.parameters()} == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")


def test_bfloat16_is_near_float32():
    """bfloat16 rounds by 2^-9 at each layer: the estimates of a random net, which amplifies, agree to a few percent."""
    stage = random_stage(LABELLED, 1, num_classes=3)
    x_t, logsnr = draw(6, 4, 3, 16), torch.linspace(-9, 9, 4)
    exact = stage.denoiser(x_t, logsnr, cond())
    stage.to("cpu", torch.bfloat16)
    rough = stage.denoiser(x_t, logsnr, cond())
    raw = stage.denoiser.raw(x_t, logsnr, cond())[0]
    assert raw.std() > 0.1  # the net says something
    for one, other in ((exact.x0, rough.x0), (exact.eps, rough.eps)):
        error = ((one - other).square().mean() / one.square().mean()).sqrt().item()
        assert 0 < error < 0.03


def test_denoisers_tell_their_range_and_table():
    continuous = random_stage(stage_config(4, schedule=ScheduleConfig(shift=-1.0))).denoiser
    assert isinstance(continuous, Denoiser) and continuous.table is None
    assert continuous.logsnr_range == (-13.0, 11.0)
    table = random_stage(stage_config(4, schedule=ScheduleConfig(kind="cosine_table"))).denoiser
    assert table.logsnr_range == (table.table[-1].item(), table.table[0].item()) and len(table.table) == 1000
