"""Noise schedules: maps between time t in [0, 1] (0 clean, 1 noise) and log-SNR, in float64.

A continuous schedule is a curve cut to a log-SNR range, with time stretched so that t = 0 is the cleanest level and
t = 1 the noisiest. A table is a list of levels; every entry owns an equal share of t. A shift adds to log-SNR.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from cdm.config import AugmentationConfig, ConfigError, ScheduleConfig

AUG_LOGSNR_MIN, AUG_LOGSNR_MAX = -10.0, 12.0
"""Range of the level that an SR net is told; level 0, no noise at all, is told as the upper end."""

_BETA_MIN, _BETA_MAX = 0.1, 20.0  # of the VP SDE, Song et al. 2021, appendix C


@runtime_checkable  # beartype asks in tests
class Schedule(Protocol):
    """A map t <-> log-SNR, strictly falling in t (a table is a staircase). ``table`` is None or float64 ``[T]``."""

    @property
    def logsnr_min(self) -> float: ...

    @property
    def logsnr_max(self) -> float: ...

    @property
    def table(self) -> Float64[Tensor, " T"] | None: ...

    def logsnr(self, t: Float[Tensor, "..."]) -> Float64[Tensor, "..."]: ...

    def t(self, logsnr: Float[Tensor, "..."]) -> Float64[Tensor, "..."]: ...

    def density(self, logsnr: Float[Tensor, "..."]) -> Float64[Tensor, "..."]: ...


@dataclass(frozen=True)
class Curve:
    """A schedule before cutting and shifting, in its own time tau: both directions and |d tau / d logsnr|."""

    logsnr: Callable[[Tensor], Tensor]
    tau: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


def _vp_tau(logsnr: Tensor) -> Tensor:
    """Solves tau b0 + tau^2 (b1 - b0) / 2 = -ln alpha^2 = softplus(-logsnr), without cancellation."""
    integral = torch.nn.functional.softplus(-logsnr, threshold=700.0)
    rise = _BETA_MAX - _BETA_MIN
    return 2 * integral / (_BETA_MIN + torch.sqrt(_BETA_MIN**2 + 2 * rise * integral))


COSINE = Curve(  # alpha = cos(tau), sigma = sin(tau): Nichol & Dhariwal 2021, eq. 17 with s = 0
    logsnr=lambda tau: -2 * torch.log(torch.tan(tau)),
    tau=lambda logsnr: torch.atan(torch.exp(-logsnr / 2)),
    slope=lambda logsnr: 1 / (4 * torch.cosh(logsnr / 2)),
)
VP_LINEAR = Curve(  # -ln alpha^2 = integral of beta: Song et al. 2021, appendix C
    logsnr=lambda tau: -torch.log(torch.expm1(tau * (_BETA_MIN + tau * (_BETA_MAX - _BETA_MIN) / 2))),
    tau=_vp_tau,
    slope=lambda logsnr: torch.sigmoid(-logsnr) / (_BETA_MIN + (_BETA_MAX - _BETA_MIN) * _vp_tau(logsnr)),
)


class ContinuousSchedule:
    """A curve between two log-SNRs, then shifted (Hoogeboom et al. 2023, eq. 4)."""

    table: None = None

    def __init__(self, curve: Curve, logsnr_min: float, logsnr_max: float, shift: float) -> None:
        if not logsnr_min < logsnr_max:
            raise ConfigError(
                f"a schedule needs logsnr_min < logsnr_max; got {logsnr_min} and {logsnr_max}: swap them."
            )
        ends = curve.tau(torch.tensor([logsnr_max, logsnr_min], dtype=torch.float64)).tolist()
        self.logsnr_min, self.logsnr_max = logsnr_min + shift, logsnr_max + shift
        self._curve, self._shift = curve, shift
        self._tau_start, self._tau_length = ends[0], ends[1] - ends[0]

    def logsnr(self, t: Float[Tensor, "..."]) -> Float64[Tensor, "..."]:
        """Log-SNR at times in [0, 1]."""
        value = self._curve.logsnr(self._tau_start + t.double() * self._tau_length) + self._shift
        return value.clamp(self.logsnr_min, self.logsnr_max)

    def t(self, logsnr: Float[Tensor, "..."]) -> Float64[Tensor, "..."]:
        """Time in [0, 1]; levels outside the range become its ends."""
        return ((self._curve.tau(logsnr.double() - self._shift) - self._tau_start) / self._tau_length).clamp(0, 1)

    def density(self, logsnr: Float[Tensor, "..."]) -> Float64[Tensor, "..."]:
        """Density of log-SNR for uniform t, |dt / dlogsnr|; zero outside the range (ends rounded to float32 count)."""
        logsnr = logsnr.double()
        slack = 1e-6 * (self.logsnr_max - self.logsnr_min)
        inside = (logsnr >= self.logsnr_min - slack) & (logsnr <= self.logsnr_max + slack)
        return torch.where(inside, self._curve.slope(logsnr - self._shift) / self._tau_length, 0.0)


def nearest_entry(table: Float64[Tensor, " T"], logsnr: Float[Tensor, "..."]) -> Int64[Tensor, "..."]:
    """Index of the table's entry nearest to each level; 0 is the cleanest."""
    middles = (table[1:] + table[:-1]) / 2
    return torch.searchsorted(-middles.to(logsnr.device), -logsnr.double().contiguous())


class TableSchedule:
    """A falling table of log-SNRs; entry k owns t in [k / T, (k + 1) / T)."""

    def __init__(self, table: Float64[Tensor, " T"]) -> None:
        self.table = table
        self.logsnr_min, self.logsnr_max = table[-1].item(), table[0].item()
        middles = (table[1:] + table[:-1]) / 2
        first, last = 2 * table[0] - middles[0], 2 * table[-1] - middles[-1]
        self._edges = torch.cat([first[None], middles, last[None]])  # falling; entry k between edges k and k + 1

    def index(self, logsnr: Float[Tensor, "..."]) -> Int64[Tensor, "..."]:
        """Nearest entry."""
        return nearest_entry(self.table, logsnr)

    def logsnr(self, t: Float[Tensor, "..."]) -> Float64[Tensor, "..."]:
        """The entry that owns each t in [0, 1]."""
        size = len(self.table)
        return self.table.to(t.device)[(t.double() * size).long().clamp(0, size - 1)]

    def t(self, logsnr: Float[Tensor, "..."]) -> Float64[Tensor, "..."]:
        """Middle of the nearest entry's share of t."""
        return (self.index(logsnr).double() + 0.5) / len(self.table)

    def density(self, logsnr: Float[Tensor, "..."]) -> Float64[Tensor, "..."]:
        """1 / (T times the width of the entry's cell, which reaches half way to its neighbours); zero outside."""
        edges, logsnr = self._edges.to(logsnr.device), logsnr.double()
        index = self.index(logsnr)
        inside = (logsnr <= edges[0]) & (logsnr >= edges[-1])
        return torch.where(inside, 1 / (len(self.table) * (edges[index] - edges[index + 1])), 0.0)


def _logsnr_of_betas(betas: Float64[Tensor, " T"]) -> Float64[Tensor, " T"]:
    """ln(a / (1 - a)) of a = cumulative product of 1 - beta, exact at both ends."""
    log_alpha2 = torch.cumsum(torch.log1p(-betas), 0)
    return log_alpha2 - torch.log(-torch.expm1(log_alpha2))


def cosine_table(num_timesteps: int) -> Float64[Tensor, " T"]:
    """Log-SNRs of Nichol & Dhariwal 2021, eq. 17: s = 0.008, betas at most 0.999. Entry 0 is the cleanest."""
    steps = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
    alpha2 = torch.cos((steps + 0.008) / 1.008 * math.pi / 2) ** 2
    return _logsnr_of_betas((1 - alpha2[1:] / alpha2[:-1]).clamp(max=0.999))


def linear_table(num_timesteps: int) -> Float64[Tensor, " T"]:
    """Log-SNRs of Ho et al. 2020, section 4: betas 1e-4 to 0.02 for T = 1000, scaled by 1000 / T otherwise."""
    if num_timesteps <= 20:
        raise ConfigError(f"a linear table needs over 20 timesteps, or beta passes 1; got {num_timesteps}: use 1000.")
    scale = 1000 / num_timesteps
    return _logsnr_of_betas(torch.linspace(scale * 1e-4, scale * 0.02, num_timesteps, dtype=torch.float64))


def make_schedule(config: ScheduleConfig) -> Schedule:
    """The schedule that a config names.

    Raises:
        ConfigError: range or number of timesteps that makes no schedule.
    """
    if config.kind.endswith("_table"):
        if config.num_timesteps < 2:
            raise ConfigError(f"a noise table needs at least 2 timesteps; got {config.num_timesteps}: use 1000.")
        make_table = {"cosine_table": cosine_table, "linear_table": linear_table}[config.kind]
        return TableSchedule(make_table(config.num_timesteps) + config.shift)
    curve = {"cosine": COSINE, "linear": VP_LINEAR}[config.kind]
    return ContinuousSchedule(curve, config.logsnr_min, config.logsnr_max, config.shift)


def aug_level_to_logsnr(config: AugmentationConfig, level: Float[Tensor, " b"]) -> Float32[Tensor, " b"]:
    """What the SR net is told of an augmentation level in [0, 1]; level 0 is told as 12 exactly.

    The map is the stage's own, unshifted, whatever schedules the stages use. Clamped to [-10, 12].
    """
    level = level.double()
    if config.level_map == "cosine":
        logsnr = COSINE.logsnr(level * (math.pi / 2)).nan_to_num(nan=AUG_LOGSNR_MIN)  # tan(pi/2) may turn negative
    else:  # z_s is the s-th step of T, entry s - 1 (Ho et al. 2021, section 4.2)
        entry = torch.round(level * config.num_timesteps).long()
        table = cosine_table(config.num_timesteps).to(level.device)
        logsnr = torch.where(entry > 0, table[(entry - 1).clamp(min=0)], AUG_LOGSNR_MAX)
    return logsnr.clamp(AUG_LOGSNR_MIN, AUG_LOGSNR_MAX).float()


def aug_logsnr_at(config: AugmentationConfig, quantile: Float[Tensor, " b"]) -> Float32[Tensor, " b"]:
    """What the SR net is told at a quantile in [0, 1] of the stage's density of training levels; 0 is the cleanest.

    Uniform in s between ``level_min`` and ``level_max``, or uniform in log-SNR between the levels told of these.
    """
    quantile = quantile.double()
    if config.level_density == "s":
        return aug_level_to_logsnr(config, config.level_min + (config.level_max - config.level_min) * quantile)
    ends = torch.tensor([config.level_min, config.level_max], dtype=torch.float64)  # on the host, whatever is recorded
    high, low = aug_level_to_logsnr(config, ends).tolist()
    return (high - (high - low) * quantile).float()
