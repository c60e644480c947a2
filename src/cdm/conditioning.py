"""The low-res image and its augmentation: one function for training, sampling and evaluation.

Order (Ho et al. 2021, section 4; DESIGN decision 5): area-down, quantise, blur (training only), noise, upsample. Noise
is added at the *low* resolution, before upsampling: truncated sampling hands over exactly such an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from cdm.config import AugmentationConfig
from cdm.noise.process import add_noise
from cdm.noise.schedule import AUG_LOGSNR_MAX, aug_logsnr_at
from cdm.rng import Purpose, Rng
from cdm.types import Image, LogSNR

LowRes = Float[Tensor, "b c low_h low_w"]


def quantise(x: Image, levels: int = 256) -> Image:
    """Clip to [-1, 1] and round to ``levels`` equal steps, as a saved file would; the same dtype comes back.

    ``levels`` 0: untouched, for tests against exact laws.
    """
    if levels == 0:
        return x
    half = (levels - 1) / 2
    return ((x.clamp(-1, 1) + 1) * half).round() / half - 1


def make_low_res(x: Image, size: int, levels: int = 256) -> LowRes:
    """Area-downsample ``[B, C, H, W]`` in [-1, 1] to ``size`` rows and quantise.

    The ratio must be whole, so each low-res pixel is the mean of its own block: a crop at multiples of the ratio gives
    the crop of the low-res image. A ratio of 1 only quantises.
    """
    factor = x.shape[-2] // size
    assert factor * size == x.shape[-2] and x.shape[-1] % factor == 0, (tuple(x.shape), size)
    # float64 keeps the mean of 8-bit values exact, so the rounding cannot depend on the summation order
    down = F.avg_pool2d(x.double(), factor).to(x.dtype) if factor > 1 else x
    return quantise(down, levels)


def upsample(low_res: LowRes, size: int) -> Image:
    """Bilinear to ``size`` rows, ``align_corners=False``; ratio 1 returns the input."""
    if low_res.shape[-2] == size:
        return low_res
    factor = size / low_res.shape[-2]
    width = round(low_res.shape[-1] * factor)
    return F.interpolate(low_res, size=(size, width), mode="bilinear", align_corners=False)


def blur(low_res: Image, sigma: Float[Tensor, " b"]) -> Image:
    """Gaussian blur with a 3x3 kernel and reflect padding; ``sigma`` in pixels per sample, 0 changes nothing."""
    weight = torch.exp(-0.5 / sigma.double().clamp(min=1e-3) ** 2).to(low_res.dtype)  # of a direct neighbour
    side = (weight / (1 + 2 * weight))[:, None, None, None]
    padded = F.pad(low_res, (1, 1, 1, 1), mode="reflect")
    rows = side * (padded[:, :, :-2] + padded[:, :, 2:]) + (1 - 2 * side) * padded[:, :, 1:-1]
    out = side * (rows[..., :-2] + rows[..., 2:]) + (1 - 2 * side) * rows[..., 1:-1]
    return torch.where((sigma > 0)[:, None, None, None], out, low_res)


def add_aug_noise(low_res: Image, aug_logsnr: LogSNR, eps: Image) -> Image:
    """z_s = alpha low_res + sigma eps; samples told as clean (log-SNR of 12 and above) come back untouched, bitwise."""
    noisy = add_noise(low_res, eps, aug_logsnr)
    return torch.where((aug_logsnr >= AUG_LOGSNR_MAX)[:, None, None, None], low_res, noisy)


@dataclass(frozen=True)
class Augmented:
    """A low-res image ready for its SR stage. ``noisy``: at low resolution; ``up``: upsampled, what the net sees;
    ``aug_logsnr``: what the net is told, None where the stage has no level embedding."""

    noisy: LowRes
    up: Image
    aug_logsnr: LogSNR | None


def augment_for_training(
    config: AugmentationConfig, low_res: LowRes, size: int, rng: Rng, index: Int64[Tensor, " b"]
) -> Augmented:
    """Draw levels per sample and augment. ``low_res``: float32 ``[B, C, h, w]`` in [-1, 1]; ``index`` on any device."""
    index = index.to(low_res.device)
    if config.has_blur:
        draw = rng.uniform(Purpose.BLUR, index, (2,))
        sigma = config.blur_min + (config.blur_max - config.blur_min) * draw[:, 1]
        low_res = blur(low_res, torch.where(draw[:, 0] < config.blur_fraction, sigma, 0.0).float())
    if not config.has_noise:
        return Augmented(low_res, upsample(low_res, size), None)
    told = aug_logsnr_at(config, rng.uniform(Purpose.AUG_LEVEL, index))
    told = torch.where(rng.uniform(Purpose.AUG_CLEAN, index) < config.clean_fraction, AUG_LOGSNR_MAX, told)
    eps = rng.normal(Purpose.AUG_NOISE, index, tuple(low_res.shape[1:]))
    return augment_at(config, low_res, size, told, eps)


def augment_at(
    config: AugmentationConfig, low_res: LowRes, size: int, aug_logsnr: LogSNR | None, eps: LowRes | None
) -> Augmented:
    """Augment at a given level, as sampling does: blur is training only, so only stages with noise add anything."""
    if not config.has_noise:
        return Augmented(low_res, upsample(low_res, size), None)
    assert aug_logsnr is not None and eps is not None
    noisy = add_aug_noise(low_res, aug_logsnr, eps)
    return Augmented(noisy, upsample(noisy, size), aug_logsnr)
