"""The configuration of a cascade: frozen dataclasses, no torch. Stored as JSON in the run folder.

Every value that sampling needs to agree with training lives here, so no flag has to be repeated.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from cdm.errors import UserError

FORMAT_VERSION = 1


class ConfigError(UserError):
    """A configuration that cannot work, told in one sentence: got, expected, how to mend it."""


@dataclass(frozen=True, kw_only=True)
class NetConfig:
    """A U-Net. ``attention`` holds sizes of feature maps at ``image_size``; crops keep the same depths."""

    image_size: int
    in_channels: int  # channels of x_t, plus those of the low-res image
    out_channels: int  # twice the image channels with learned variance
    width: int
    multipliers: tuple[int, ...]
    num_blocks: int
    patch: int = 1  # pixels per side that enter as one position: 2 is a quarter of the cost
    attention: tuple[int, ...] = ()
    middle_attention: bool = True  # between the two blocks at the bottom
    num_heads: int = 0  # 0: width of a head is ``head_channels``
    head_channels: int = 32
    dropout: float = 0.0
    resample: Literal["residual", "strided"] = "residual"
    norm: Literal["group", "layer"] = "group"
    num_labels: int = 0  # rows of the label table, null label included; 0: no labels
    direct: bool = False  # filters from the input to the output, past the net, by gains that the levels set
    has_aug_level: bool = False  # told the augmentation level through an embedding of its own

    def __post_init__(self) -> None:
        if not self.multipliers:
            raise ConfigError("a net has no multipliers; expected one for each size of its feature maps, as 1,2,2.")
        factor = self.patch * 2 ** (len(self.multipliers) - 1)
        if self.image_size % factor:
            raise ConfigError(
                f"a net with {len(self.multipliers)} multipliers halves the image {len(self.multipliers) - 1} times; "
                f"{self.image_size} pixels do not divide by {factor}: use fewer multipliers or another size."
            )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Map from time t in [0, 1] (0 clean) to log-SNR. ``*_table`` kinds are discrete tables of ``num_timesteps``."""

    kind: Literal["cosine", "linear", "cosine_table", "linear_table"] = "cosine"
    shift: float = 0.0  # added to log-SNR: 2 ln(ref / size), Hoogeboom et al. 2023, eq. 4
    num_timesteps: int = 1000
    logsnr_min: float = -12.0  # before the shift; continuous kinds only
    logsnr_max: float = 12.0


@dataclass(frozen=True, kw_only=True)
class DensityConfig:
    """Density p of training noise levels. ``schedule``: t uniform; ``logsnr``: uniform in log-SNR; ``lognormal``:
    log-SNR normal with ``mean`` and ``std`` (EDM's ln sigma ~ N(-1.2, 1.2^2) is mean 2.4, std 2.4)."""

    kind: Literal["schedule", "logsnr", "lognormal"] = "schedule"
    mean: float = 2.4
    std: float = 2.4


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """``simple``: unit weight on the stage's own target. ``param``: gamma of min_snr, bias of sigmoid."""

    weight: Literal["simple", "min_snr", "sigmoid"] = "simple"
    param: float = 5.0
    vlb_weight: float = 0.001  # of the hybrid loss, learned variances only (Nichol & Dhariwal 2021)


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """Conditioning augmentation of an SR stage (Ho et al. 2021, section 4).

    ``level_map``: augmentation level s in [0, 1] to log-SNR, "cosine" is alpha = cos(pi s / 2); "cosine_table" is
    Nichol & Dhariwal's table of ``num_timesteps`` entries, entry round(s T), as in the paper.
    ``level_density``: training levels are uniform in s (the paper), or in log-SNR, between the ends of the range; equal
    ends are one fixed level.
    """

    kind: Literal["none", "gaussian", "blur", "gaussian+blur"] = "gaussian"
    level_min: float = 0.0
    level_max: float = 1.0
    level_density: Literal["s", "logsnr"] = "s"
    clean_fraction: float = 0.05  # share of training images at exactly level 0
    level_map: Literal["cosine", "cosine_table"] = "cosine"
    num_timesteps: int = 4000
    blur_min: float = 0.4  # sigma of the 3x3 Gaussian, pixels of the low-res image
    blur_max: float = 0.6
    blur_fraction: float = 0.5

    @property
    def has_noise(self) -> bool:
        """Noise is added in training and in sampling, and the net is told its level."""
        return self.kind in ("gaussian", "gaussian+blur")

    @property
    def has_blur(self) -> bool:
        return self.kind in ("blur", "gaussian+blur")

    def trained_at(self, level: float) -> bool:
        """Whether level s is one that the stage was trained at."""
        is_clean = level == 0 and self.clean_fraction > 0
        return self.has_noise and (is_clean or self.level_min <= level <= self.level_max)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How one stage is optimised. All schedules are functions of images seen, never of steps or time."""

    batch_size: int = 64
    micro_batch: int = 0  # 0: the whole batch at once
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the matrices inside the net, AdamW for the rest
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    warmup_images: int = 2000
    decay_fraction: float = 0.3  # last share of the budget, over which lr falls linearly to lr * lr_final
    lr_final: float = 0.02
    ema_sigma_rel: tuple[float, ...] = (0.05, 0.10)  # power-function profiles (Karras et al. 2024, eq. 123)
    grad_clip: float = 1.0
    crop_size: int = 0  # random crops for an SR stage; 0: whole images
    checkpointing: bool = False
    cost_share: float = 0.0  # share of a --minutes budget; 0: equal shares
    images: int = 0  # the recipe's own budget, where none is asked for; 0: an hour for all stages


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One diffusion model of the cascade."""

    size: int
    channels: int
    low_res_size: int = 0  # 0: this is the base
    kind: Literal["conditioned"] = "conditioned"
    net: NetConfig
    schedule: ScheduleConfig = ScheduleConfig()
    prediction: Literal["eps", "x0", "v", "edm"] = "v"
    sigma_data: float = 0.5  # edm only
    told: Literal["logsnr", "timestep", "edm"] = "logsnr"  # what the raw net is told of the noise level
    variance: Literal["fixed", "learned"] = "fixed"
    density: DensityConfig = DensityConfig()
    loss: LossConfig = LossConfig()
    label_dropout: float = 0.1
    augmentation: AugmentationConfig = AugmentationConfig(kind="none")
    optim: OptimConfig = OptimConfig()

    @property
    def is_base(self) -> bool:
        return self.low_res_size == 0

    @property
    def factor(self) -> int:
        return 1 if self.is_base else self.size // self.low_res_size

    def __post_init__(self) -> None:
        if not self.is_base and (self.low_res_size >= self.size or self.size % self.low_res_size):
            raise ConfigError(
                f"stage sizes must rise by whole factors; got {self.low_res_size} before {self.size}: "
                f"use for example {self.low_res_size},{self.low_res_size * 2}."
            )
        if self.is_base and self.augmentation.kind != "none":
            raise ConfigError("a base stage has no low-res image to augment; expected augmentation 'none'.")
        low, high = self.augmentation.level_min, self.augmentation.level_max
        if not 0 <= low <= high <= 1:
            raise ConfigError(
                f"augmentation levels from {low:g} to {high:g} are no range; expected two numbers that rise within 0 "
                "(none) to 1 (only noise), or twice the same."
            )
        if self.variance == "learned" and self.net.direct:
            raise ConfigError(
                "a net with a direct path has no learned variances; use direct false, or variance 'fixed'."
            )
        if self.variance == "learned" and not self.schedule.kind.endswith("_table"):
            raise ConfigError(
                f"learned variances need a discrete noise table; got the continuous schedule {self.schedule.kind!r}: "
                f"use '{self.schedule.kind}_table', or variance 'fixed'."
            )


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Defaults of ``cdm sample``. One entry of ``steps`` per stage from the base up; of ``aug_level`` per SR stage.

    sampler, grid: a name for all stages, or one for each, separated by commas.
    levels: log-SNRs of each stage whose grid is "tuned", rising; the last evaluation goes to +inf.
    threshold: 0 clips the estimates of x0 to [-1, 1] (if ``clip``); else the percentile of dynamic thresholding.
    """

    sampler: str = "dpmpp"
    steps: tuple[int, ...] = ()
    grid: str = "logsnr"
    levels: tuple[tuple[float, ...], ...] = ()
    threshold: float = 0.0
    aug_level: tuple[float, ...] = ()
    hand_over: Literal["non_truncated", "truncated"] = "non_truncated"
    clip: bool = True


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How images become arrays. ``window``: intensities shown as -1 and 1 (16-bit data only)."""

    channels: int = 3
    bit_depth: Literal[8, 16] = 8
    window: tuple[int, int] = (0, 255)
    flip: bool = False
    balanced: bool = False

    @property
    def levels(self) -> int:
        """Intensity steps of a saved image."""
        return self.window[1] - self.window[0] + 1


@dataclass(frozen=True, kw_only=True)
class CascadeConfig:
    """The whole cascade: what ``cascade.json`` holds."""

    format_version: int = FORMAT_VERSION
    recipe: str = "small"
    seed: int = 0
    class_names: tuple[str, ...] = ()  # empty: unconditional
    data: DataConfig = DataConfig()
    stages: tuple[StageConfig, ...]
    sampling: SamplingConfig = SamplingConfig()
    sampling_history: tuple[SamplingConfig, ...] = field(default=())
    qualities: tuple[SamplingConfig, ...] = ()  # fast, balanced and best, of `cdm tune`; empty: not tuned

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(stage.size for stage in self.stages)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __post_init__(self) -> None:
        for low, high in zip(self.stages, self.stages[1:], strict=False):
            if high.low_res_size != low.size:
                raise ConfigError(
                    f"stage {high.size} expects low-res {high.low_res_size}, the one before makes {low.size}."
                )


def to_dict(config: Any) -> dict[str, Any]:
    """Dataclass to plain JSON types."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


T = typing.TypeVar("T")


def from_dict(cls: type[T], data: dict[str, Any], where: str = "config") -> T:
    """Plain JSON types to the dataclass ``cls``; unknown keys and wrong types are ``ConfigError``."""
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - known)
    if unknown:
        raise ConfigError(f"{where} has the unknown key {unknown[0]!r}; expected some of {sorted(known)}.")
    try:
        return cls(**{key: _convert(hints[key], value, f"{where}.{key}") for key, value in data.items()})
    except TypeError as error:
        raise ConfigError(f"{where} is incomplete: {error}.") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is {value!r}; expected an object.")
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} is {value!r}; expected a list.")
        hints = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(value) != len(hints):
            raise ConfigError(f"{where} has {len(value)} entries; expected {len(hints)}.")
        return tuple(_convert(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(hints, value, strict=True)))
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where} is {value!r}; expected one of {list(args)}.")
        return value
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _convert(next(a for a in args if a is not type(None)), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise ConfigError(f"{where} is {value!r}; expected {hint.__name__}.")
    return value
