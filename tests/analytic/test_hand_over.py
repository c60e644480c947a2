"""Both hand-overs hand over one law, at every depth and by every sampler, here of exact Gaussians.

As in ``test_cascade``, nothing is drawn: the cascade is run once per noise, and the answers are columns of an affine
map. Stage k makes N(mean_k, std_k^2) in each pixel, whatever it is given, so the law of what it hands over is known.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tests.analytic.exact import GaussianDenoiser, UnitRng
from tests.fakes import cascade_config, random_stage, stage_config
from torch import Tensor

from cdm.cascade import Cascade
from cdm.samplers import SAMPLERS
from cdm.types import Cond

LAWS = ((0.3, 0.5), (-0.2, 0.4), (0.1, 0.6), (0.0, 0.5))
"""Mean and standard deviation of each stage."""
SIZES = (2, 4, 8, 16)
LEVELS = (0.3, 0.2, 0.4)
STEPS = 200
TOLERANCE = {"dpmpp": 4e-3, "dpmpp_sde": 4e-3, "heun": 4e-3, "heun_churn": 8e-3,
             "ddim": 2e-2, "ddpm": 3e-2, "ddpm_large": 3e-2}  # fmt: skip
"""What 200 steps leave: second and first order."""


@pytest.fixture(autouse=True)
def unit_noise(monkeypatch):
    monkeypatch.setattr("cdm.cascade.Rng", UnitRng)
    monkeypatch.setattr("cdm.stage_run.Rng", UnitRng)


def handed_over(hand_over: str, sampler: str, depth: int) -> list[tuple[float, Tensor, Tensor, Tensor]]:
    """What each SR stage is told, and mean ``[n]`` and covariance ``[n, n]`` of the corner pixels of its low-res image
    and of those and the noises below. The last stages make one step only: nobody looks at them."""
    seen: dict[int, tuple[float, Tensor]] = {}

    def law(k: int):
        def given(cond: Cond) -> tuple[float, float]:
            if cond.low_res is not None and k not in seen:
                assert cond.aug_logsnr is not None
                seen[k] = (float(cond.aug_logsnr[0]), cond.low_res)
            return LAWS[k]

        return given

    configs = [stage_config(size, SIZES[k - 1] if k else 0) for k, size in enumerate(SIZES[:depth])]
    stages = [random_stage(config, k, levels=0) for k, config in enumerate(configs)]
    for k, stage in enumerate(stages):
        stage.denoiser = GaussianDenoiser(law(k), logsnr_range=(-16.0, 16.0))  # type: ignore[assignment]
    cascade = Cascade(cascade_config(*configs), stages)
    steps = [STEPS] * (depth - 1) + [1]
    settings = cascade.settings(steps=steps, sampler=sampler, aug_level=LEVELS[: depth - 1], hand_over=hand_over)
    settings = replace(settings, clip=False)
    UnitRng.forget()
    cascade.sample(seeds=[0], settings=settings)
    count = UnitRng.count + 1
    seen.clear()
    cascade.sample(seeds=range(count), settings=settings, batch_size=count)
    found = []
    for told, low_res in seen.values():
        corners = low_res[:, 0, :: low_res.shape[2] - 1, :: low_res.shape[3] - 1].flatten(1)  # bilinear keeps corners
        columns = corners[1:] - corners[0]
        found.append((told, corners[0], columns.T @ columns))
    return found


@pytest.mark.parametrize(
    ("sampler", "depth"), [(name, depth) for name in SAMPLERS for depth in (2, 3)] + [("dpmpp", 4), ("heun", 4)]
)
def test_the_law_handed_over_is_that_of_the_level(sampler: str, depth: int) -> None:
    """Truncated: x_t where the sampler stopped; non-truncated: the finished image with fresh noise. Both are N(alpha
    mean, alpha^2 std^2 + sigma^2), every pixel for itself."""
    laws = {hand_over: handed_over(hand_over, sampler, depth) for hand_over in ("non_truncated", "truncated")}
    for hand_over, stages in laws.items():
        assert len(stages) == depth - 1
        for k, (told, mean, covariance) in enumerate(stages):
            alpha, sigma = math.cos(math.pi * LEVELS[k] / 2), math.sin(math.pi * LEVELS[k] / 2)
            assert told == pytest.approx(2 * math.log(alpha / sigma), abs=1e-6), hand_over
            near = TOLERANCE[sampler]
            torch.testing.assert_close(mean, torch.full_like(mean, alpha * LAWS[k][0]), rtol=0, atol=near)
            expected = (alpha**2 * LAWS[k][1] ** 2 + sigma**2) * torch.eye(4, dtype=mean.dtype)
            torch.testing.assert_close(covariance, expected, rtol=0, atol=near)
    for cut, whole in zip(laws["truncated"], laws["non_truncated"], strict=True):
        assert not torch.equal(cut[2], whole[2])  # two ways to one law, not one way
