"""The forward process: conversions against definitions, the posterior against conditioning by brute force."""

import math

import pytest
import torch

from cdm.noise.process import (
    add_noise,
    alpha_sigma,
    discretized_gaussian_log_likelihood,
    eps_from_x0,
    gaussian_kl,
    logvar_from_fraction,
    posterior,
    posterior_coefficients,
    target,
    to_x0_eps,
    x0_from_eps,
)

KINDS = ["eps", "x0", "v", "edm"]
LEVELS = torch.linspace(-15, 15, 31, dtype=torch.float64)
INF = float("inf")


def draw(seed=0, batch=31, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 2, 3, 3, generator=generator, dtype=torch.float64).to(dtype)


def scalar(value):
    return torch.full((1, 1, 1, 1), value, dtype=torch.float64)


def test_alpha_and_sigma():
    alpha, sigma = alpha_sigma(LEVELS)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=0, atol=1e-15)
    torch.testing.assert_close(2 * (alpha / sigma).log(), LEVELS, rtol=0, atol=1e-12)
    ends = alpha_sigma(torch.tensor([INF, -INF]))
    assert ends[0].tolist() == [1, 0] and ends[1].tolist() == [0, 1]


def test_both_tails_are_exact_in_float32():
    """The reason for sigmoid(-logsnr): 1 - alpha^2 has no correct digit in float32 beyond logsnr 17."""
    levels = torch.tensor([-40.0, -20.0, 20.0, 40.0])
    for got, exact in zip(alpha_sigma(levels), alpha_sigma(levels.double()), strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_target_and_back(kind):
    x0, eps = draw(0), draw(1)
    x_t = add_noise(x0, eps, LEVELS)
    got_x0, got_eps = to_x0_eps(kind, target(kind, x0, eps, LEVELS, 0.5), x_t, LEVELS, 0.5)
    torch.testing.assert_close(got_x0, x0, rtol=0, atol=1e-10)
    torch.testing.assert_close(got_eps, eps, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_any_output_gives_estimates_that_rebuild_x_t(kind):
    raw, x_t = draw(2), draw(3)
    x0, eps = to_x0_eps(kind, raw, x_t, LEVELS, 0.5)
    torch.testing.assert_close(add_noise(x0, eps, LEVELS), x_t, rtol=0, atol=1e-10)
    torch.testing.assert_close(target(kind, x0, eps, LEVELS, 0.5), raw, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["v", "edm"])
def test_direct_estimates_keep_float32_precision_at_both_ends(kind):
    """x0 through eps would lose a factor sigma / alpha = 1,800 at logsnr -15, eps through x0 the same at +15."""
    x0, eps = draw(0, dtype=torch.float32), draw(1, dtype=torch.float32)
    levels = LEVELS.float()
    raw = target(kind, x0, eps, levels, 0.5)
    got_x0, got_eps = to_x0_eps(kind, raw, add_noise(x0, eps, levels), levels, 0.5)
    torch.testing.assert_close(got_x0, x0, rtol=0, atol=5e-6)
    torch.testing.assert_close(got_eps, eps, rtol=0, atol=5e-6)


def test_x0_and_eps_are_inverse():
    x0, eps = draw(0), draw(1)
    x_t = add_noise(x0, eps, LEVELS)
    torch.testing.assert_close(x0_from_eps(x_t, eps, LEVELS), x0, rtol=0, atol=1e-10)
    torch.testing.assert_close(eps_from_x0(x_t, x0, LEVELS), eps, rtol=0, atol=1e-10)


def test_v_is_the_derivative_along_the_angle():
    """x_t = cos(a) x0 + sin(a) eps has derivative v in the angle a."""
    x0, eps = draw(0), draw(1)
    angle = torch.atan(torch.exp(-LEVELS / 2)).view(-1, 1, 1, 1)
    expected = -torch.sin(angle) * x0 + torch.cos(angle) * eps
    torch.testing.assert_close(target("v", x0, eps, LEVELS, 0.5), expected, rtol=0, atol=1e-12)


def test_edm_is_edm():
    """Karras et al. 2022, eq. 7 and table 1, in their own coordinates x = x0 + sigma eps."""
    raw, x_t, data = draw(2), draw(3), 0.5
    alpha, _ = alpha_sigma(LEVELS.view(-1, 1, 1, 1))
    sigma = torch.exp(-LEVELS / 2).view(-1, 1, 1, 1)
    skip, out = data**2 / (sigma**2 + data**2), sigma * data / (sigma**2 + data**2).sqrt()
    x0, _ = to_x0_eps("edm", raw, x_t, LEVELS, data)
    torch.testing.assert_close(x0, skip * (x_t / alpha) + out * raw, rtol=1e-9, atol=1e-9)


def test_edm_target_has_unit_variance():
    """For independent x0 ~ (0, sigma_data^2) and eps: the squared factors add up to 1 at every level."""
    one, zero = (
        torch.ones(len(LEVELS), 1, 1, 1, dtype=torch.float64),
        torch.zeros(len(LEVELS), 1, 1, 1, dtype=torch.float64),
    )
    from_x0, from_eps = target("edm", one, zero, LEVELS, 0.5), target("edm", zero, one, LEVELS, 0.5)
    torch.testing.assert_close((0.5 * from_x0) ** 2 + from_eps**2, one, rtol=0, atol=1e-12)


@pytest.mark.parametrize("logsnr_s", [-8.0, -1.0, 0.5, 9.0])
@pytest.mark.parametrize("gap", [0.01, 1.0, 6.0])
def test_posterior_is_conditioning_of_the_joint_gaussian(logsnr_s, gap):
    """Given x0, (x_s, x_t) is Gaussian; the forward chain s -> t multiplies by alpha_t / alpha_s and adds noise."""
    logsnr_t = torch.tensor([logsnr_s - gap], dtype=torch.float64)
    level_s = torch.tensor([logsnr_s], dtype=torch.float64)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(logsnr_t), alpha_sigma(level_s)
    ratio = alpha_t / alpha_s
    covariance = torch.tensor([[sigma_s**2, ratio * sigma_s**2], [ratio * sigma_s**2, sigma_t**2]], dtype=torch.float64)
    x0, x_t = scalar(0.3), scalar(-0.7)
    gain = covariance[0, 1] / covariance[1, 1]
    mean, small, large = posterior(x_t, x0, logsnr_t, level_s)
    torch.testing.assert_close(mean, alpha_s * x0 + gain * (x_t - alpha_t * x0), rtol=1e-10, atol=1e-12)
    assert small.exp().item() == pytest.approx((covariance[0, 0] - gain * covariance[0, 1]).item(), rel=1e-9)
    assert large.exp().item() == pytest.approx((sigma_t**2 - ratio**2 * sigma_s**2).item(), rel=1e-9)


def test_posterior_at_infinity_is_x0():
    x0, x_t = draw(0, 2, torch.float32), draw(1, 2, torch.float32)
    mean, small, large = posterior(x_t, x0, torch.tensor([-9.0, 9.0]), torch.tensor([INF, INF]))
    assert torch.equal(mean, x0)
    assert (small == -INF).all()
    expected = torch.nn.functional.logsigmoid(torch.tensor([9.0, -9.0])).view(2, 1, 1, 1)
    torch.testing.assert_close(large, expected)


def test_posterior_of_a_tiny_step():
    """expm1, not 1 - exp: the variance of a step of 1e-12 in log-SNR is right to nine digits."""
    level = torch.tensor([0.0], dtype=torch.float64)
    _, from_x0, _, large = posterior_coefficients(level - 1e-12, level)
    assert from_x0.item() == pytest.approx(math.sqrt(0.5) * 1e-12, rel=1e-9, abs=0)
    assert large.exp().item() == pytest.approx(0.5e-12, rel=1e-9, abs=0)


def test_fraction_reaches_both_variances():
    small, large = scalar(-5.0), scalar(-1.0)
    for fraction, expected in ((0.0, -5.0), (1.0, -1.0), (0.25, -4.0)):
        assert logvar_from_fraction(scalar(fraction), small, large).item() == expected


def test_gaussian_kl():
    mean1, logvar1, mean2, logvar2 = draw(0), draw(1), draw(2), draw(3)
    normal = lambda mean, logvar: torch.distributions.Normal(mean, (0.5 * logvar).exp())  # noqa: E731
    expected = torch.distributions.kl_divergence(normal(mean1, logvar1), normal(mean2, logvar2))
    torch.testing.assert_close(gaussian_kl(mean1, logvar1, mean2, logvar2), expected)
    assert gaussian_kl(mean1, logvar1, mean1, logvar1).abs().max() == 0


def all_values(levels):
    return torch.linspace(-1, 1, levels, dtype=torch.float64).view(1, 1, 1, -1)


@pytest.mark.parametrize("levels", [256, 4096])
@pytest.mark.parametrize("log_scale", [-9.0, -5.0, -1.0, 2.0])
@pytest.mark.parametrize("mean", [-1.3, -0.2, 0.0, 0.999])
def test_discretised_likelihood_sums_to_one(mean, log_scale, levels):
    values = all_values(levels)
    full = torch.full_like(values, mean), torch.full_like(values, log_scale)
    log_probability = discretized_gaussian_log_likelihood(values, *full, levels)
    assert log_probability.exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_discretised_likelihood_is_the_mass_of_the_bin():
    values, mean, scale = all_values(256), 0.1, 0.05
    normal = torch.distributions.Normal(torch.tensor(mean, dtype=torch.float64), scale)
    expected = normal.cdf(values + 1 / 255) - normal.cdf(values - 1 / 255)
    full = torch.full_like(values, mean), torch.full_like(values, math.log(scale))
    got = discretized_gaussian_log_likelihood(values, *full).exp()
    torch.testing.assert_close(got[..., 1:-1], expected[..., 1:-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("log_scale", [-12.0, -6.0, -1.0, 3.0])
def test_discretised_likelihood_in_float32(log_scale):
    """Values and gradients, far tails included, against float64."""
    values = all_values(256)
    results = []
    for dtype in (torch.float32, torch.float64):
        mean = torch.full_like(values, 0.7, dtype=dtype).requires_grad_()
        scale = torch.full_like(values, log_scale, dtype=dtype).requires_grad_()
        log_probability = discretized_gaussian_log_likelihood(values.to(dtype), mean, scale)
        results.append((log_probability, *torch.autograd.grad(log_probability.sum(), (mean, scale))))
    for single, double in zip(*results, strict=True):
        assert double.isfinite().all()
        size = double.abs().max()
        torch.testing.assert_close(single.double(), double, rtol=2e-3, atol=2e-3 * size.item() if size < 100 else 0.01)


def test_discretised_likelihood_has_the_right_gradient():
    values = all_values(256)[..., ::15]
    mean = torch.full_like(values, 0.4).requires_grad_()
    scale = torch.full_like(values, -2.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, s: discretized_gaussian_log_likelihood(values, m, s), (mean, scale))
