"""Samplers: pure functions on a denoiser. A new one is a new file and one line here; the tests of what holds for all
pick it up, those of its order and law want a line of their own."""

import math
from functools import partial

from jaxtyping import Float64
from torch import Tensor

from cdm.samplers.base import Sampler, SampleStep, drain
from cdm.samplers.ddim import ddim
from cdm.samplers.ddpm import ddpm
from cdm.samplers.dpmpp import dpmpp
from cdm.samplers.grid import SPACINGS, make_grid
from cdm.samplers.heun import heun

SAMPLERS: dict[str, Sampler] = {
    "dpmpp": dpmpp,
    "dpmpp_sde": partial(dpmpp, tau=1.0),
    "ddim": ddim,
    "ddpm": ddpm,
    "ddpm_large": partial(ddpm, variance="large"),
    "heun": heun,
    "heun_churn": partial(heun, churn=0.5),
}

_TWICE = ("heun", "heun_churn")  # evaluate the network twice in each step but one to +inf


def num_steps(sampler: str, evaluations: int) -> int:
    """Steps that ``evaluations`` of the network pay for, the last one going to +inf."""
    return (evaluations + 1) // 2 if sampler in _TWICE else evaluations


def taken(sampler: str, evaluations: int) -> int:
    """How many of ``evaluations`` these steps take, the last one going to +inf: Heun's method an odd number."""
    return 2 * num_steps(sampler, evaluations) - 1 if sampler in _TWICE else evaluations


def num_evaluations(sampler: str, grid: Float64[Tensor, " n"]) -> int:
    """Evaluations of the network that a run over ``grid`` takes."""
    steps = len(grid) - 1
    return 2 * steps - math.isinf(float(grid[-1])) if sampler in _TWICE else steps


__all__ = [
    "SAMPLERS", "SPACINGS", "SampleStep", "Sampler", "ddim", "ddpm", "dpmpp", "drain", "heun",
    "make_grid", "num_evaluations", "num_steps", "taken",
]  # fmt: skip
