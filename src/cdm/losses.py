"""The training loss of one stage, and its variational bound.

Everything drawn here is a pure function of the sample's position in the training stream (``Batch.index``).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, exp, log

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cdm.conditioning import Augmented, augment_for_training, make_low_res
from cdm.denoiser import Denoiser
from cdm.noise.process import (
    add_noise,
    alpha_sigma,
    discretized_gaussian_log_likelihood,
    gaussian_kl,
    logvar_from_fraction,
    posterior,
    posterior_coefficients,
    target,
)
from cdm.noise.schedule import nearest_entry
from cdm.noise.weighting import loss_weight, sample_logsnr
from cdm.rng import Purpose, Rng
from cdm.stage import Stage
from cdm.types import Batch, Cond, Dropout, Image, LogSNR, Prediction

_GOLDEN_RATIO = 0.6180339887498949


@dataclass(frozen=True)
class Noised:
    """A training batch made ready for the denoiser. ``augmented`` is None for a base stage."""

    x_t: Image
    eps: Image
    logsnr: LogSNR
    cond: Cond
    augmented: Augmented | None


@dataclass(frozen=True)
class LossOutput:
    """loss: ``[B]``, what is minimised. mse: ``[B]``, mean squared error on the stage's own target, unweighted."""

    loss: Float[Tensor, " b"]
    mse: Float[Tensor, " b"]
    logsnr: LogSNR


def training_levels(rng: Rng, index: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
    """float64 in (0, 1) per position: a golden-ratio sequence with a random start.

    Uniform, and any run of neighbours is spread evenly, so a batch covers all noise levels: less variance of the loss
    than independent draws (Kingma et al. 2021, appendix I.1), yet a pure function of the position.
    """
    start = rng.uniform(Purpose.TRAIN_LEVEL, torch.zeros_like(index[:1]))
    return (index.double() * _GOLDEN_RATIO + start).frac().clamp(1e-9, 1 - 1e-9)


def make_cond(stage: Stage, batch: Batch, rng: Rng) -> tuple[Cond, Augmented | None]:
    """Labels with label dropout, and the augmented low-res image of an SR stage."""
    config, labels = stage.config, batch.labels
    if config.net.num_labels == 0:  # a stage without classes in a cascade that has them
        labels = None
    if labels is not None and config.label_dropout > 0:
        dropped = rng.uniform(Purpose.LABEL_DROPOUT, batch.index.to(labels.device)) < config.label_dropout
        labels = torch.where(dropped, stage.null_label, labels)
    if config.is_base:
        return Cond(labels), None
    low_res = make_low_res(batch.x0, batch.x0.shape[-1] // config.factor, stage.levels)
    augmented = augment_for_training(config.augmentation, low_res, batch.x0.shape[-1], rng, batch.index)
    return Cond(labels, augmented.up, augmented.aug_logsnr), augmented


def noise_batch(stage: Stage, batch: Batch, rng: Rng, logsnr: LogSNR | None = None) -> Noised:
    """Draw a noise level per sample (or take ``logsnr``) and noise the targets, on the device of ``batch.x0``."""
    config, index = stage.config, batch.index.to(batch.x0.device)
    cond, augmented = make_cond(stage, batch, rng)
    if logsnr is None:
        logsnr = sample_logsnr(config.density, stage.denoiser.schedule, training_levels(rng, index))
    eps = rng.normal(Purpose.TRAIN_NOISE, index, tuple(batch.x0.shape[1:]))
    return Noised(add_noise(batch.x0, eps, logsnr), eps, logsnr, cond, augmented)


def stage_loss(stage: Stage, batch: Batch, rng: Rng, dropout: Dropout | None = None) -> LossOutput:
    """Weighted squared error on the stage's own target; with learned variances the hybrid loss
    L_simple + 0.001 L_vlb (Nichol & Dhariwal 2021, eq. 16)."""
    return noised_loss(stage, batch, noise_batch(stage, batch, rng), dropout)


def noised_loss(stage: Stage, batch: Batch, noised: Noised, dropout: Dropout | None = None) -> LossOutput:
    """``stage_loss`` of a batch that is noised already."""
    config, denoiser = stage.config, stage.denoiser
    raw, fraction = denoiser.raw(noised.x_t, noised.logsnr, noised.cond, dropout)
    wanted = target(config.prediction, batch.x0, noised.eps, noised.logsnr, config.sigma_data)
    mse = (raw - wanted).square().flatten(1).mean(1)
    weight = loss_weight(
        config.loss, config.prediction, noised.logsnr, config.density, denoiser.schedule, config.sigma_data
    )
    loss = weight.to(mse) * mse
    if fraction is not None:
        assert denoiser.table is not None
        # the mean learns from L_simple alone
        frozen = denoiser.predict(raw.detach(), fraction, noised.x_t, noised.logsnr)
        bound = vlb_term(denoiser, frozen, batch.x0, noised.x_t, noised.logsnr, stage.levels)
        loss = loss + config.loss.vlb_weight * len(denoiser.table) * bound
    return LossOutput(loss, mse, noised.logsnr)


def vlb_term(
    denoiser: Denoiser, prediction: Prediction, x0: Image, x_t: Image, logsnr: LogSNR, levels: int = 256
) -> Float[Tensor, " b"]:
    """One term of the variational bound per sample, in bits per dimension (Ho et al. 2020, eq. 5).

    For entry i > 0 of the table: KL(q(x_{i-1} | x_i, x0) || p(x_{i-1} | x_i)); for entry 0 the negative log-likelihood
    of the discretised image. The variance of entry 0 is that of entry 1 (Nichol & Dhariwal 2021, section 3.1).
    """
    table = denoiser.table
    assert table is not None
    entry = nearest_entry(table, logsnr)
    levels_before = torch.cat([table.new_tensor([torch.inf]), table[:-1]]).to(x_t.device)
    now, before = table.to(x_t.device)[entry], levels_before[entry]
    mean_true, small, large = posterior(x_t, x0, now, before)
    mean, _, _ = posterior(x_t, prediction.x0, now, before)
    small = small.clamp(min=float(posterior_coefficients(table[1], table[0])[2]))
    logvar = large if prediction.var_fraction is None else logvar_from_fraction(prediction.var_fraction, small, large)
    logvar = logvar.expand_as(x0)
    kl = gaussian_kl(mean_true, small, mean, logvar)
    last = -discretized_gaussian_log_likelihood(x0, mean, 0.5 * logvar, levels)
    return torch.where(entry == 0, last.flatten(1).mean(1), kl.flatten(1).mean(1)) / log(2)


@torch.no_grad()
def prior_bits_per_dim(denoiser: Denoiser, x0: Image) -> Float[Tensor, " b"]:
    """KL(q(x_T | x0) || N(0, 1)) in bits per dimension, at the noisiest level: the last piece of the bound."""
    noisiest = denoiser.logsnr_range[0] if denoiser.table is None else float(denoiser.table[-1])
    logsnr = torch.full((len(x0),), noisiest, dtype=torch.float32, device=x0.device)
    mean = add_noise(x0, torch.zeros_like(x0), logsnr)
    logvar = torch.nn.functional.logsigmoid(-logsnr)[:, None, None, None].expand_as(x0)
    zero = torch.zeros_like(x0)
    return gaussian_kl(mean, logvar, zero, zero).flatten(1).mean(1) / log(2)


def diffusion_rate(denoiser: Denoiser, prediction: Prediction, eps: Image) -> Float[Tensor, " b"]:
    """Bits per dimension per unit of log-SNR, ||eps - eps_hat||^2 / 2: its integral over log-SNR is the bound's middle
    piece in continuous time (Kingma et al. 2021, section 5)."""
    assert denoiser.table is None
    return (prediction.eps - eps).square().flatten(1).mean(1) / (2 * log(2))


def reconstruction_bits_per_dim(x0: Image, x_t: Image, logsnr: float, levels: int = 256) -> Float[Tensor, " b"]:
    """-log2 p(x0 | x_t) at the cleanest level, per dimension: the value of each pixel is told from its noisy one alone,
    all ``levels`` values being equally likely before (Kingma et al. 2021, section 3.3).

    ``x0``: multiples of 2 / (levels - 1) from -1 to 1.
    """
    step, spread = 2 / (levels - 1), exp(-logsnr / 2)  # of x_t / alpha about x0
    seen = x_t.double() / float(alpha_sigma(torch.tensor(logsnr, dtype=torch.float64))[0])
    nearest = ((seen + 1) / step).round().clamp(0, levels - 1)
    total = torch.zeros_like(seen)
    reach = min(levels - 1, ceil(8 * spread / step) + 1)  # values further off have no weight in float64's eyes
    for offset in range(-reach, reach + 1):
        value = nearest + offset
        weight = torch.exp(-0.5 * ((seen - (value * step - 1)) / spread) ** 2)
        total += torch.where((value >= 0) & (value <= levels - 1), weight, 0.0)
    told = -0.5 * ((seen - x0.double()) / spread) ** 2 - total.log()
    return -told.flatten(1).mean(1) / log(2)
