"""The forward process x_t = alpha x0 + sigma eps, its posterior, and what networks may predict of it.

Everywhere alpha^2 = sigmoid(logsnr) and sigma^2 = sigmoid(-logsnr), never 1 - alpha^2, and log-SNR may be +inf.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from cdm.types import Image, LogSNR

_SQRT_HALF = 0.5**0.5

Kind = Literal["eps", "x0", "v", "edm"]
"""What a network predicts: the stage's *target*."""


PerImage = Float[Tensor, "b 1 1 1"]
"""One number per image, ready to broadcast."""
Broadcast = Float[Tensor, "b #c #h #w"]
"""An image, or numbers that broadcast to one."""


def expand(level: LogSNR, like: Image) -> PerImage:
    """``[B]`` to ``[B, 1, 1, 1]`` in the dtype of ``like``."""
    return level.to(like.dtype).view(-1, 1, 1, 1)


def alpha_sigma(logsnr: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Scale of the signal and of the noise; (1, 0) at +inf."""
    return torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()


def _alpha_sigma_like(logsnr: LogSNR, like: Image) -> tuple[PerImage, PerImage]:
    alpha, sigma = alpha_sigma(logsnr)
    return expand(alpha, like), expand(sigma, like)


def add_noise(x0: Image, eps: Image, logsnr: LogSNR) -> Image:
    """x_t = alpha x0 + sigma eps."""
    alpha, sigma = _alpha_sigma_like(logsnr, x0)
    return alpha * x0 + sigma * eps


def x0_from_eps(x_t: Image, eps: Image, logsnr: LogSNR) -> Image:
    """(x_t - sigma eps) / alpha; loses precision where there is little signal."""
    alpha, sigma = _alpha_sigma_like(logsnr, x_t)
    return (x_t - sigma * eps) / alpha.clamp(min=torch.finfo(x_t.dtype).tiny)


def eps_from_x0(x_t: Image, x0: Image, logsnr: LogSNR) -> Image:
    """(x_t - alpha x0) / sigma; loses precision where there is little noise."""
    alpha, sigma = _alpha_sigma_like(logsnr, x_t)
    return (x_t - alpha * x0) / sigma.clamp(min=torch.finfo(x_t.dtype).tiny)


def target(kind: Kind, x0: Image, eps: Image, logsnr: LogSNR, sigma_data: float) -> Image:
    """What a network of this kind should output. ``sigma_data`` counts for "edm" only."""
    if kind == "eps":
        return eps
    if kind == "x0":
        return x0
    alpha, sigma = _alpha_sigma_like(logsnr, x0)
    if kind == "v":
        return alpha * eps - sigma * x0  # Salimans & Ho 2022, section 4
    # Karras et al. 2022, eq. 8, for x_t = alpha (x0 + sigma_edm eps); var is the variance of x_t.
    var = alpha**2 * sigma_data**2 + sigma**2
    return (sigma * x0 - (alpha * sigma_data**2) * eps) / (sigma_data * var.sqrt())


def to_x0_eps(kind: Kind, raw: Image, x_t: Image, logsnr: LogSNR, sigma_data: float) -> tuple[Image, Image]:
    """Both estimates from a network's output, each computed directly: the inverse of ``target``."""
    if kind == "eps":
        return x0_from_eps(x_t, raw, logsnr), raw
    if kind == "x0":
        return raw, eps_from_x0(x_t, raw, logsnr)
    alpha, sigma = _alpha_sigma_like(logsnr, x_t)
    if kind == "v":
        return alpha * x_t - sigma * raw, sigma * x_t + alpha * raw
    # Karras et al. 2022, table 1: c_skip and c_out, multiplied out for the variance-preserving x_t.
    var = alpha**2 * sigma_data**2 + sigma**2
    scaled = raw * (sigma_data / var.sqrt())
    return (alpha * sigma_data**2 / var) * x_t + sigma * scaled, (sigma / var) * x_t - alpha * scaled


def posterior_coefficients(
    logsnr_t: Float[Tensor, "..."], logsnr_s: Float[Tensor, "..."]
) -> tuple[Float64[Tensor, "..."], Float64[Tensor, "..."], Float64[Tensor, "..."], Float64[Tensor, "..."]]:
    """q(x_s | x_t, x0) for a cleaner level s > t: Kingma et al. 2021, appendix A, in float64.

    Returns:
        Factor of x_t and of x0 in the mean; log-variance small (of this posterior) and large (of q(x_t | x_s); the
        "beta" of Ho et al. 2020, section 3.2). At logsnr_s = +inf: 0, 1, -inf, ln sigma_t^2.
    """
    logsnr_t, logsnr_s = logsnr_t.double(), logsnr_s.double()
    gap = logsnr_t - logsnr_s  # below 0
    share = -torch.expm1(gap)  # 1 - SNR_t / SNR_s
    alpha_t, alpha_s = torch.sigmoid(logsnr_t).sqrt(), torch.sigmoid(logsnr_s).sqrt()
    logvar_small = F.logsigmoid(-logsnr_s) + share.log()
    logvar_large = F.logsigmoid(-logsnr_t) + share.log()
    return gap.exp() * alpha_s / alpha_t, alpha_s * share, logvar_small, logvar_large


def posterior(x_t: Image, x0: Image, logsnr_t: LogSNR, logsnr_s: LogSNR) -> tuple[Image, PerImage, PerImage]:
    """Mean of q(x_s | x_t, x0), and its small and its large log-variance."""
    from_x_t, from_x0, small, large = posterior_coefficients(logsnr_t, logsnr_s)
    mean = expand(from_x_t, x_t) * x_t + expand(from_x0, x_t) * x0
    return mean, expand(small, x_t), expand(large, x_t)


def logvar_from_fraction(fraction: Image, logvar_small: Broadcast, logvar_large: Broadcast) -> Image:
    """Nichol & Dhariwal 2021, eq. 15: between the two in the log domain; 0 is small, 1 is large. Both finite."""
    return torch.lerp(logvar_small, logvar_large, fraction)


def gaussian_kl(mean1: Image, logvar1: Broadcast, mean2: Image, logvar2: Broadcast) -> Image:
    """KL(N1 || N2) per element, in nats."""
    gap = logvar1 - logvar2
    return 0.5 * (torch.expm1(gap) - gap + (mean1 - mean2) ** 2 * torch.exp(-logvar2))


def discretized_gaussian_log_likelihood(x0: Image, mean: Image, log_scale: Image, levels: int = 256) -> Image:
    """Log-probability (nats, per element) of quantised values under a Gaussian rounded to the ``levels`` values.

    ``x0``: multiples of 2 / (levels - 1) from -1 to 1; the outermost bins reach to infinity (Ho et al. 2020, eq. 13).
    ``log_scale``: ln of the Gaussian's standard deviation.
    """
    half, precision = 1 / (levels - 1), torch.exp(-log_scale)
    upper, lower = (x0 + half - mean) * precision, (x0 - half - mean) * precision
    middle = -((x0 - mean) * precision).abs()  # every bin is mirrored into the lower tail, where nothing cancels
    inner = _log_mass(middle - half * precision, middle + half * precision)
    outer = _log_cdf(torch.where(x0 < 0, upper, -lower))
    return torch.where(x0.abs() > 1 - half, outer, inner)


def _log_cdf(x: Image) -> Image:
    """ln Phi(x). (The gradient of torch.special.log_ndtr in float32 is lost to cancellation in the tail.)"""
    low, high = x.clamp(max=0.0), x.clamp(min=0.0)
    tail = -0.5 * low**2 + torch.log(0.5 * torch.special.erfcx(-low * _SQRT_HALF))
    return torch.where(x > 0, torch.log1p(-0.5 * torch.erfc(high * _SQRT_HALF)), tail)


def _log_mass(low: Image, high: Image) -> Image:
    """ln(Phi(high) - Phi(low)) for low + high <= 0 and low < high."""
    near = high > 0  # zero lies inside
    one = torch.ones_like(high)
    rise = torch.erf(torch.where(near, high, one) * _SQRT_HALF) + torch.erf(torch.where(near, -low, one) * _SQRT_HALF)
    edge = high.clamp(max=0.0)
    drop = torch.where(near, one, (high - low) * (-low - high) / 2)  # (low^2 - high^2) / 2
    far = torch.special.erfcx(-edge * _SQRT_HALF) - torch.special.erfcx(
        -torch.where(near, -one, low) * _SQRT_HALF
    ) * torch.exp(-drop)
    tiny = torch.finfo(high.dtype).tiny
    return torch.where(near, torch.log(0.5 * rise), -0.5 * edge**2 + torch.log(0.5 * far.clamp(min=tiny)))
