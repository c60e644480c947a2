"""Exact denoisers and closed-form laws: the truth that samplers and cascades are held against.

Everything is elementwise Gaussian or a mixture of Gaussians, so E[x0 | x_t] is known without a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from cdm.noise.process import alpha_sigma
from cdm.rng import Purpose, Rng
from cdm.types import Cond, Prediction

Law = Callable[[Cond], tuple[Tensor, Tensor]]
"""Conditioning to mean and standard deviation of x0, each broadcastable to ``[B, C, H, W]``."""


def marginal_variance(std: Tensor, logsnr: Tensor) -> Tensor:
    """Variance of x_t for data of this standard deviation."""
    alpha, sigma = alpha_sigma(logsnr)
    return alpha**2 * std**2 + sigma**2


class GaussianDenoiser:
    """E[x0 | x_t, cond] for x0 | cond ~ N(mean, std^2), elementwise.

    ``law`` may be a plain (mean, std) pair of floats. With a ``grid`` it also predicts the fraction that makes the
    reverse variance of the step from each of the grid's levels to the next one exact.
    """

    def __init__(
        self,
        law: Law | tuple[float, float],
        grid: Tensor | None = None,
        table: Tensor | None = None,
        logsnr_range: tuple[float, float] = (-12.0, 12.0),
    ) -> None:
        self.law = law
        self.grid = grid
        self.table = table
        self.logsnr_range = logsnr_range if table is None else (table[-1].item(), table[0].item())

    def moments(self, x_t: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        pair = self.law(cond) if callable(self.law) else self.law
        mean, std = (torch.as_tensor(value, dtype=x_t.dtype) for value in pair)
        return mean, std

    def __call__(self, x_t: Tensor, logsnr: Tensor, cond: Cond) -> Prediction:
        mean, std = self.moments(x_t, cond)
        level = logsnr.to(x_t.dtype).view(-1, 1, 1, 1)
        alpha, sigma = alpha_sigma(level)
        whitened = (x_t - alpha * mean) / marginal_variance(std, level)
        fraction = None
        if self.grid is not None:
            levels, place = logsnr.unique(return_inverse=True)
            fractions = [self._fraction(std, value).expand(1, *x_t.shape[1:]) for value in levels.tolist()]
            fraction = torch.cat(fractions).to(x_t.dtype)[place]
        return Prediction(mean + alpha * std**2 * whitened, sigma * whitened, fraction)

    def _fraction(self, std: Tensor, logsnr_t: float) -> Tensor:
        """Where the true variance of x_s | x_t lies between small and large, by conditioning the joint Gaussian."""
        i = int((self.grid - logsnr_t).abs().argmin())
        if torch.isinf(self.grid[i + 1]):
            return torch.zeros(())
        (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(self.grid[i]), alpha_sigma(self.grid[i + 1])
        ratio = alpha_t / alpha_s
        large = sigma_t**2 - ratio**2 * sigma_s**2
        small = large * sigma_s**2 / sigma_t**2
        var_s, var_t = alpha_s**2 * std**2 + sigma_s**2, alpha_t**2 * std**2 + sigma_t**2
        true = var_s - (ratio * var_s) ** 2 / var_t
        return torch.log(true / small) / torch.log(large / small)


class FunctionDenoiser:
    """A plain function as a denoiser."""

    table = None
    logsnr_range = (-12.0, 12.0)

    def __init__(self, function: Callable[[Tensor, Tensor, Cond], Prediction]) -> None:
        self.function = function

    def __call__(self, x_t: Tensor, logsnr: Tensor, cond: Cond) -> Prediction:
        return self.function(x_t, logsnr, cond)


class MixtureDenoiser:
    """E[x0 | x_t] for x0 ~ sum_k weights_k N(means_k, stds_k^2 I): smooth, non-linear, exact.

    means: ``[K, C, H, W]``; stds, weights: ``[K]``.
    """

    table = None
    logsnr_range = (-12.0, 12.0)

    def __init__(self, means: Tensor, stds: Tensor, weights: Tensor) -> None:
        self.means, self.stds, self.weights = means, stds, weights

    def __call__(self, x_t: Tensor, logsnr: Tensor, cond: Cond) -> Prediction:
        del cond
        alpha, sigma = alpha_sigma(logsnr.to(x_t.dtype).view(-1, 1, 1, 1, 1))  # [B, 1, 1, 1, 1]
        means, stds = self.means.to(x_t.dtype), self.stds.to(x_t.dtype).view(1, -1, 1, 1, 1)
        var = alpha**2 * stds**2 + sigma**2
        whitened = (x_t[:, None] - alpha * means[None]) / var  # [B, K, C, H, W]
        log_likelihood = -0.5 * (whitened**2 * var + var.log()).sum((2, 3, 4)) + self.weights.to(x_t.dtype).log()
        posterior = torch.softmax(log_likelihood, 1)[:, :, None, None, None]
        x0 = (posterior * (means[None] + alpha * stds**2 * whitened)).sum(1)
        eps = (posterior * sigma * whitened).sum(1)
        return Prediction(x0, eps)


def random_mixture(components: int = 5, shape: tuple[int, int, int] = (1, 2, 2), seed: int = 0) -> MixtureDenoiser:
    """A mixture whose components stand apart inside [-1, 1], float64."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.rand(components, *shape, generator=generator, dtype=torch.float64) * 1.8 - 0.9
    stds = torch.rand(components, generator=generator, dtype=torch.float64) * 0.2 + 0.1
    weights = torch.rand(components, generator=generator, dtype=torch.float64) + 0.2
    return MixtureDenoiser(means, stds, weights / weights.sum())


def gaussian_ode(x_t: Tensor, mean: float, std: float, logsnr_t: float, logsnr_s: float) -> Tensor:
    """The probability-flow ODE from x_t to another level for N(mean, std^2): the whitened value never changes."""
    t, s = (torch.tensor(value, dtype=torch.float64) for value in (logsnr_t, logsnr_s))
    scale = (marginal_variance(torch.tensor(std), s) / marginal_variance(torch.tensor(std), t)).sqrt()
    return alpha_sigma(s)[0] * mean + (x_t - alpha_sigma(t)[0] * mean) * scale


class UnitRng(Rng):
    """Draws zeros, but for one 1 in image k: the k-th of all numbers that a cascade asks for (image 0 has none)."""

    places: ClassVar[dict[tuple[int, int, int], int]] = {}
    count: ClassVar[int] = 0

    @classmethod
    def forget(cls) -> None:
        """Before another cascade."""
        cls.places, cls.count = {}, 0

    def normal(self, purpose: Purpose, index: Tensor, shape: tuple[int, ...], step: int = 0) -> Tensor:
        key, size = (self.stage, int(purpose), step), math.prod(shape)
        if key not in UnitRng.places:
            UnitRng.places[key] = UnitRng.count
            UnitRng.count += size
        hot = index[:, None] - 1 - UnitRng.places[key] == torch.arange(size)
        return hot.double().view(len(index), *shape)
