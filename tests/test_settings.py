"""How sampling is settled for each stage: names, grids, evaluations, thresholds."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from tests.fakes import random_cascade, stage_config

from cdm.cascade import Cascade
from cdm.config import SamplingConfig, ScheduleConfig
from cdm.errors import UserError
from cdm.samplers import SAMPLERS, make_grid, num_evaluations, num_steps
from cdm.samplers.base import clip_dynamically
from cdm.settings import lost_grids, of_stage, stage_grid


@pytest.fixture(scope="module")
def cascade() -> Cascade:
    return random_cascade(stage_config(8), stage_config(16, 8), stage_config(32, 16))


def test_one_name_for_all_or_one_for_each(cascade: Cascade) -> None:
    one, each = cascade.settings(sampler="ddim"), cascade.settings(sampler="ddim,heun,ddpm", grid="edm,logsnr,cosine")
    assert [of_stage(one.sampler, k) for k in range(3)] == ["ddim"] * 3
    assert [of_stage(each.sampler, k) for k in range(3)] == ["ddim", "heun", "ddpm"]
    assert cascade.settings(sampler="ddim,ddim,ddim") == one
    assert cascade.settings(sampler="ddim, heun,ddpm ").sampler == "ddim,heun,ddpm"
    got = [stage_grid(stage, each, 5, None) for stage in cascade.stages]
    for grid, stage, spacing in zip(got, cascade.stages, ("edm", "logsnr", "cosine"), strict=True):
        shift = stage.config.schedule.shift
        count = 3 if stage.index == 1 else 5  # heun
        assert torch.equal(grid, make_grid(*stage.denoiser.logsnr_range, count, spacing=spacing, shift=shift))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("asked", [1, 2, 7, 8])
def test_no_more_evaluations_than_asked_for(cascade: Cascade, name: str, asked: int) -> None:
    """Counted in the network itself; a truncated hand-over takes fewer."""
    for hand_over in ("non_truncated", "truncated"):
        calls = Counter[int]()
        handles = [
            stage.net.register_forward_hook(lambda *_, k=stage.index, calls=calls: calls.update([k]))
            for stage in cascade.stages
        ]
        made = cascade.sample(seeds=[0], steps=[asked] * 3, sampler=name, hand_over=hand_over)
        for handle in handles:
            handle.remove()
        assert [calls[k] for k in range(3)] == list(made.evaluations)
        assert all(0 < count <= max(asked, 2 if name.startswith("heun") else 1) for count in made.evaluations)
        whole = 2 * num_steps(name, asked) - 1 if name.startswith("heun") else asked
        assert made.evaluations[2] == whole
        assert made.saved_evaluations == tuple(max(0, whole - count) for count in made.evaluations)
        assert hand_over == "truncated" or made.saved_evaluations == (0, 0, 0)


def test_evaluations_of_a_grid() -> None:
    grid = torch.tensor([-1.0, 0.0, math.inf], dtype=torch.float64)
    assert [num_evaluations(name, grid) for name in ("dpmpp", "heun")] == [2, 3]
    assert [num_evaluations(name, grid[:2]) for name in ("dpmpp", "heun")] == [1, 2]


def test_tuned_levels_are_used_as_long_as_no_other_steps_are_asked_for(cascade: Cascade) -> None:
    levels = ((-9.0, 0.0, 4.0), (-8.0, 2.0), (-8.0,))
    own = SamplingConfig(steps=(3, 2, 1), grid="tuned", levels=levels)
    tuned = Cascade(replace(cascade.config, sampling=own), cascade.stages)
    settings = tuned.settings()
    assert settings.levels == levels
    assert stage_grid(tuned.stages[0], settings, 3, None).tolist() == [*levels[0], math.inf]
    assert stage_grid(tuned.stages[0], settings, 3, 1.5).tolist() == [-9.0, 0.0, 1.5]
    assert tuned.sample(seeds=[0]).evaluations == (3, 2, 1)
    other = tuned.settings(steps=[4])
    assert other.grid == "logsnr,tuned,tuned" and other.levels == ((), *levels[1:]) and other.steps == (4, 2, 1)
    assert tuned.settings(steps=[3, 2, 1], sampler="dpmpp").levels == levels  # the same as without
    said = lost_grids(tuned.config, other)
    assert said == ["stage 0 of 8 pixels is sampled on the grid logsnr: its own was made for 3 evaluations of dpmpp"]
    assert not lost_grids(tuned.config, other, first=1)
    assert len(lost_grids(tuned.config, tuned.settings(sampler="ddim"))) == 3 and not lost_grids(tuned.config, settings)
    with pytest.raises(UserError, match="stage 0 has no tuned one for its sampler and steps"):
        tuned.settings(steps=[4], grid="tuned")
    assert tuned.settings(grid="edm").levels == ()
    heun = tuned.settings(sampler="heun")  # which would evaluate twice at each of those levels
    assert heun.levels == () and tuned.sample(seeds=[0], settings=heun).evaluations == (3, 1, 1)


def test_a_table_is_kept_to(cascade: Cascade) -> None:
    config = stage_config(8, schedule=ScheduleConfig(kind="cosine_table", num_timesteps=40))
    table = random_cascade(config)
    entries = table.stages[0].denoiser.table
    for name in SAMPLERS:
        for spacing in ("logsnr", "edm", "cosine"):
            grid = stage_grid(table.stages[0], table.settings(sampler=name, grid=spacing), 7, None)
            assert torch.isin(grid[:-1], entries).all() and (grid.diff() > 0).all()
        assert table.sample(seeds=[0, 1], steps=[7], sampler=name).images[0].isfinite().all()


def test_dynamic_thresholding_is_that_of_the_paper() -> None:
    """Saharia et al. 2022, section 2.3: s = the percentile of |x0|, at least 1; clip to [-s, s] and divide by s."""
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[0] *= 0.1  # all within [-1, 1]: left as it is
    got = clip_dynamically(x, 0.9)
    assert torch.equal(got[0], x[0])
    for own, out in zip(x[1:], got[1:], strict=True):
        limit = sorted(own.abs().flatten().tolist())
        place = 0.9 * (len(limit) - 1)
        s = limit[int(place)] + (place % 1) * (limit[int(place) + 1] - limit[int(place)])
        torch.testing.assert_close(out, own.clamp(-s, s) / s, rtol=1e-6, atol=1e-6)
    assert got.abs().max() <= 1 + 1e-6


def test_the_threshold_reaches_the_sampler(cascade: Cascade) -> None:
    plain, dynamic = (cascade.sample(seeds=[0], steps=[4, 3, 3], threshold=value).images[0] for value in (0.0, 1.0))
    assert not torch.equal(plain, dynamic) and dynamic.abs().max() <= 1
    unclipped = cascade.settings(steps=[4, 3, 3], clip=False, threshold=1.0)
    assert torch.equal(
        cascade.sample(seeds=[0], settings=unclipped).images[0],
        cascade.sample(seeds=[0], settings=replace(unclipped, threshold=0.0)).images[0],
    )
