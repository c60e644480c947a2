"""Grids of noise levels for samplers: num_steps + 1 strictly rising log-SNRs, float64."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from cdm.errors import UserError
from cdm.noise.schedule import COSINE

Spacing = Literal["logsnr", "cosine", "index"]


def make_grid(
    logsnr_min: float,
    logsnr_max: float,
    num_steps: int,
    table: Float64[Tensor, " T"] | None = None,
    stop_at: float | None = None,
    spacing: Spacing | None = None,
) -> Float64[Tensor, " n"]:
    """Levels of a sampler's evaluations, then where it ends.

    Args:
        logsnr_min, logsnr_max: range of the denoiser, noisiest and cleanest.
        num_steps: evaluations, at least 1.
        table: falling entries of a discrete denoiser; all levels are then entries of it.
        stop_at: level of a truncated hand-over (nearest entry of a table), reached in ``num_steps`` steps. None: the
            last evaluation is at ``logsnr_max``, and the grid ends with +inf.
        spacing: "logsnr", even in log-SNR; "cosine", even in the angle of alpha = cos, sigma = sin about the middle of
            the range; "index", every so many entries of a table. None: "index" with a table, else "logsnr".

    Raises:
        UserError: no step, a ``stop_at`` outside the range, or more steps than a table has entries.
    """
    if num_steps < 1:
        raise UserError(f"sampling needs at least 1 step; got {num_steps}.")
    if stop_at is not None and not logsnr_min < stop_at <= logsnr_max:
        raise UserError(
            f"a hand-over must stop inside the stage's noise range; got logsnr {stop_at:.2f}, "
            f"expected over {logsnr_min:.2f} and at most {logsnr_max:.2f}: use another augmentation level."
        )
    end = logsnr_max if stop_at is None else stop_at
    count = num_steps if stop_at is None else num_steps + 1
    if table is None:
        grid = _spaced(logsnr_min, logsnr_max, end, count, spacing or "logsnr")
    else:
        grid = table[_entries(table, end, count, spacing or "index")]
    return grid if stop_at is not None else torch.cat([grid, grid.new_tensor([math.inf])])


def _spaced(start: float, top: float, end: float, count: int, spacing: Spacing) -> Float64[Tensor, " n"]:
    if spacing == "index":
        raise UserError("even spacing by index needs a noise table; use 'logsnr' or 'cosine' without one.")
    if spacing == "logsnr":
        return torch.linspace(start, end, count, dtype=torch.float64)
    middle = (start + top) / 2
    first, last = COSINE.tau(torch.tensor([start - middle, end - middle], dtype=torch.float64)).tolist()
    grid = COSINE.logsnr(torch.linspace(first, last, count, dtype=torch.float64)) + middle
    grid[0] = start
    if count > 1:
        grid[-1] = end  # the ends without rounding
    return grid


def _entries(table: Float64[Tensor, " T"], end: float, count: int, spacing: Spacing) -> Int64[Tensor, " n"]:
    """Falling indices into the table, from its last entry to the one nearest to ``end``, all different."""
    size = len(table)
    first = int((table - end).abs().argmin())
    if count > size - first:
        raise UserError(
            f"the noise table has {size - first} entries from its start to the end of sampling; "
            f"got {count} levels: use at most {size - first - 1} steps."
        )
    if spacing == "index":
        return torch.linspace(size - 1, first, count, dtype=torch.float64).round().long()
    wanted = _spaced(table[-1].item(), table[0].item(), table[first].item(), count, spacing)
    nearest = (table[None, :] - wanted[:, None]).abs().argmin(dim=1)
    # Neighbours that fell on one entry are pushed apart, towards the clean end, then back from it.
    place = torch.arange(count)
    return torch.cummin(nearest + place, 0).values.clamp(min=first + count - 1) - place
