"""Grids of noise levels for samplers: strictly rising log-SNRs, float64, one more than there are steps."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from cdm.errors import UserError
from cdm.noise.schedule import COSINE

Spacing = Literal["logsnr", "edm", "cosine", "index"]
SPACINGS: tuple[Spacing, ...] = ("logsnr", "edm", "cosine")
"""What may be asked for; "index" is of tables alone."""
RHO = 7.0  # Karras et al. 2022, eq. 5


def make_grid(
    logsnr_min: float,
    logsnr_max: float,
    num_steps: int,
    table: Float64[Tensor, " T"] | None = None,
    stop_at: float | None = None,
    spacing: Spacing = "logsnr",
    shift: float = 0.0,
) -> Float64[Tensor, " n"]:
    """Levels of a sampler's evaluations, from ``logsnr_min`` to ``logsnr_max``, then +inf.

    Args:
        logsnr_min, logsnr_max: range of the denoiser, noisiest and cleanest.
        num_steps: evaluations of a whole run, at least 1; the grid has one entry more.
        table: falling entries of a discrete denoiser; all levels are then entries of it.
        stop_at: level of a truncated hand-over (nearest entry of a table). The whole run's grid is cut there, so it
            takes fewer evaluations (Ho et al. 2021, section 4.2).
        spacing: "logsnr", even in log-SNR (Lu et al. 2022); "edm", even in sigma^(1/7) with sigma = exp(-logsnr / 2)
            (Karras et al. 2022, eq. 5); "cosine", even in the angle of the cosine schedule shifted by ``shift``;
            "index", every so many entries of a table, as the published results of ancestral sampling have it.
        shift: in log-SNR, of "cosine".

    Raises:
        UserError: no step, a ``stop_at`` outside the range, or more steps than a table has entries.
    """
    if num_steps < 1:
        raise UserError(f"sampling needs at least 1 step; got {num_steps}.")
    if table is None:
        if spacing == "index":
            raise UserError("even spacing by index needs a noise table; use 'logsnr' without one.")
        grid = _spaced(logsnr_min, logsnr_max, num_steps, spacing, shift)
    else:
        grid = table[_entries(table, num_steps, spacing, shift)]
    if stop_at is None:
        return torch.cat([grid, grid.new_tensor([math.inf])])
    end = torch.tensor(stop_at, dtype=torch.float64) if table is None else table[(table - stop_at).abs().argmin()]
    if not logsnr_min < end <= logsnr_max:
        raise UserError(
            f"a hand-over must stop inside the stage's noise range; got logsnr {stop_at:.2f}, "
            f"expected over {logsnr_min:.2f} and at most {logsnr_max:.2f}: use another augmentation level."
        )
    return torch.cat([grid[grid < end], end[None]])


def _spaced(low: float, high: float, count: int, spacing: Spacing, shift: float) -> Float64[Tensor, " n"]:
    """Rising levels from ``low`` to ``high``; one alone is ``low``."""
    if spacing == "logsnr":
        return torch.linspace(low, high, count, dtype=torch.float64)
    ends = torch.tensor([low, high], dtype=torch.float64)
    if spacing == "edm":
        first, last = torch.exp(-ends / (2 * RHO)).tolist()
        grid = -2 * RHO * torch.log(torch.linspace(first, last, count, dtype=torch.float64))
    else:
        first, last = COSINE.tau(ends - shift).tolist()
        grid = COSINE.logsnr(torch.linspace(first, last, count, dtype=torch.float64)) + shift
    return grid.clamp(low, high)


def _entries(table: Float64[Tensor, " T"], count: int, spacing: Spacing, shift: float) -> Int64[Tensor, " n"]:
    """Falling indices into the table, from its last entry to entry 0, all different."""
    size = len(table)
    if count > size:
        raise UserError(f"the noise table has {size} entries; got {count} steps: use at most {size}.")
    if spacing == "index":
        return torch.linspace(size - 1, 0, count, dtype=torch.float64).round().long()
    wanted = _spaced(table[-1].item(), table[0].item(), count, spacing, shift)
    nearest = (table[None, :] - wanted[:, None]).abs().argmin(dim=1)
    # Neighbours that fell on one entry are pushed apart, towards the clean end, then back from it.
    place = torch.arange(count)
    return torch.cummin(nearest + place, 0).values.clamp(min=count - 1) - place
