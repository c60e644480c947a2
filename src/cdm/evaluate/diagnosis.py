"""Which stage is at fault? Numbers in, a verdict and plain words out; ``measurements.py`` makes the numbers.

Loss of a stage. F_k is the Fréchet distance at the final resolution where real validation images, brought to the size
of stage k - 1, are put in in place of its output, so that stages k and above run: F_0 is the full cascade, F_K (of K
stages) real validation images themselves, the floor. Stage k loses F_k - F_(k+1): up to k generated, less real images
put in after k. The losses add up to F_0 - F_K.

A fault must be larger than chance and large enough to matter. Beyond chance: 1.5 times the half-width of its 95 %
interval, about three standard errors, so that a dozen checks raise a false alarm in one report of fifty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot

from cdm.evaluate.intervals import Estimate
from cdm.evaluate.memorisation import CopyRate, Memorisation

BEYOND = 1.5  # half-widths of the 95 % interval
MATTERS = 0.1  # of the cascade's distance: a smaller loss is not worth a training
SHIFT = 2.0  # 8-bit units: the smallest difference of colour that an eye can see on a plain ground is about 1 %
COPIES = 2.0  # times the expected copy rate
RARE = 1e-3  # chance of the copy rate without copying
DISAGREE = 4.0  # times as far from real by one extractor as by another, both as shares of their spread
PSNR_SLACK = 3.0  # dB: a draw errs by twice the variance
NO_CASCADE = "the generated images"  # name of the only stage where no cascade is known


@dataclass(frozen=True)
class View:
    """What one extractor says of the final images.

    full, floor: Fréchet distance of generated and of real validation images to the reference.
    spread: trace of the reference's covariance, which gives distances of different extractors one scale.
    """

    extractor: str
    hash: str
    full: Estimate
    floor: Estimate
    spread: float

    @property
    def excess(self) -> Estimate:
        return difference(self.full, self.floor)


@dataclass(frozen=True)
class ColourShift:
    """Generated less real, per channel in 8-bit units. ``mean``: of the channel; ``contrast``: of its standard
    deviation within an image."""

    mean: tuple[Estimate, ...]
    contrast: tuple[Estimate, ...]


@dataclass(frozen=True)
class Consistency:
    """PSNR in dB of an SR stage's downsampled output with the clean low-res image that it was made from.

    generated, oracle: from the cascade's own low-res image, and from a real one, at the same augmentation level.
    least: what a stage that draws from the right distribution reaches at that level, see ``least_psnr``.
    """

    level: float | None
    generated: Estimate
    oracle: Estimate
    least: float


@dataclass(frozen=True)
class Level:
    """Another augmentation level of one SR stage, all else as it was.

    full: of the cascade. oracle: with real low-res put in before this stage; None: not measured.
    """

    stage: int
    level: float
    full: Estimate
    oracle: Estimate | None = None


@dataclass(frozen=True)
class Measurements:
    """All that a diagnosis rests on; one extractor, one reference and one count for all distances.

    stages: name of each stage, base first, as ``stage 0 (base, 16x16)``; ``("the generated images",)`` where no
        cascade is known, and then ``distances`` are theirs and the floor.
    distances: F_0 to F_K.
    levels_used: augmentation level of each stage; None: has none.
    levels: other levels that were tried.
    colour: per stage, the first of generated images, others of SR from real low-res; empty: not measured.
    consistency: of each SR stage; None for the base; empty: not measured.
    views: of every extractor, the one of ``distances`` too.
    """

    extractor: str
    hash: str
    reference: str
    count: int
    stages: tuple[str, ...]
    distances: tuple[Estimate, ...]
    levels_used: tuple[float | None, ...] = ()
    levels: tuple[Level, ...] = ()
    colour: tuple[ColourShift, ...] = ()
    consistency: tuple[Consistency | None, ...] = ()
    memorisation: Memorisation | None = None
    views: tuple[View, ...] = ()

    @property
    def losses(self) -> tuple[Estimate, ...]:
        """Of each stage."""
        return tuple(difference(self.distances[k], self.distances[k + 1]) for k in range(len(self.stages)))


@dataclass(frozen=True)
class Finding:
    """One fault.

    kinds: what points at it: ``disagreement``, ``copies``, ``level``, ``loss``, ``colour``, ``consistency``.
    stage: the culprit, where it is one stage of a cascade.
    sentence: what is wrong and what to do.
    """

    kinds: tuple[str, ...]
    stage: int | None
    sentence: str


@dataclass(frozen=True)
class Diagnosis:
    """Findings, the first to be mended first, and one sentence for the head of a report."""

    findings: tuple[Finding, ...]
    sentence: str


def diagnose(found: Measurements) -> Diagnosis:
    """What is wrong, in the order in which to mend it: figures that cannot be trusted, copies, a level (which costs no
    training), then stages by what they lose."""
    assert len(found.distances) == len(found.stages) + 1
    level = _level(found)
    findings = (*_disagreements(found.views), *_copies(found.memorisation), *([level[0]] if level else []))
    findings += _stages(found, None if level is None else level[1])
    if not findings:
        findings = _whole(found)
    if findings:
        return Diagnosis(findings, findings[0].sentence)
    if found.distances[0].high is None or found.distances[-1].high is None:
        return Diagnosis((), f"{found.count:,} images are too few to tell a fault from chance: evaluate more.")
    said = f"{found.extractor} distance {_text(found.distances[0])}, real images {_text(found.distances[-1])}"
    return Diagnosis((), f"Nothing wrong was found in {found.count:,} images ({said}).")


# ---- numbers ---------------------------------------------------------------------------------------------------------


def half_width(estimate: Estimate) -> float:
    """Of the 95 % interval; infinite where there is none, so that nothing can be told from the figure."""
    return float("inf") if estimate.high is None else estimate.high - estimate.value


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a - b, the errors taken as independent: for figures that share images that is on the safe side."""
    value, reach = a.value - b.value, hypot(half_width(a), half_width(b))
    if reach == float("inf"):
        return Estimate(value, None, None, a.method if a.high is None else b.method)
    return Estimate(value, value - reach, value + reach, f"both intervals together ({a.method}; {b.method})")


def beyond_chance(estimate: Estimate) -> bool:
    """Above 0 by about three standard errors."""
    return estimate.value > BEYOND * half_width(estimate)


def least_psnr(aug_logsnr: float | None) -> float:
    """What the downsampled output of a right SR stage reaches against its clean low-res image, in dB, at most 30.

    The stage sees that image with noise of variance 1 / snr on a scale of [-1, 1]. The variance that is left once the
    noisy image is seen is no more, a draw errs by twice that, and the peak-to-peak range is 2.
    """
    return 30.0 if aug_logsnr is None else min(30.0, 6.02 + 4.343 * aug_logsnr - PSNR_SLACK)


def _text(estimate: Estimate) -> str:
    reach = half_width(estimate)
    return f"{estimate.value:.3g}" + ("" if reach == float("inf") else f" ± {reach:.2g}")


# ---- faults ----------------------------------------------------------------------------------------------------------


def _told_apart(view: View) -> bool:
    return beyond_chance(view.excess) and view.excess.value >= MATTERS * view.full.value


def _disagreements(views: Sequence[View]) -> tuple[Finding, ...]:
    """Pairs of extractors where one is pleased and the other far from it; the worst pair."""
    worst: tuple[float, View, View] | None = None
    views = [view for view in views if view.spread > 0]  # constant features tell nothing
    for strict in filter(_told_apart, views):
        for pleased in views:
            sure = (strict.excess.value - half_width(strict.excess)) / strict.spread
            at_most = max(0.0, pleased.excess.value + half_width(pleased.excess)) / pleased.spread
            ratio = sure / max(at_most, 1e-12)
            if ratio > max(DISAGREE, worst[0] if worst else 0.0):
                worst = (ratio, strict, pleased)
    if worst is None:
        return ()
    _, strict, pleased = worst
    text = (
        f"These images please {pleased.extractor} (distance {_text(pleased.full)}, real images {_text(pleased.floor)}) "
        f"but not {strict.extractor} ({_text(strict.full)}, real images {_text(strict.floor)}): do not choose by "
        f"{pleased.extractor}; look at the pictures and go by {strict.extractor}."
    )
    return (Finding(("disagreement",), None, text),)


def _copies(found: Memorisation | None) -> tuple[Finding, ...]:
    if found is None or not (_copied(found.by_features) and _copied(found.by_pixels)):
        return ()
    rate = found.by_features
    text = (
        f"{100 * rate.rate.value:.1f} % of the samples lie as near to a training image as only "
        f"{100 * rate.expected:.1f} % of real images do: it copies training images. Do not train it further: use an "
        "earlier checkpoint, or train on more images."
    )
    return (Finding(("copies",), None, text),)


def _copied(rate: CopyRate) -> bool:
    return rate.chance < RARE and (rate.rate.low or 0.0) > COPIES * rate.expected


def better_level(found: Measurements) -> Level | None:
    """The level tried that gains most, if any gains enough."""
    if not found.levels:
        return None
    best = min(found.levels, key=lambda each: each.full.value)
    gain = difference(found.distances[0], best.full)
    if not beyond_chance(gain) or gain.value < MATTERS * found.distances[0].value:
        return None
    return best


def _level(found: Measurements) -> tuple[Finding, Level] | None:
    best = better_level(found)
    if best is None:
        return None
    used = found.levels_used[best.stage]
    text = (
        f"The augmentation level of {found.stages[best.stage]} is wrong: at {best.level:g} instead of {used:g} the "
        f"distance falls from {_text(found.distances[0])} to {_text(best.full)}. Sample with that level; no training "
        "is needed for it."
    )
    return Finding(("level",), best.stage, text), best


def _stages(found: Measurements, better: Level | None) -> tuple[Finding, ...]:
    """One finding per stage at fault, the largest loss first; with a better level, what remains at that level."""
    distances = list[Estimate | None](found.distances)
    if better is not None:  # real images put in between the base and this stage were not measured at its new level
        distances[: better.stage + 1] = [better.full] + [None] * (better.stage - 1) + [better.oracle]
    findings = []
    for stage in range(len(found.stages)):
        before, after = distances[stage], distances[stage + 1]
        loss = difference(before, after) if before is not None and after is not None else None
        evidence = _evidence(found, stage, loss, distances[0])
        if evidence:
            size = loss.value if loss is not None else 0.0
            text = _accusation(found, stage, [words for _, words in evidence])
            findings.append((size, Finding(tuple(kind for kind, _ in evidence), stage, text)))
    return tuple(finding for _, finding in sorted(findings, key=lambda each: -each[0]))


def _evidence(found: Measurements, stage: int, loss: Estimate | None, whole: Estimate | None) -> list[tuple[str, str]]:
    """Kind and words of all that points at a stage."""
    evidence = []
    if loss is not None and whole is not None and beyond_chance(loss) and loss.value >= MATTERS * whole.value:
        evidence.append(("loss", f"{_text(loss)} of the distance of {_text(whole)} comes from there"))
    if found.colour:
        shifts = _shifts(found.colour[stage])
        if shifts:
            evidence.append(("colour", f"colours are shifted: {', '.join(shifts)} of 255"))
    consistency = found.consistency[stage] if found.consistency else None
    if consistency is not None and consistency.oracle.value + half_width(consistency.oracle) < consistency.least:
        text = (
            f"its output departs from the low-res image it is made from ({_text(consistency.oracle)} dB on real ones; "
            f"at least {consistency.least:.1f} dB are expected at its level)"
        )
        evidence.append(("consistency", text))
    return evidence


def _shifts(colour: ColourShift) -> list[str]:
    """Words on every shift that is beyond chance and can be seen."""
    words = []
    for what, estimates in (("channel", colour.mean), ("contrast of channel", colour.contrast)):
        for channel, estimate in enumerate(estimates):
            if abs(estimate.value) >= SHIFT and abs(estimate.value) > BEYOND * half_width(estimate):
                words.append(f"{what} {channel} by {estimate.value:+.1f} ± {half_width(estimate):.1f}")
    return words


def _whole(found: Measurements) -> tuple[Finding, ...]:
    """A loss that no stage alone is found guilty of."""
    loss = difference(found.distances[0], found.distances[-1])
    if len(found.stages) < 2 or not beyond_chance(loss) or loss.value < MATTERS * found.distances[0].value:
        return ()
    text = (
        f"The cascade as a whole is further from real images than chance allows ({_text(found.distances[0])} against "
        f"{_text(found.distances[-1])}), but no single stage stands out: evaluate more images."
    )
    return (Finding(("loss",), None, text),)


def _accusation(found: Measurements, stage: int, words: Sequence[str]) -> str:
    if found.stages == (NO_CASCADE,):
        return f"The generated images are at fault: {'; '.join(words)}. Train what made them further."
    name = found.stages[stage]
    short = name.split(" (")[0]
    return f"{name[0].upper()}{name[1:]} is at fault: {'; '.join(words)}. To mend it, train {short} further."
