"""Hand-overs between the stages of deep cascades: where they stop, what they cost, what the next stage is given."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tests.fakes import random_cascade, stage_config

import cdm.cascade
from cdm.cascade import Cascade
from cdm.conditioning import quantise, upsample
from cdm.config import SamplingConfig, ScheduleConfig
from cdm.errors import UserError
from cdm.samplers import SAMPLERS, num_evaluations
from cdm.settings import of_stage, stage_grid

SIZES = (4, 8, 16, 32)
LEVELS = (0.15, 0.4, 0.25)
TABLE = {"schedule": ScheduleConfig(kind="cosine_table", num_timesteps=30), "told": "timestep"}
TUNED = (-9.0, -5.0, -2.5, 0.1, 1.7, 6.0)
every = pytest.mark.parametrize("sampler", SAMPLERS)
deep = pytest.mark.parametrize("depth", [3, 4])


def cascade_of(depth: int, **changes) -> Cascade:
    configs = [stage_config(size, SIZES[k - 1] if k else 0, **changes) for k, size in enumerate(SIZES[:depth])]
    return random_cascade(*configs)


def settings_of(cascade: Cascade, sampler: str, hand_over: str, grid: str) -> SamplingConfig:
    depth = len(cascade.stages)
    given = {"steps": [6, 5, 4, 3][:depth], "sampler": sampler, "hand_over": hand_over}
    settings = cascade.settings(**given, aug_level=LEVELS[: depth - 1], grid="logsnr" if grid == "tuned" else grid)
    return replace(settings, grid="tuned", levels=(TUNED,) * depth) if grid == "tuned" else settings


def told(level: float) -> float:
    return -2 * math.log(math.tan(math.pi * level / 2))


@pytest.mark.parametrize(
    ("form", "depth"), [("logsnr", 3), ("tuned", 3), ("table", 3), ("tuned table", 3), ("logsnr", 4)]
)
@every
def test_every_stage_hands_over_at_its_level(sampler, form, depth, monkeypatch):
    """Truncated at each border: the grid stops exactly at the level (of a table, at the nearest entry), the next stage
    is told that and given that very x_t; the preview is the last estimate; what is spared is the whole run's rest."""
    cascade = cascade_of(depth, **(TABLE if "table" in form else {}))
    settings = settings_of(cascade, sampler, "truncated", form.split()[0] if form != "table" else "logsnr")
    conds, runs, last, calls = [], [], {}, Counter()
    run = cdm.cascade.run_stage

    def spied(stage, cond, *args, **options):
        conds.append(cond)
        runs.append(run(stage, cond, *args, **options))
        return runs[-1]

    monkeypatch.setattr(cdm.cascade, "run_stage", spied)
    for stage in cascade.stages:
        stage.net.register_forward_hook(lambda *_, k=stage.index: calls.update([k]))
    made = cascade.sample(seeds=[3, 4], settings=settings, progress=lambda k, i, n, x: last.update({k: (i, n, x)}))
    assert [calls[k] for k in range(depth)] == list(made.evaluations)
    for k, stage in enumerate(cascade.stages):
        whole = num_evaluations(sampler, stage_grid(stage, settings, settings.steps[k], None))
        if k == depth - 1:
            assert runs[k].logsnr == math.inf and made.saved_evaluations[k] == 0 and made.evaluations[k] == whole
            continue
        table, asked = stage.denoiser.table, told(LEVELS[k])
        level = asked if table is None else table[(table - asked).abs().argmin()].item()
        assert runs[k].logsnr == pytest.approx(level, abs=1e-6)
        following = conds[k + 1]
        assert following.aug_logsnr.tolist() == [pytest.approx(level, rel=1e-6)] * 2
        assert torch.equal(following.low_res, upsample(runs[k].x_t, SIZES[k + 1]))
        assert made.saved_evaluations[k] == whole - made.evaluations[k] >= 1
        done, total, preview = last[k]
        assert done == total and torch.equal(quantise(preview), made.images[k])
        assert not torch.equal(runs[k].x_t, preview)  # still noisy; what is shown is not


@deep
@every
def test_finished_hand_overs_run_every_stage_to_its_end(sampler, depth):
    cascade = cascade_of(depth)
    settings = settings_of(cascade, sampler, "non_truncated", "logsnr")
    made = cascade.sample(seeds=[3], settings=settings)
    for k, stage in enumerate(cascade.stages):
        whole = num_evaluations(sampler, stage_grid(stage, settings, settings.steps[k], None))
        assert made.evaluations[k] == whole and made.saved_evaluations[k] == 0


@every
@pytest.mark.parametrize("steps", [1, 2, 3, 9])
def test_more_noise_never_costs_more(sampler, steps):
    """Evaluations of the base fall with the level, down to a step or two."""
    cascade = cascade_of(2)
    counts = []
    for level in (0.0, 0.1, 0.3, 0.6, 0.9, 0.99):
        settings = cascade.settings(steps=[steps, 1], sampler=sampler, aug_level=level, hand_over="truncated")
        made = cascade.sample(seeds=[0], settings=settings)
        counts.append(made.evaluations[0])
        name, stage = of_stage(settings.sampler, 0), cascade.stages[0]
        whole = num_evaluations(name, stage_grid(stage, settings, steps, None))
        assert made.saved_evaluations[0] == max(0, whole - counts[-1])
    assert all(after <= before for before, after in pairwise(counts[1:]))
    assert steps < 9 or counts[-1] <= 2 < counts[0]


def test_truncation_below_the_last_step_of_a_table_is_refused_before_anything_runs():
    """Entries from log-SNR 2 to -4, and levels cleaner and noisier: one sentence, and no evaluation."""
    cascade, calls = cascade_of(3, **TABLE), []
    denoiser = cascade.stages[1].denoiser
    denoiser.table, denoiser.logsnr_range = torch.linspace(2, -4, 30, dtype=torch.float64), (-4.0, 2.0)
    for level in (0.05, 0.93):
        settings = cascade.settings(steps=[3, 3, 3], aug_level=[0.2, level], hand_over="truncated")
        with pytest.raises(UserError, match=r"lies outside what stage 1 can stop at \(-4.00 to 2.00\)"):
            cascade.sample(settings=settings, progress=lambda *call: calls.append(call))
    assert not calls
