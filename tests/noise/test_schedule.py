"""Schedules: both directions, their density, and the published formulas computed another way."""

import math

import numpy as np
import pytest
import torch

from cdm.config import AugmentationConfig, ConfigError, ScheduleConfig
from cdm.noise.schedule import aug_level_to_logsnr, aug_logsnr_at, cosine_table, linear_table, make_schedule
from cdm.rng import Purpose, Rng

CONTINUOUS = ["cosine", "linear"]
TABLES = ["cosine_table", "linear_table"]
SHIFTS = [0.0, 2 * math.log(32 / 64), 1.5]
CENTRES = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000


def build(kind, shift=0.0, **options):
    return make_schedule(ScheduleConfig(kind=kind, shift=shift, **options))


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("kind", CONTINUOUS + TABLES)
def test_t_to_logsnr_and_back(kind, shift):
    schedule = build(kind, shift)
    logsnr = schedule.logsnr(CENTRES)
    assert logsnr.dtype == torch.float64
    torch.testing.assert_close(schedule.t(logsnr), CENTRES, rtol=0, atol=1e-12)
    torch.testing.assert_close(schedule.logsnr(schedule.t(logsnr)), logsnr, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("kind", CONTINUOUS + TABLES)
def test_logsnr_falls_strictly_between_its_ends(kind, shift):
    schedule = build(kind, shift)
    logsnr = schedule.logsnr(CENTRES)
    assert (logsnr.diff() < 0).all()
    ends = schedule.logsnr(torch.tensor([0.0, 1.0], dtype=torch.float64))
    expected = torch.tensor([schedule.logsnr_max, schedule.logsnr_min], dtype=torch.float64)
    torch.testing.assert_close(ends, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", CONTINUOUS + TABLES)
def test_shift_scales_the_noise_to_signal_ratio(kind):
    """Hoogeboom et al. 2023, eq. 4: at size d the ratio sigma / alpha grows by d / ref."""
    plain, shifted = build(kind), build(kind, 2 * math.log(32 / 128))
    noise_to_signal = torch.exp(-plain.logsnr(CENTRES) / 2)
    torch.testing.assert_close(torch.exp(-shifted.logsnr(CENTRES) / 2), noise_to_signal * (128 / 32), rtol=1e-9, atol=0)


def test_cosine_is_the_cosine():
    schedule = build("cosine", logsnr_min=-60.0, logsnr_max=60.0)  # so wide that the cut does not matter
    alpha = torch.sigmoid(schedule.logsnr(CENTRES)).sqrt()
    torch.testing.assert_close(alpha, torch.cos(math.pi / 2 * CENTRES), rtol=0, atol=1e-9)


def test_linear_integrates_beta():
    """ln alpha^2(t) is minus the integral of beta = 0.1 + 19.9 t, here by the trapezium rule (exact for a line)."""
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    log_alpha2 = -torch.cumulative_trapezoid(0.1 + 19.9 * t, t)
    end = (log_alpha2[-1] - torch.log(-torch.expm1(log_alpha2[-1]))).item()
    schedule = build("linear", logsnr_min=end, logsnr_max=40.0)
    torch.testing.assert_close(
        torch.nn.functional.logsigmoid(schedule.logsnr(t[1:])), log_alpha2, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("num_timesteps", [100, 1000, 4000])
def test_tables_are_the_published_betas(num_timesteps):
    """Cumulative products in extended precision; 1 - product loses at most eps / product at the clean end."""
    steps = np.arange(num_timesteps + 1, dtype=np.longdouble) / num_timesteps
    alpha2 = np.cos((steps + np.longdouble("0.008")) / np.longdouble("1.008") * np.longdouble(math.pi) / 2) ** 2
    betas = {
        "cosine": np.minimum(1 - alpha2[1:] / alpha2[:-1], np.longdouble("0.999")),
        "linear": np.linspace(
            np.longdouble("0.1") / num_timesteps,
            np.longdouble("20") / num_timesteps,
            num_timesteps,
            dtype=np.longdouble,
        ),
    }
    for name, make in (("cosine", cosine_table), ("linear", linear_table)):
        product = np.cumprod(1 - betas[name])
        expected = torch.tensor((np.log(product) - np.log(1 - product)).astype(np.float64))
        torch.testing.assert_close(make(num_timesteps), expected, rtol=1e-9, atol=1e-9)


def test_linear_table_ends_where_ddpm_ends():
    """alpha^2 at T is the product of 1 - beta over the 1000 betas of Ho et al. 2020, section 4."""
    expected = math.exp(sum(math.log1p(-(1e-4 + (0.02 - 1e-4) * i / 999)) for i in range(1000)))
    assert torch.sigmoid(linear_table(1000)[-1]).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("kind", CONTINUOUS)
def test_density_is_the_slope_of_t_and_integrates_to_one(kind, shift):
    schedule = build(kind, shift)
    logsnr = torch.linspace(schedule.logsnr_min, schedule.logsnr_max, 20001, dtype=torch.float64)
    density = schedule.density(logsnr)
    assert torch.trapezoid(density, logsnr).item() == pytest.approx(1, abs=1e-6)
    inner = logsnr[1:-1].clone().requires_grad_()
    (slope,) = torch.autograd.grad(schedule.t(inner).sum(), inner)
    torch.testing.assert_close(density[1:-1], -slope, rtol=1e-9, atol=0)
    outside = torch.tensor([schedule.logsnr_min - 0.1, schedule.logsnr_max + 0.1], dtype=torch.float64)
    assert (schedule.density(outside) == 0).all()


@pytest.mark.parametrize("kind", TABLES)
def test_table_density_gives_every_entry_the_same_mass(kind):
    schedule = build(kind)
    logsnr = torch.linspace(schedule.logsnr_max + 1, schedule.logsnr_min - 8, 400001, dtype=torch.float64)
    mass = schedule.density(logsnr) * -logsnr.diff()[0]
    assert mass.sum().item() == pytest.approx(1, abs=1e-3)
    per_entry = torch.zeros(1000, dtype=torch.float64).index_add_(0, schedule.index(logsnr), mass)
    torch.testing.assert_close(per_entry, torch.full((1000,), 1e-3, dtype=torch.float64), rtol=0.02, atol=0)


@pytest.mark.parametrize("kind", TABLES)
def test_table_entries_survive_float32(kind):
    schedule = build(kind, num_timesteps=4000)
    assert (schedule.index(schedule.table.float()) == torch.arange(4000)).all()


@pytest.mark.parametrize("level_map", ["cosine", "cosine_table"])
def test_augmentation_level(level_map):
    config = AugmentationConfig(level_map=level_map)
    level = torch.linspace(0, 1, 4001, dtype=torch.float64)
    logsnr = aug_level_to_logsnr(config, level)
    assert logsnr.dtype == torch.float32
    assert logsnr[0] == 12 and logsnr[-1] == -10
    assert (logsnr.diff() <= 0).all()
    inside = (logsnr < 12) & (logsnr > -10)
    assert (logsnr[inside].diff() < 0).all()


def test_cosine_augmentation_level_is_the_angle():
    config, level = AugmentationConfig(), torch.tensor([0.1, 0.25, 0.5, 0.9], dtype=torch.float64)
    expected = 2 * torch.log(torch.cos(math.pi * level / 2) / torch.sin(math.pi * level / 2))
    torch.testing.assert_close(aug_level_to_logsnr(config, level).double(), expected, rtol=1e-6, atol=1e-6)


def test_table_augmentation_level_counts_steps():
    """Level s is step s T of the table: the paper's s = 501 of 4000 is entry 500, counted from 0."""
    config = AugmentationConfig(level_map="cosine_table", num_timesteps=4000)
    told = aug_level_to_logsnr(config, torch.tensor([501 / 4000], dtype=torch.float64))
    assert told.item() == pytest.approx(cosine_table(4000)[500].item(), rel=1e-6)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ScheduleConfig(logsnr_min=3.0, logsnr_max=-3.0), "swap"),
        (ScheduleConfig(kind="linear_table", num_timesteps=20), "over 20 timesteps"),
        (ScheduleConfig(kind="cosine_table", num_timesteps=1), "at least 2"),
    ],
)
def test_impossible_schedules_are_refused(config, words):
    with pytest.raises(ConfigError, match=words):
        make_schedule(config)


# ---- densities of augmentation levels --------------------------------------------------------------------------------


def farthest(values, cdf):
    """Kolmogorov and Smirnov's distance of a sample from a distribution function."""
    points = cdf(values.double().sort().values)
    ranks = torch.arange(len(points) + 1, dtype=torch.float64) / len(points)
    return max((points - ranks[:-1]).max().item(), (ranks[1:] - points).max().item())


RANGES = [(0.0, 1.0), (0.0, 0.6), (0.1, 0.4)]


def drawn(**options):
    """Levels told at the quantiles that training draws, 20,000 of them."""
    quantiles = Rng(3, 1).uniform(Purpose.AUG_LEVEL, torch.arange(20_000))
    return aug_logsnr_at(AugmentationConfig(**options), quantiles)


@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("density", ["s", "logsnr"])
def test_augmentation_levels_have_their_closed_form(density, low, high):
    """P(told at most l): for uniform s (high - s(l)) / (high - low), s = 2 atan(exp(-l/2)) / pi; for uniform log-SNR
    the straight line between the ends. 1.63 / sqrt(n) is exceeded by chance once in a hundred."""
    told = drawn(level_min=low, level_max=high, level_density=density)
    ends = [12.0 if low == 0 else -2 * math.log(math.tan(math.pi * low / 2))]
    ends += [-10.0 if high == 1 else -2 * math.log(math.tan(math.pi * high / 2))]
    level = lambda value: 2 / math.pi * torch.atan(torch.exp(-value / 2))  # noqa: E731
    laws = {
        "s": lambda value: torch.where(value > -10, (high - level(value)) / (high - low), (high - low) * 0.0),
        "logsnr": lambda value: (value - ends[1]) / (ends[0] - ends[1]),
    }
    inside = told[(told > -10) & (told < 12)]  # the clamped ends are points: 0.4 % and 0.2 % of uniform s in all
    assert len(inside) > 0.99 * len(told)
    distances = {name: farthest(inside, law) for name, law in laws.items()}
    limit = 1.63 / math.sqrt(len(inside)) + 0.007  # what the points take away
    assert distances[density] < limit < distances[{"s": "logsnr", "logsnr": "s"}[density]]
    assert told.min() >= ends[1] - 1e-5 and told.max() <= ends[0] + 1e-5


@pytest.mark.parametrize("level_map", ["cosine", "cosine_table"])
@pytest.mark.parametrize("density", ["s", "logsnr"])
def test_equal_ends_are_one_level_exactly(density, level_map):
    """To the last bit what sampling is told at this level."""
    told = drawn(level_min=0.3, level_max=0.3, level_density=density, level_map=level_map)
    config = AugmentationConfig(level_map=level_map)
    assert told.unique().tolist() == aug_level_to_logsnr(config, torch.tensor([0.3], dtype=torch.float64)).tolist()
