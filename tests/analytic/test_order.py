"""Deterministic samplers converge to the closed-form Gaussian ODE at their own order."""

import math

import pytest
import torch
from tests.analytic.exact import GaussianDenoiser, gaussian_ode

from cdm.noise.schedule import COSINE
from cdm.samplers import SAMPLERS, drain
from cdm.types import Cond

ORDER = {"ddim": 1, "dpmpp": 2, "heun": 2}
START, END = -6.0, 6.0
MEAN, STD = 0.3, 0.5


def even(num_steps):
    return torch.linspace(START, END, num_steps + 1, dtype=torch.float64)


def uneven(num_steps):
    """Even in the angle: neighbouring steps differ in length, smoothly."""
    ends = COSINE.tau(torch.tensor([START, END], dtype=torch.float64)).tolist()
    return COSINE.logsnr(torch.linspace(*ends, num_steps + 1, dtype=torch.float64))


@pytest.mark.parametrize("spaced", [even, uneven])
@pytest.mark.parametrize("name", ORDER)
def test_order(name, spaced):
    x = torch.linspace(-2, 2, 8, dtype=torch.float64).view(2, 1, 2, 2)
    exact = gaussian_ode(x, MEAN, STD, START, END)
    counts = [32, 64, 128, 256]
    errors = []
    for count in counts:
        got = drain(SAMPLERS[name](GaussianDenoiser((MEAN, STD)), x, spaced(count), Cond()))
        errors.append((got - exact).abs().max().item())
    slope = -math.log(errors[-1] / errors[0]) / math.log(counts[-1] / counts[0])
    assert slope == pytest.approx(ORDER[name], abs=0.2)


@pytest.mark.parametrize("name", ORDER)
def test_a_point_mass_is_exact_in_one_step(name):
    """Constant x0_hat: both solvers integrate it exactly, whatever the step."""
    x = torch.linspace(-2, 2, 8, dtype=torch.float64).view(2, 1, 2, 2)
    grid = torch.tensor([-7.0, -2.0, 5.0], dtype=torch.float64)
    got = drain(SAMPLERS[name](GaussianDenoiser((MEAN, 0.0)), x, grid, Cond()))
    torch.testing.assert_close(got, gaussian_ode(x, MEAN, 0.0, -7.0, 5.0), rtol=0, atol=1e-12)
