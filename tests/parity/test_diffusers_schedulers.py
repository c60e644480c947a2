"""Our samplers against diffusers' schedulers: same levels, same noise, an exact non-linear denoiser, float64.

How each scheduler's timesteps become a grid:

* DDPM and DDIM, "leading" spacing with offset 0: every (T // n)-th entry down to entry 0, whose step goes to
  alpha^2 = 1, our +inf. DDIM needs ``set_alpha_to_one=True`` (its default) for that.
* DPMSolverMultistep, "linspace": n of n + 1 evenly spaced entries; the last one, entry 0, is left out, and
  ``final_sigmas_type="zero"`` makes the last step go to sigma = 0, our +inf. That step is always first order.

Their tables are float32. So that the comparison is about the update rules, they are replaced by float64 ones;
DPMSolverMultistep casts x_t to float32 in every step; ``float64_steps`` undoes that, because the first steps of the
cosine table magnify the rounding to 6e-5.
Then all agree to 1e-9.
"""

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from tests.analytic.exact import FunctionDenoiser, random_mixture

from cdm.noise.schedule import cosine_table, linear_table
from cdm.samplers import SAMPLERS, ddim, ddpm, dpmpp
from cdm.types import Cond

diffusers = pytest.importorskip("diffusers", reason="diffusers is only an oracle: install the extra [dev]")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs, of NumPy 2

MIXTURE = random_mixture(shape=(3, 2, 2), seed=4)
TABLES = {"linear": linear_table(1000), "squaredcos_cap_v2": cosine_table(1000)}
every_table = pytest.mark.parametrize("table", TABLES)
every_count = pytest.mark.parametrize("count", [10, 20, 50])
clipping = pytest.mark.parametrize("clipped", [False, True], ids=["free", "clipped"])


def normals(seed):
    return torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clip(x0):
    return x0.clamp(-0.5, 0.5)


def build(name, table, count, **options):
    """A diffusers scheduler on our float64 table, and its levels as our grid."""
    scheduler = getattr(diffusers, name)(num_train_timesteps=1000, beta_schedule=table, **options)
    exact = torch.sigmoid(TABLES[table])
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), exact, rtol=1e-3, atol=1e-7)  # the same table
    scheduler.alphas_cumprod = exact
    scheduler.set_timesteps(count)
    if name == "DPMSolverMultistepScheduler":
        sigma_edm = torch.exp(-TABLES[table][scheduler.timesteps] / 2)
        torch.testing.assert_close(scheduler.sigmas[:-1].double(), sigma_edm, rtol=1e-6, atol=0)
        scheduler.sigmas = torch.cat([sigma_edm, sigma_edm.new_zeros(1)])
    grid = torch.cat([TABLES[table][scheduler.timesteps], torch.tensor([torch.inf], dtype=torch.float64)])
    return scheduler, grid


def theirs(scheduler, table, model_output, *, draw=None, **options):
    """Their loop: evaluate, step, repeat. Yields x after every step. ``draw``: the noise of each step."""
    x = normals(0)
    for timestep in scheduler.timesteps:
        prediction = MIXTURE(x, TABLES[table][timestep].expand(len(x)), Cond())
        if draw is not None:
            options["variance_noise"] = draw()
        x = scheduler.step(model_output(prediction), timestep, x, **options, return_dict=False)[0]
        yield x


class _Float64Torch(ModuleType):
    """torch, but its float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture
def float64_steps(monkeypatch):
    module = "diffusers.schedulers.scheduling_dpmsolver_multistep"
    return lambda: monkeypatch.setattr(f"{module}.torch", _Float64Torch("torch"))


def compare(ours, reference):
    for step, x in zip(ours, reference, strict=True):
        torch.testing.assert_close(step.x_t, x, rtol=0, atol=1e-9)


@every_count
@every_table
@clipping
def test_ddim(table, count, clipped):
    scheduler, grid = build("DDIMScheduler", table, count, clip_sample=clipped, clip_sample_range=0.5)
    reference = theirs(scheduler, table, lambda p: p.eps, eta=0.0, use_clipped_model_output=True)
    compare(ddim(MIXTURE, normals(0), grid, Cond(), clip=clip if clipped else None), reference)


@every_count
@every_table
@clipping
@pytest.mark.parametrize(("variance", "variance_type"), [("small", "fixed_small"), ("large", "fixed_large")])
def test_ancestral(table, count, clipped, variance, variance_type, monkeypatch):
    scheduler, grid = build(
        "DDPMScheduler", table, count, variance_type=variance_type, clip_sample=clipped, clip_sample_range=0.5
    )
    calls = iter(range(count))
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: normals(100 + next(calls))
    )
    ours = ddpm(
        MIXTURE,
        normals(0),
        grid,
        Cond(),
        clip=clip if clipped else None,
        noise=lambda i: normals(100 + i),
        variance=variance,
    )
    compare(ours, theirs(scheduler, table, lambda p: p.eps))


@every_count
@every_table
def test_ancestral_with_learned_variance(table, count, monkeypatch):
    fraction = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    scheduler, grid = build("DDPMScheduler", table, count, variance_type="learned_range", clip_sample=False)
    calls = iter(range(count))
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: normals(100 + next(calls))
    )

    @FunctionDenoiser
    def with_fraction(x_t, logsnr, cond):
        return replace(MIXTURE(x_t, logsnr, cond), var_fraction=fraction)

    ours = ddpm(with_fraction, normals(0), grid, Cond(), noise=lambda i: normals(100 + i), variance="learned")
    reference = theirs(scheduler, table, lambda p: torch.cat([p.eps, 2 * fraction - 1], 1))
    compare(ours, reference)


@every_count
@every_table
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_dpm_solver_pp_2m(table, count, prediction, algorithm, float64_steps):
    scheduler, grid = build(
        "DPMSolverMultistepScheduler",
        table,
        count,
        algorithm_type=algorithm,
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=True,
        final_sigmas_type="zero",
        prediction_type=prediction,
    )
    float64_steps()
    assert np.all(scheduler.timesteps.numpy() > 0)
    output = {"epsilon": lambda p: p.eps, "sample": lambda p: p.x0}[prediction]
    if algorithm == "dpmsolver++":
        compare(dpmpp(MIXTURE, normals(0), grid, Cond()), theirs(scheduler, table, output))
        return
    noises = iter(range(1, count + 1))
    draws = lambda: normals(next(noises))  # noqa: E731
    reference = theirs(scheduler, table, output, draw=draws)
    compare(SAMPLERS["dpmpp_sde"](MIXTURE, normals(0), grid, Cond(), noise=lambda i: normals(i + 1)), reference)


@every_table
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_a_step_with_less_noise_is_that_of_sa_solver(table, tau, monkeypatch):
    """The first one, which is first order in both; SA-Solver's later ones extrapolate otherwise."""
    scheduler, grid = build("SASolverScheduler", table, 10, tau_func=lambda timestep: tau)
    scheduler.sigmas = torch.exp(-grid / 2)
    monkeypatch.setattr("diffusers.schedulers.scheduling_sasolver.randn_tensor", lambda *_, **__: normals(1))
    first = next(dpmpp(MIXTURE, normals(0), grid, Cond(), noise=lambda i: normals(1), tau=tau))
    torch.testing.assert_close(first.x_t, next(theirs(scheduler, table, lambda p: p.eps)), rtol=0, atol=1e-9)
