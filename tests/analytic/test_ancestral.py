"""Ancestral sampling on Gaussian data: the sampler is affine in its noises, so its law is known without Monte Carlo."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from tests.analytic.exact import GaussianDenoiser

from cdm.noise.schedule import cosine_table
from cdm.samplers import SAMPLERS, ddpm, dpmpp, drain, make_grid
from cdm.types import Cond

START, END, MEAN = -8.0, 6.0, 0.3
COUNTS = [1, 2, 5, 20, 100]


def law(denoiser, grid, sampler, start_mean, start_var):
    """Mean and variance of the output, from the sampler's response to each of its noises, one per image of a batch.

    sampler: or the variance of ``ddpm``.
    """
    steps = len(grid) - 1
    count = steps + 2  # no input at all; x alone; the noise of each step alone
    x = torch.zeros(count, 1, 1, 1, dtype=torch.float64)
    x[1] = 1

    def noise(i):
        unit = torch.zeros_like(x)
        unit[2 + i] = 1
        return unit

    if isinstance(sampler, str):
        sampler = partial(ddpm, variance=sampler)
    out = drain(sampler(denoiser, x, grid, Cond(), noise=noise)).flatten()
    factors = out[1:] - out[0]
    return (out[0] + factors[0] * start_mean).item(), (factors[0] ** 2 * start_var + (factors[1:] ** 2).sum()).item()


def levels(logsnr):
    return 1 / (1 + math.exp(-logsnr)), 1 / (1 + math.exp(logsnr))  # alpha^2, sigma^2


def data_law(logsnr, std):
    alpha2, sigma2 = levels(logsnr)
    return math.sqrt(alpha2) * MEAN, alpha2 * std**2 + sigma2


def recursion(grid, std, variance):
    """The same law by propagating a mean and a variance through textbook DDPM steps (Ho et al. 2020, eqs. 7 and 11)."""
    mean, var = data_law(grid[0], std)
    for logsnr_t, logsnr_s in pairwise(grid):
        (alpha2_t, sigma2_t), (alpha2_s, sigma2_s) = levels(logsnr_t), levels(logsnr_s)
        alpha2_ts = alpha2_t / alpha2_s
        beta = 1 - alpha2_ts
        gain = math.sqrt(alpha2_t) * std**2 / (alpha2_t * std**2 + sigma2_t)  # E[x0 | x_t] = shift + gain x_t
        shift = MEAN * (1 - gain * math.sqrt(alpha2_t))
        from_x0 = math.sqrt(alpha2_s) * beta / sigma2_t
        slope = math.sqrt(alpha2_ts) * sigma2_s / sigma2_t + from_x0 * gain
        mean = slope * mean + from_x0 * shift
        var = slope**2 * var + (beta if variance == "large" else beta * sigma2_s / sigma2_t)
    return mean, var


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("variance", ["small", "large"])
def test_mean_and_variance_are_those_of_the_textbook_recursion(variance, count):
    grid = torch.linspace(START, END, count + 1, dtype=torch.float64)
    got = law(GaussianDenoiser((MEAN, 0.5)), grid, variance, *data_law(START, 0.5))
    assert got == pytest.approx(recursion(grid.tolist(), 0.5, variance), rel=1e-9)


@pytest.mark.parametrize("std", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("count", COUNTS)
def test_the_optimal_fraction_is_exact_at_every_step_count(count, std):
    grid = torch.linspace(START, END, count + 1, dtype=torch.float64)
    got = law(GaussianDenoiser((MEAN, std), grid), grid, "learned", *data_law(START, std))
    assert got == pytest.approx(data_law(END, std), rel=1e-9)


@pytest.mark.parametrize("count", [1, 4, 25])
def test_the_optimal_fraction_is_exact_on_a_table(count):
    """To +inf the last step gives x0_hat, whose variance is less than the data's by that of x0 given the last level."""
    table = cosine_table(1000)
    grid = make_grid(table[-1].item(), table[0].item(), count, table=table)
    alpha2, sigma2 = levels(grid[-2].item())
    marginal = alpha2 * 0.5**2 + sigma2
    got = law(GaussianDenoiser((MEAN, 0.5), grid), grid, "learned", *data_law(grid[0].item(), 0.5))
    assert got == pytest.approx((MEAN, alpha2 * 0.5**4 / marginal), rel=1e-9)


@pytest.mark.parametrize("std", [0.05, 0.5, 0.95])
def test_small_is_too_narrow_large_is_too_wide_and_both_converge(std):
    _, exact = data_law(END, std)
    for variance, sign in (("small", -1), ("large", 1)):
        gaps = []
        for count in (50, 100, 200):
            grid = torch.linspace(START, END, count + 1, dtype=torch.float64)
            gaps.append(sign * (law(GaussianDenoiser((MEAN, std)), grid, variance, *data_law(START, std))[1] - exact))
        assert gaps[0] > gaps[1] > gaps[2] > 0
        assert gaps[1] / gaps[2] == pytest.approx(2, abs=0.5)  # first order


@pytest.mark.parametrize("variance", ["small", "large"])
def test_fixed_variances_are_optimal_for_their_own_data(variance):
    """Ho et al. 2020, section 3.2: the small one for a point, the large one for N(0, 1)."""
    std = {"small": 0.0, "large": 1.0}[variance]
    grid = torch.linspace(START, END, 4, dtype=torch.float64)
    got = law(GaussianDenoiser((MEAN, std)), grid, variance, *data_law(START, std))
    assert got == pytest.approx(data_law(END, std), rel=1e-9)


@pytest.mark.parametrize("std", [0.05, 0.5, 0.95])
@pytest.mark.parametrize(
    ("sampler", "order"),
    [(partial(dpmpp, tau=0.5), 2), (SAMPLERS["dpmpp_sde"], 2), (SAMPLERS["heun_churn"], 2), (ddpm, 1)],
)
def test_mean_and_variance_converge_at_their_order(sampler, order, std):
    """The larger of both errors, the steps being doubled."""
    exact = data_law(END, std)
    counts, errors = (100, 200, 400), []
    for count in counts:
        grid = torch.linspace(START, END, count + 1, dtype=torch.float64)
        got = law(GaussianDenoiser((MEAN, std)), grid, sampler, *data_law(START, std))
        errors.append(max(abs(a - b) for a, b in zip(got, exact, strict=True)))
    slope = -math.log(errors[-1] / errors[0]) / math.log(counts[-1] / counts[0])
    assert slope == pytest.approx(order, abs=0.35), errors


def test_the_first_step_of_the_sde_solver_is_ancestral():
    grid = torch.tensor([START, 0.0, END], dtype=torch.float64)
    laws = [
        law(GaussianDenoiser((MEAN, 0.5)), cut, sampler, *data_law(START, 0.5))
        for cut in (grid[:2], grid)
        for sampler in (SAMPLERS["dpmpp_sde"], "small")
    ]
    assert laws[0] == pytest.approx(laws[1], rel=1e-12)
    assert laws[2] != pytest.approx(laws[3], rel=1e-3)
