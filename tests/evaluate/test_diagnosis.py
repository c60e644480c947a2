"""The verdict as a function of numbers: chance, size, order, what a better level leaves, words."""

from dataclasses import replace

import numpy as np
import pytest

from cdm.evaluate.diagnosis import (
    NO_CASCADE,
    ColourShift,
    Consistency,
    Level,
    Measurements,
    View,
    beyond_chance,
    diagnose,
    difference,
    least_psnr,
)
from cdm.evaluate.intervals import Estimate
from cdm.evaluate.measurements import colour_shift, low_res_psnr, stage_names
from cdm.evaluate.memorisation import CopyRate, Memorisation


def about(value: float, reach: float = 0.5) -> Estimate:
    return Estimate(float(value), value - reach, value + reach, "made up")


def measured(*distances: float, reach: float = 0.5) -> Measurements:
    sizes = [16 * 2**k for k in range(len(distances) - 1)]
    return Measurements(
        extractor="domain",
        hash="0" * 12,
        reference="training set",
        count=1000,
        stages=stage_names(sizes),
        distances=tuple(about(value, reach) for value in distances),
        levels_used=(None, *(0.2,) * (len(sizes) - 1)),
    )


def memory(hits: float, chance: float) -> Memorisation:
    rate = CopyRate(1.0, about(hits, 0.01), 0.01, chance)
    return Memorisation(rate, rate, (1.0, 2.0, 3.0), (1.0, 2.0, 3.0), 500, 300, 1000, (), 0)


def test_losses_are_of_each_stage_and_add_up():
    found = measured(30, 12, 9, 4)
    assert [loss.value for loss in found.losses] == [18, 3, 5]
    assert found.losses[0].high - 18 == pytest.approx(0.5 * 2**0.5)  # type: ignore[operator]
    findings = diagnose(found).findings
    assert [finding.stage for finding in findings] == [0, 2, 1]  # the largest loss first
    assert diagnose(found).sentence == findings[0].sentence
    assert "18 ± 0.71 of the distance of 30 ± 0.5" in diagnose(found).sentence


def test_chance_and_trifles_are_no_faults():
    assert not diagnose(measured(5, 4.5, 4)).findings
    assert not diagnose(measured(50, 47, 44, reach=0.1)).findings[1:]  # 6 % each, though sure
    no_interval = replace(
        measured(30, 12, 4), distances=tuple(Estimate(v, None, None, "few") for v in (30.0, 12.0, 4.0))
    )
    assert not diagnose(no_interval).findings
    assert diagnose(no_interval).sentence == "1,000 images are too few to tell a fault from chance: evaluate more."
    assert "Nothing wrong was found in 1,000 images" in diagnose(measured(5, 4.5, 4)).sentence
    assert not beyond_chance(about(0.74)) and beyond_chance(about(0.76))
    assert difference(about(1), Estimate(2.0, None, None, "why")) == Estimate(-1.0, None, None, "why")


def test_a_loss_of_no_stage_alone():
    found = measured(20, 18.5, 17, 15.5, 14, reach=0.8)
    verdict = diagnose(found)
    assert [finding.stage for finding in verdict.findings] == [
        None
    ] and "no single stage stands out" in verdict.sentence


def test_a_better_level_comes_first_and_stages_are_judged_at_it():
    found = replace(
        measured(30, 12, 4),
        levels=(Level(1, 0.0, about(28)), Level(1, 0.5, about(6), about(5)), Level(1, 0.8, about(20), about(19))),
    )
    verdict = diagnose(found)
    assert [finding.kinds for finding in verdict.findings] == [("level",)]
    assert "at 0.5 instead of 0.2 the distance falls from 30 ± 0.5 to 6 ± 0.5" in verdict.sentence
    remains = replace(found, levels=(Level(1, 0.5, about(22), about(6)),))
    assert [finding.stage for finding in diagnose(remains).findings] == [1, 0]
    assert "16 ± 0.71 of the distance" in diagnose(remains).findings[1].sentence
    slight = replace(found, levels=(Level(1, 0.5, about(29.3)),))
    assert all("level" not in finding.kinds for finding in diagnose(slight).findings)


def test_with_three_stages_those_below_a_new_level_wait():
    found = replace(measured(30, 12, 9, 4), levels=(Level(2, 0.5, about(15), about(8)),))
    assert [(finding.kinds, finding.stage) for finding in diagnose(found).findings] == [(("level",), 2), (("loss",), 2)]


def test_colour_and_consistency_join_the_stage_that_they_point_at():
    still = tuple(about(value, 0.1) for value in (0.0, 1.9, 0.1))
    red = (about(9.0, 0.4), about(1.9, 0.1), about(-5.0, 4.0))
    found = replace(
        measured(30, 29, 4),
        colour=(ColourShift(still, still), ColourShift(red, still)),
        consistency=(None, Consistency(0.2, about(11), about(12), 14.0)),
    )
    (finding,) = diagnose(found).findings
    assert (finding.stage, finding.kinds) == (1, ("loss", "colour", "consistency"))
    assert "channel 0 by +9.0 ± 0.4 of 255" in finding.sentence and "channel 2" not in finding.sentence
    assert "12 ± 0.5 dB on real ones; at least 14.0 dB are expected" in finding.sentence
    only = diagnose(replace(found, distances=tuple(about(4) for _ in range(3)), consistency=()))
    assert only.findings[0].kinds == ("colour",)


@pytest.mark.parametrize(("rate", "chance", "copies"), [(0.2, 1e-9, True), (0.2, 0.01, False), (0.025, 1e-9, False)])
def test_copies_need_more_than_chance_and_twice_the_rate(rate, chance, copies):
    verdict = diagnose(replace(measured(4.2, 4.1, 4), memorisation=memory(rate, chance)))
    assert bool(verdict.findings) == copies
    if copies:
        assert "20.0 % of the samples" in verdict.sentence and "Do not train it further" in verdict.sentence


def test_extractors_that_disagree_come_before_all():
    views = (
        View("inception", "1" * 12, about(2.2), about(2), 100.0),
        View("dinov2", "2" * 12, about(25), about(10), 50.0),
        View("domain", "3" * 12, about(30), about(4), 40.0),
    )
    found = replace(measured(30, 12, 4), views=views, memorisation=memory(0.2, 1e-9))
    verdict = diagnose(found)
    assert [finding.kinds[0] for finding in verdict.findings] == ["disagreement", "copies", "loss", "loss"]
    assert "please inception (distance 2.2 ± 0.5, real images 2 ± 0.5) but not domain" in verdict.sentence
    agreed = replace(found, views=views[1:])
    assert diagnose(agreed).findings[0].kinds == ("copies",)


def test_images_without_a_cascade():
    found = replace(measured(30, 4), stages=(NO_CASCADE,))
    assert diagnose(found).sentence == (
        "The generated images are at fault: 26 ± 0.71 of the distance of 30 ± 0.5 comes from there. "
        "Train what made them further."
    )


def test_least_psnr_is_what_an_exact_sampler_reaches():
    """A standard normal pixel seen with noise at log-SNR l: a draw from its posterior, against the pixel itself."""
    rng = np.random.default_rng(0)
    for logsnr in (0.0, 2.0):
        snr = np.exp(logsnr)
        x = rng.normal(size=100_000)
        seen = x + rng.normal(size=100_000) / np.sqrt(snr)
        draw = seen * snr / (1 + snr) + rng.normal(size=100_000) / np.sqrt(1 + snr)
        psnr = 10 * np.log10(4 / np.mean((draw - x) ** 2))
        assert psnr > least_psnr(logsnr)
    assert psnr < least_psnr(2.0) + 1  # and the bound is near where the noise is small
    assert least_psnr(None) == least_psnr(12.0) == 30


def test_colour_shift_and_psnr_of_known_images():
    rng = np.random.default_rng(0)
    real = rng.integers(60, 180, (40, 2, 8, 8), dtype=np.uint8)
    shifted = real + np.array([6, 0], dtype=np.uint8)[:, None, None]
    for paired in (True, False):
        shift = colour_shift(shifted, real, paired=paired)
        assert shift.mean[0].value == pytest.approx(6) and shift.mean[1].value == pytest.approx(0)
        assert shift.contrast[0].value == pytest.approx(0)
        assert (shift.mean[0].high - 6 < 1e-9) == paired  # type: ignore[operator]
    double = np.repeat(np.repeat(real, 2, 2), 2, 3)
    assert low_res_psnr(double, real).value == pytest.approx(10 * np.log10(255**2 * 48))
    off = low_res_psnr(double + np.uint8(5), real)
    assert off.value == pytest.approx(20 * np.log10(255 / 5)) and off.high == pytest.approx(off.value)
