"""Which noise levels are trained on (a density over log-SNR), and how much each counts (a weight)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from cdm.config import ConfigError, DensityConfig, LossConfig
from cdm.noise.process import Kind
from cdm.noise.schedule import Schedule
from cdm.types import LogSNR


def _check(config: DensityConfig, schedule: Schedule) -> None:
    if schedule.table is not None and config.kind != "schedule":
        raise ConfigError(
            f"a noise table trains on its own entries; got the density {config.kind!r}: use 'schedule', "
            "or a continuous schedule."
        )


def _normal_ends(config: DensityConfig, schedule: Schedule) -> tuple[float, float]:
    """Normal CDF at the two ends of the schedule's range."""
    ends = torch.tensor([schedule.logsnr_min, schedule.logsnr_max], dtype=torch.float64)
    low, high = torch.special.ndtr((ends - config.mean) / config.std).tolist()
    return low, high


def sample_logsnr(config: DensityConfig, schedule: Schedule, u: Float[Tensor, " b"]) -> Float32[Tensor, " b"]:
    """Training levels from uniform numbers ``u`` in (0, 1): the quantile function of the density.

    "lognormal" is cut to the schedule's range. A table gives its entries, uniformly.

    Raises:
        ConfigError: a density other than "schedule" with a table.
    """
    _check(config, schedule)
    u = u.double()
    if config.kind == "schedule":
        return schedule.logsnr(u).float()
    if config.kind == "logsnr":
        return torch.lerp(torch.full_like(u, schedule.logsnr_min), torch.full_like(u, schedule.logsnr_max), u).float()
    low, high = _normal_ends(config, schedule)
    normal = torch.special.ndtri(low + (high - low) * u)
    return (config.mean + config.std * normal).clamp(schedule.logsnr_min, schedule.logsnr_max).float()


def density(config: DensityConfig, schedule: Schedule, logsnr: LogSNR) -> Float64[Tensor, " b"]:
    """Density p of ``sample_logsnr`` at levels inside the schedule's range."""
    _check(config, schedule)
    if config.kind == "schedule":
        return schedule.density(logsnr)
    if config.kind == "logsnr":
        return torch.full_like(logsnr, 1 / (schedule.logsnr_max - schedule.logsnr_min), dtype=torch.float64)
    low, high = _normal_ends(config, schedule)
    z = (logsnr.double() - config.mean) / config.std
    return torch.exp(-0.5 * z**2) / (config.std * math.sqrt(2 * math.pi) * (high - low))


def eps_error_per_error(kind: Kind, logsnr: LogSNR, sigma_data: float) -> Float64[Tensor, " b"]:
    """||eps error||^2 / ||error of the stage's own target||^2, at a fixed x_t."""
    logsnr = logsnr.double()
    alpha2, sigma2 = torch.sigmoid(logsnr), torch.sigmoid(-logsnr)
    if kind == "eps":
        return torch.ones_like(logsnr)
    if kind == "x0":
        return logsnr.exp()
    if kind == "v":
        return alpha2
    return alpha2 * sigma_data**2 / (alpha2 * sigma_data**2 + sigma2)  # SNR c_out^2, Karras et al. 2022, table 1


def loss_weight(
    config: LossConfig,
    kind: Kind,
    logsnr: LogSNR,
    density_config: DensityConfig,
    schedule: Schedule,
    sigma_data: float = 0.5,
) -> Float32[Tensor, " b"]:
    """Factor of the mean squared error on the stage's own target.

    "simple" is 1. The others are defined on the eps-target under the measure dlogsnr, so they are divided by the
    density that levels are drawn from: the expected loss depends neither on the density nor on the target.
    """
    if config.weight == "simple":
        return torch.ones_like(logsnr, dtype=torch.float32)
    level = logsnr.double()
    if config.weight == "min_snr":  # Hang et al. 2023, section 3.4: min(SNR, gamma) on x0, under the schedule
        weight = schedule.density(level) * (config.param * torch.exp(-level)).clamp(max=1.0)
    else:  # Hoogeboom et al. 2024 (SiD2): sigmoid(b - logsnr) on eps
        weight = torch.sigmoid(config.param - level)
    weight = weight / density(density_config, schedule, logsnr)
    return (weight * eps_error_per_error(kind, logsnr, sigma_data)).float()
