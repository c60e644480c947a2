"""Samplers: pure functions on a denoiser. A new one is a new file and one line here; its tests pick it up."""

from functools import partial

from cdm.samplers.base import Sampler, SampleStep, drain
from cdm.samplers.ddim import ddim
from cdm.samplers.ddpm import ddpm
from cdm.samplers.dpmpp import dpmpp
from cdm.samplers.grid import make_grid

SAMPLERS: dict[str, Sampler] = {
    "dpmpp": dpmpp,
    "ddim": ddim,
    "ddpm": ddpm,
    "ddpm_large": partial(ddpm, variance="large"),
}

__all__ = ["SAMPLERS", "SampleStep", "Sampler", "ddim", "ddpm", "dpmpp", "drain", "make_grid"]
