"""Cascades of exact denoisers: the law of what is handed over and of what comes out, without Monte Carlo.

Everything is Gaussian and every step is affine in the noises that the cascade draws. So the real ``Cascade.sample`` is
run once per noise with that one noise set to 1: the answers are the columns of the affine map, and its law is known.

The base makes low ~ N(M, C^2) in each of 2x2 pixels. The SR image has 4x4 pixels; its corners depend on the low-res
pixels (bilinear enlarging keeps corners): high = B + A low + N(0, T^2), the rest is N(B, T^2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
import torch
from tests.analytic.exact import GaussianDenoiser, UnitRng
from tests.fakes import cascade_config, random_stage, stage_config
from torch import Tensor

from cdm.cascade import Cascade
from cdm.config import AugmentationConfig
from cdm.noise.schedule import AUG_LOGSNR_MAX, cosine_table
from cdm.samplers import make_grid
from cdm.types import Cond

M, C = 0.3, 0.5
A, B, T = 0.8, -0.1, 0.25
CORNERS = [0, 3, 12, 15]
HAND_OVERS = ["non_truncated", "truncated"]
FAR = (-40.0, 40.0)
"""A noise range whose ends are pure noise and the clean image to 1e-8, so that nothing but the hand-over is seen."""
NEAR = (-16.0, 16.0)
"""For samplers that are exact only with many steps."""
both = pytest.mark.parametrize("hand_over", HAND_OVERS)


@pytest.fixture(autouse=True)
def unit_noise(monkeypatch):
    for module in ("cascade", "stage_run"):
        monkeypatch.setattr(f"cdm.{module}.Rng", UnitRng)


@dataclass
class Seen:
    """What the SR net was given: low-res images, and the level it was told."""

    low_res: list[Tensor] = field(default_factory=list)
    told: list[float] = field(default_factory=list)


def noise_of(logsnr: float) -> tuple[float, float]:
    """alpha^2, sigma^2; at the level told as clean there is no noise at all."""
    if logsnr >= AUG_LOGSNR_MAX:
        return 1.0, 0.0
    return 1 / (1 + math.exp(-logsnr)), 1 / (1 + math.exp(logsnr))


def sr_law(seen: Seen):
    """Conditioning to the exact law of high given the augmented low-res image."""

    def law(cond: Cond) -> tuple[Tensor, Tensor]:
        seen.low_res.append(cond.low_res)
        seen.told.append(float(cond.aug_logsnr[0]))
        alpha2, sigma2 = noise_of(seen.told[-1])
        spread = alpha2 * C**2 + sigma2
        low_hat = M + math.sqrt(alpha2) * C**2 / spread * (cond.low_res - math.sqrt(alpha2) * M)
        corner = torch.zeros(16, dtype=torch.bool)
        corner[CORNERS] = True
        corner = corner.view(1, 1, 4, 4)
        var = torch.where(corner, A**2 * C**2 * sigma2 / spread, 0.0).double() + T**2
        return torch.where(corner, B + A * low_hat, B), var.sqrt()

    return law


def cascade_of(
    seen: Seen, low: tuple[float, float] = (M, C), table: Tensor | None = None, span: tuple[float, float] = FAR
) -> Cascade:
    configs = [stage_config(2), stage_config(4, 2)]
    stages = [random_stage(config, i, levels=0) for i, config in enumerate(configs)]  # levels 0: no quantisation
    stages[0].denoiser = GaussianDenoiser(low, table=table)
    stages[1].denoiser = GaussianDenoiser(sr_law(seen))
    for stage in stages:
        if stage.denoiser.table is None:
            stage.denoiser.logsnr_range = span
    return Cascade(cascade_config(*configs), stages)


@dataclass(frozen=True)
class Law:
    """Mean and covariance of (low-res as the SR net sees it, base's output, SR's output) in 16 + 4 + 16 pixels."""

    mean: Tensor
    covariance: Tensor
    told: float
    evaluations: tuple[int, ...]

    def of(self, a: int, b: int) -> float:
        return self.covariance[a, b].item()


Z = CORNERS  # augmented low-res pixels: corners of its enlarged image
LOW = [16 + i for i in range(4)]
HIGH = [20 + i for i in CORNERS]


def output_law(level: float, hand_over: str, *, sampler: str = "ddpm", steps: int = 6, **options) -> Law:
    """Run the cascade on unit noises. Ancestral steps have the variance that is exact for the law."""
    seen = Seen()
    UnitRng.forget()
    cascade = cascade_of(seen, **options)
    settings = replace(
        cascade.settings(steps=[steps, steps], sampler=sampler, aug_level=level, hand_over=hand_over), clip=False
    )
    base, sr = (stage.denoiser for stage in cascade.stages)
    if sampler == "ddpm":
        stop = cascade.stages[1].aug_logsnr(level) if hand_over == "truncated" and level > 0 else None
        spacing = "logsnr" if base.table is None else "index"
        base.grid = make_grid(*base.logsnr_range, steps, table=base.table, stop_at=stop, spacing=spacing)
        sr.grid = make_grid(*sr.logsnr_range, steps)
    cascade.sample(seeds=[0], settings=settings)  # finds out which noises are drawn
    count = UnitRng.count + 1
    seen.low_res.clear()
    result = cascade.sample(seeds=range(count), settings=settings, batch_size=count)
    assert UnitRng.count + 1 == count
    parts = (seen.low_res[0], *result.images)
    assert all(part.dtype == torch.float64 for part in parts)
    answers = torch.cat([part.flatten(1) for part in parts], dim=1)
    columns = answers[1:] - answers[0]
    return Law(answers[0], columns.T @ columns, seen.told[-1], result.evaluations)


def expected(level: float, low: tuple[float, float] = (M, C)) -> dict[str, float]:
    """The laws in closed form for a base that makes ``low``, and the SR stage above."""
    mean, std = low
    logsnr = AUG_LOGSNR_MAX if level == 0 else max(-2 * math.log(math.tan(math.pi * level / 2)), -10)
    alpha2, sigma2 = noise_of(logsnr)
    spread = alpha2 * C**2 + sigma2
    gain = A * math.sqrt(alpha2) * C**2 / spread  # of high on z
    z_var = alpha2 * std**2 + sigma2
    return {
        "logsnr": logsnr,
        "z_mean": math.sqrt(alpha2) * mean,
        "z_var": z_var,
        "high_mean": B + A * M + gain * math.sqrt(alpha2) * (mean - M),
        "high_var": gain**2 * z_var + A**2 * C**2 * sigma2 / spread + T**2,
        "z_high": gain * z_var,
        "low_high": gain * math.sqrt(alpha2) * std**2,
    }


def bilinear() -> Tensor:
    """2 pixels to 4, in both directions: weights written out by hand, ``[16, 4]``."""
    line = torch.tensor([[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]], dtype=torch.float64)
    return torch.einsum("ia,jb->ijab", line, line).reshape(16, 4)


def check(law: Law, truth: dict[str, float], tolerance: float) -> None:
    near = lambda value: pytest.approx(value, abs=tolerance)  # noqa: E731
    assert law.told == pytest.approx(truth["logsnr"], abs=1e-6)
    for i, (z, high) in enumerate(zip(Z, HIGH, strict=True)):
        assert law.mean[z].item() == near(truth["z_mean"])
        assert law.mean[high].item() == near(truth["high_mean"])
        for j, (other_z, other_high) in enumerate(zip(Z, HIGH, strict=True)):
            same = float(i == j)
            assert law.of(z, other_z) == near(same * truth["z_var"])
            assert law.of(z, other_high) == near(same * truth["z_high"])
            assert law.of(high, other_high) == near(same * truth["high_var"])


@both
@pytest.mark.parametrize("level", [0.0, 0.05, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("steps", [2, 6])
def test_law_of_augmented_low_res_and_output(level, hand_over, steps):
    """Exact at every step count: the ancestral steps have the exact variance."""
    law = output_law(level, hand_over, steps=steps)
    check(law, expected(level), 3e-7)  # levels travel in float32
    assert law.evaluations[1] == steps


@both
def test_output_is_the_data_whatever_the_level(hand_over):
    """SR stages amortised over levels: with an exact base, every level gives the law of the data."""
    for level in (0.0, 0.2, 0.9):
        law = output_law(level, hand_over)
        assert law.mean[HIGH[0]].item() == pytest.approx(B + A * M, abs=3e-7)
        assert law.of(HIGH[0], HIGH[0]) == pytest.approx(A**2 * C**2 + T**2, abs=3e-7)
        assert law.of(21, 21) == pytest.approx(T**2, abs=3e-7)  # a pixel that is no corner


@both
@pytest.mark.parametrize("level", [0.0, 0.3])
def test_noise_goes_on_before_enlarging(level, hand_over):
    """The whole enlarged image has the covariance of enlarged independent pixels."""
    weights, law = bilinear(), output_law(level, hand_over)
    truth = weights @ weights.T * expected(level)["z_var"]
    torch.testing.assert_close(law.covariance[:16, :16], truth, rtol=0, atol=3e-7)


@both
def test_at_level_zero_also_the_law_of_base_and_output(hand_over):
    law, truth = output_law(0.0, hand_over), expected(0.0)
    for i, (z, low, high) in enumerate(zip(Z, LOW, HIGH, strict=True)):
        assert law.mean[low] == law.mean[z] and law.of(low, low) == law.of(z, z) == law.of(low, z)
        assert law.mean[low].item() == pytest.approx(M, abs=1e-7)
        assert law.of(low, low) == pytest.approx(C**2, abs=1e-7)
        for j, other in enumerate(HIGH):
            assert law.of(low, other) == pytest.approx((i == j) * truth["low_high"], abs=1e-7)
        assert law.of(low, high) == pytest.approx(A * C**2, abs=1e-7)


@pytest.mark.parametrize("level", [0.05, 0.3, 0.7])
def test_the_finished_base_image_and_the_output(level):
    """Non-truncated: the output depends on the base's image only through what noise left of it."""
    law, truth = output_law(level, "non_truncated"), expected(level)
    assert law.mean[LOW[0]].item() == pytest.approx(M, abs=1e-7)
    assert law.of(LOW[0], LOW[0]) == pytest.approx(C**2, abs=1e-7)
    assert law.of(LOW[0], HIGH[0]) == pytest.approx(truth["low_high"], abs=1e-7)


@pytest.mark.parametrize("sampler", ["dpmpp", "ddim"])
@pytest.mark.parametrize("level", [0.2, 0.6])
def test_hand_overs_agree_in_distribution(level, sampler):
    """The samplers that people use are approximate, and no worse for either hand-over."""
    laws = [output_law(level, hand_over, sampler=sampler, steps=300, span=NEAR) for hand_over in HAND_OVERS]
    for law in laws:
        check(law, expected(level), {"dpmpp": 1e-3, "ddim": 1e-2}[sampler])
    assert laws[0].evaluations[0] == 300 > laws[1].evaluations[0]


@both
@pytest.mark.parametrize("wrong", [(M + 0.2, C), (M, 1.5 * C), (M, 0.0)], ids=["mean", "too wide", "collapsed"])
def test_the_error_of_a_wrong_base_falls_strictly_with_the_level(wrong, hand_over):
    """Why conditioning augmentation works (Ho et al. 2021, section 4): the more noise, the less of the base's mistake
    reaches the output."""
    mean_errors, var_errors = [], []
    for level in (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95):
        law, truth = output_law(level, hand_over, low=wrong), expected(level, wrong)
        check(law, truth, 3e-7)
        mean_errors.append(abs(law.mean[HIGH[0]].item() - (B + A * M)))
        var_errors.append(abs(law.of(HIGH[0], HIGH[0]) - (A**2 * C**2 + T**2)))
    errors = mean_errors if wrong[0] != M else var_errors
    assert all(after < before for before, after in pairwise(errors))
    assert errors[0] > 0.05 and errors[-1] < 0.01 * errors[0]


@pytest.mark.parametrize("level", [0.1, 0.5])
def test_a_table_base_stops_at_its_nearest_entry_and_says_so(level):
    """The level told is the entry's, not the one asked for; with it the law is exact."""
    table = cosine_table(40)
    law = output_law(level, "truncated", table=table, steps=20)
    asked = expected(level)["logsnr"]
    assert law.told == pytest.approx(table[(table - asked).abs().argmin()].item(), rel=1e-6)
    assert abs(law.told - asked) > 1e-3
    alpha2, sigma2 = noise_of(law.told)
    start = table[-1].item()  # its noisiest entry is not quite pure noise, so the start is not quite exact
    slack = 2 * math.exp(start / 2)
    assert law.mean[0].item() == pytest.approx(math.sqrt(alpha2) * M, abs=slack)
    assert law.of(0, 0) == pytest.approx(alpha2 * C**2 + sigma2, abs=slack)
    assert law.mean[HIGH[0]].item() == pytest.approx(B + A * M, abs=slack)
    assert law.of(HIGH[0], HIGH[0]) == pytest.approx(A**2 * C**2 + T**2, abs=slack)


@both
def test_level_zero_is_one_code_path(hand_over):
    law, other = output_law(0.0, hand_over), output_law(0.0, "non_truncated")
    assert torch.equal(law.covariance, other.covariance) and torch.equal(law.mean, other.mean)
    assert law.told == AUG_LOGSNR_MAX and law.evaluations == other.evaluations == (6, 6)


def test_the_default_level_map_is_the_cosine():
    assert AugmentationConfig().level_map == "cosine"  # what ``expected`` is written for
