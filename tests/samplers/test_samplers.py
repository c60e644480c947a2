"""What holds for every sampler, on an exact non-linear denoiser."""

import math
from functools import partial

import pytest
import torch
from tests.analytic.exact import FunctionDenoiser, GaussianDenoiser, random_mixture

from cdm.errors import UserError
from cdm.noise.process import eps_from_x0, posterior, posterior_coefficients
from cdm.samplers import SAMPLERS, ddim, ddpm, dpmpp, drain, heun, make_grid
from cdm.samplers.base import sde_step
from cdm.types import Cond, Prediction

MIXTURE = random_mixture()
GRID = make_grid(-10.0, 9.0, 12)
ALL = {**SAMPLERS, "ddpm-large": partial(ddpm, variance="large")}
every_sampler = pytest.mark.parametrize("sampler", ALL.values(), ids=ALL.keys())


def normals(seed, batch=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 1, 2, 2, generator=generator, dtype=torch.float64).to(dtype)


def clip(x0):
    return x0.clamp(-0.4, 0.4)


def run(sampler, seed=0, grid=GRID, dtype=torch.float64, denoiser=MIXTURE, **options):
    noise = lambda i: normals(1000 * seed + i + 1, dtype=dtype)  # noqa: E731
    return sampler(denoiser, normals(1000 * seed, dtype=dtype), grid, Cond(), noise=noise, **options)


@every_sampler
def test_steps_tell_where_they_are(sampler):
    steps = list(run(sampler))
    assert [step.i for step in steps] == list(range(12))
    assert [step.logsnr for step in steps] == GRID[1:].tolist()
    assert all(step.x_t.dtype == step.x0_hat.dtype == torch.float64 for step in steps)


@every_sampler
@pytest.mark.parametrize("used_clip", [None, clip], ids=["free", "clipped"])
def test_a_grid_to_infinity_returns_x0_hat(sampler, used_clip):
    last = list(run(sampler, clip=used_clip))[-1]
    assert last.logsnr == math.inf
    assert torch.equal(last.x_t, last.x0_hat)
    assert last.x_t.isfinite().all()


@every_sampler
def test_a_finite_end_is_the_same_run_stopped(sampler):
    """x_t at the cut is bitwise that of the longer run at the same level."""
    whole, cut = list(run(sampler)), list(run(sampler, grid=GRID[:7]))
    assert cut[-1].logsnr == GRID[6].item()
    assert torch.equal(cut[-1].x_t, whole[5].x_t)
    assert not torch.equal(cut[-1].x_t, cut[-1].x0_hat)


@pytest.mark.parametrize("sampler", [ddim, ddpm])
def test_going_on_from_a_finite_end_finishes_the_run(sampler):
    """Of one-step samplers; the multistep one forgets its past at the cut."""
    half = drain(run(sampler, grid=GRID[:7]))
    rest = drain(sampler(MIXTURE, half, GRID[6:], Cond(), noise=lambda i: normals(i + 7)))
    assert torch.equal(rest, drain(run(sampler)))


@every_sampler
def test_interleaved_generators_do_not_meet(sampler):
    alone = [list(run(sampler, seed)) for seed in (1, 2)]
    together = list(zip(run(sampler, 1), run(sampler, 2), strict=True))
    for i, pair in enumerate(together):
        for k, step in enumerate(pair):
            assert torch.equal(step.x_t, alone[k][i].x_t) and torch.equal(step.x0_hat, alone[k][i].x0_hat)


@every_sampler
def test_inputs_and_past_steps_are_left_alone(sampler):
    """In-place arithmetic inside must never reach a tensor that somebody else holds."""
    x, grid, start = normals(0), GRID.clone(), normals(0)
    seen = []
    for step in sampler(MIXTURE, x, grid, Cond(), noise=lambda i: normals(i + 1)):
        seen.append((step, step.x_t.clone(), step.x0_hat.clone()))
    assert torch.equal(x, start) and torch.equal(grid, GRID)
    assert all(torch.equal(step.x_t, x_t) and torch.equal(step.x0_hat, x0) for step, x_t, x0 in seen)


@every_sampler
def test_rows_of_a_batch_are_independent(sampler):
    whole = drain(run(sampler))
    noise = lambda i: normals(i + 1)[1:2]  # noqa: E731
    alone = drain(sampler(MIXTURE, normals(0)[1:2], GRID, Cond(), noise=noise))
    torch.testing.assert_close(alone, whole[1:2], rtol=0, atol=1e-12)


@every_sampler
def test_float32_stays_near_float64(sampler):
    single, double = drain(run(sampler, dtype=torch.float32)), drain(run(sampler))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-4)


@every_sampler
def test_clipped_estimates_are_what_is_used(sampler):
    """The same as a denoiser whose estimates are clipped themselves, eps belonging to the clipped x0."""

    @FunctionDenoiser
    def clipped(x_t, logsnr, cond):
        x0 = clip(MIXTURE(x_t, logsnr, cond).x0)
        return Prediction(x0, eps_from_x0(x_t, x0, logsnr))

    inside, outside = list(run(sampler, clip=clip)), list(run(sampler, denoiser=clipped))
    assert all(step.x0_hat.abs().max() <= 0.4 for step in inside)
    assert any(not torch.equal(a.x_t, b.x_t) for a, b in zip(inside, run(sampler), strict=True))
    for a, b in zip(inside, outside, strict=True):
        torch.testing.assert_close(a.x_t, b.x_t, rtol=0, atol=1e-12)


def test_ddim_steps_along_the_recomputed_eps():
    """Song et al. 2020, eq. 12, written out for one clipped step."""
    x, grid = normals(0), torch.tensor([-1.0, 2.0], dtype=torch.float64)
    level = torch.full((3,), -1.0, dtype=torch.float64)
    x0 = clip(MIXTURE(x, level, Cond()).x0)
    alpha, sigma = math.sqrt(1 / (1 + math.exp(-2))), math.sqrt(1 / (1 + math.exp(2)))
    expected = alpha * x0 + sigma * eps_from_x0(x, x0, level)
    torch.testing.assert_close(drain(ddim(MIXTURE, x, grid, Cond(), clip=clip)), expected, rtol=0, atol=1e-12)


def test_the_second_order_step_looks_half_a_step_ahead():
    """Lu et al. 2022 (DPM-Solver++), algorithm 2, written out with their lambda = logsnr / 2, on steps of two lengths;
    with half the noise of the SDE too, and with more than all of it.

    The order does not show an inverted ratio r: its errors cancel from step to step.
    """
    x, values = normals(0), [-2.0, -0.5, 2.5]
    first, second = list(dpmpp(MIXTURE, x, torch.tensor(values, dtype=torch.float64), Cond()))
    lambda0, lambda1, lambda2 = (value / 2 for value in values)
    alpha, sigma = (math.sqrt(1 / (1 + math.exp(sign * values[2]))) for sign in (-1, 1))
    sigma_before = math.sqrt(1 / (1 + math.exp(values[1])))
    h = lambda2 - lambda1
    r = (lambda1 - lambda0) / h
    ahead = (1 + 1 / (2 * r)) * second.x0_hat - 1 / (2 * r) * first.x0_hat
    expected = sigma / sigma_before * first.x_t - alpha * (math.exp(-h) - 1) * ahead
    torch.testing.assert_close(second.x_t, expected, rtol=0, atol=1e-12)
    for tau, sampler in ((0.5, partial(dpmpp, tau=0.5)), (1.0, SAMPLERS["dpmpp_sde"]), (1.5, partial(dpmpp, tau=1.5))):
        grid = torch.tensor(values, dtype=torch.float64)
        first, second = list(sampler(MIXTURE, x, grid, Cond(), noise=lambda i: normals(i + 1)))
        ahead = (1 + 1 / (2 * r)) * second.x0_hat - 1 / (2 * r) * first.x0_hat
        kept = math.exp(-(tau**2) * h)
        expected = sigma / sigma_before * kept * first.x_t - alpha * (math.exp(-h) * kept - 1) * ahead
        expected += sigma * math.sqrt(1 - kept**2) * normals(2)
        torch.testing.assert_close(second.x_t, expected, rtol=0, atol=1e-12)


def test_a_step_with_less_noise_is_one_of_a_family_between_the_ode_and_the_posterior():
    """Xue et al. 2023 (SA-Solver). With x0_hat held, two steps are the long one, for x_t / sigma_t correlates by
    exp(-tau^2 (lambda_s - lambda_t)); the marginal law is kept; and the noise's variance grows at tau^2 times the
    posterior's rate. That is all there is to a step."""
    now, then = (torch.tensor(value, dtype=torch.float64) for value in (-6.0, 3.0))
    posterior_step = [float(each) for each in posterior_coefficients(now, then)[:3]]
    assert sde_step(-6.0, 3.0, 1.0) == pytest.approx((*posterior_step[:2], math.exp(posterior_step[2] / 2)), rel=1e-12)
    sigma = lambda logsnr: math.sqrt(1 / (1 + math.exp(logsnr)))  # noqa: E731
    alpha = lambda logsnr: math.sqrt(1 / (1 + math.exp(-logsnr)))  # noqa: E731
    ratio = sigma(3.0) / sigma(-6.0)  # alpha_s x0_hat + sigma_s eps, eps being (x_t - alpha_t x0_hat) / sigma_t
    assert sde_step(-6.0, 3.0, 0.0) == pytest.approx((ratio, alpha(3.0) - ratio * alpha(-6.0), 0.0), rel=1e-12)
    for tau in (0.0, 0.3, 0.5, 1.0, 1.7):
        (a, b, s), (a2, b2, s2) = sde_step(-6.0, -1.5, tau), sde_step(-1.5, 3.0, tau)
        whole = sde_step(-6.0, 3.0, tau)
        assert whole == pytest.approx((a2 * a, a2 * b + b2, math.hypot(a2 * s, s2)), rel=1e-12)
        assert whole[0] * alpha(-6.0) + whole[1] == pytest.approx(alpha(3.0), rel=1e-12)  # the mean of a point at 1
        assert math.hypot(whole[0] * sigma(-6.0), whole[2]) == pytest.approx(sigma(3.0), rel=1e-12)
        small = math.exp(float(posterior_coefficients(now, now + 1e-6)[2]))
        assert sde_step(-6.0, -6.0 + 1e-6, tau)[2] ** 2 == pytest.approx(tau**2 * small, rel=1e-5)
        assert sde_step(-6.0, math.inf, tau) == (0.0, 1.0, 0.0)


def test_a_multiple_of_the_noise_is_0_or_more_and_needs_noise():
    for tau in (-0.5, math.nan, math.inf):
        with pytest.raises(UserError, match=r"expected 0 \(the ODE\) or more"):
            drain(run(partial(dpmpp, tau=tau)))
    with pytest.raises(UserError, match="needs fresh noise"):
        drain(dpmpp(MIXTURE, normals(0), GRID, Cond(), tau=0.5))
    drain(dpmpp(MIXTURE, normals(0), GRID, Cond()))


def test_a_churned_heun_step_is_that_of_the_paper():
    """Karras et al. 2022, algorithm 2, written out for x_t / alpha over its sigma, S_noise 1, and algorithm 1."""
    z, values = normals(9), [-1.0, 0.5]

    def estimate(y, sigma):
        level = torch.full((3,), -2 * math.log(sigma), dtype=torch.float64)
        return MIXTURE(y * (1 + sigma**2) ** -0.5, level, Cond()).x0

    for churn in (0.0, 0.3):
        x, grid = normals(0), torch.tensor([-4.0, *values], dtype=torch.float64)
        got = list(heun(MIXTURE, x, grid, Cond(), noise=lambda i: z, churn=churn))
        alpha, sigma, level = (1 + math.exp(-values[0])) ** -0.5, math.exp(-values[0] / 2), values[0]
        y = got[0].x_t / alpha
        raised = sigma * math.exp(churn * (values[1] - level) / 2)
        y = y + math.sqrt(raised**2 - sigma**2) * z
        following = math.exp(-values[1] / 2)
        slope = (y - estimate(y, raised)) / raised
        euler = y + (following - raised) * slope
        second = (euler - estimate(euler, following)) / following
        expected = (y + (following - raised) * (slope + second) / 2) * (1 + following**2) ** -0.5
        torch.testing.assert_close(got[1].x_t, expected, rtol=0, atol=1e-12)


def test_churn_stays_within_the_grid_and_needs_noise():
    levels = []

    @FunctionDenoiser
    def seen(x_t, logsnr, cond):
        levels.append(logsnr[0].item())
        return MIXTURE(x_t, logsnr, cond)

    grid = make_grid(-10.0, 9.0, 12)
    drain(run(partial(heun, churn=5.0), denoiser=seen))
    assert min(levels) == grid[0] and max(levels) == grid[-2]
    assert len({*levels} - {*grid.tolist()}) > 4  # raised ones
    with pytest.raises(UserError, match="churn needs fresh noise"):
        drain(heun(MIXTURE, normals(0), GRID, Cond(), churn=0.5))


def test_ancestral_steps_are_draws_from_the_posterior():
    x, z, grid = normals(0), normals(9), torch.tensor([-1.0, 2.0], dtype=torch.float64)
    now, then = (torch.full((3,), value, dtype=torch.float64) for value in (-1.0, 2.0))
    mean, small, large = posterior(x, MIXTURE(x, now, Cond()).x0, now, then)
    for variance, logvar in (("small", small), ("large", large)):
        got = drain(ddpm(MIXTURE, x, grid, Cond(), noise=lambda i: z, variance=variance))
        torch.testing.assert_close(got, mean + torch.exp(logvar / 2) * z, rtol=0, atol=1e-12)


@every_sampler
def test_noise_is_drawn_once_for_each_step_but_that_to_infinity(sampler):
    """Of ``ddim`` and others without noise none at all; churn leaves out levels that are all but clean or all noise."""
    asked = []

    def noise(i):
        asked.append(i)
        return normals(i + 1)

    drain(sampler(MIXTURE, normals(0), GRID, Cond(), noise=noise))
    name = next(name for name, one in ALL.items() if one is sampler)
    expected = [] if name in ("dpmpp", "ddim", "heun") else list(range(11))
    assert asked == expected or (name == "heun_churn" and asked and set(asked) < set(expected))


def test_second_order_beats_first_order_on_a_mixture():
    fine = drain(ddim(MIXTURE, normals(0), make_grid(-10.0, 9.0, 1000), Cond()))
    grid = make_grid(-10.0, 9.0, 50)
    errors = [(drain(sampler(MIXTURE, normals(0), grid, Cond())) - fine).abs().max() for sampler in (ddim, dpmpp)]
    assert errors[1] < errors[0] / 3


@every_sampler
@pytest.mark.parametrize("grid", [[1.0], [0.0, -1.0], [0.0, 0.0, 1.0], [-math.inf, 0.0], [0.0, math.nan]])
def test_bad_grids_are_refused(sampler, grid):
    with pytest.raises(UserError, match="strictly rising"):
        drain(run(sampler, grid=torch.tensor(grid, dtype=torch.float64)))


def test_ancestral_needs_noise_and_a_predicted_variance():
    with pytest.raises(UserError, match="noise"):
        drain(ddpm(MIXTURE, normals(0), GRID, Cond()))
    with pytest.raises(UserError, match="predicts no variance"):
        drain(run(ddpm, denoiser=GaussianDenoiser((0.0, 0.5)), variance="learned"))
