"""Faults planted into a cascade of letters, 8 -> 16 pixels: the diagnosis must name each, and none in real letters.

The toy SR stage knows the letter that it enlarges and carries over what is wrong with the low-res image it is given, as
a real one does; what a test plants is done to pixels, and everything is measured from pixels by a small domain net.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cdm.data.letters import letters_array
from cdm.evaluate.area import area_resize
from cdm.evaluate.diagnosis import Diagnosis, Measurements, diagnose
from cdm.evaluate.extractors import domain
from cdm.evaluate.extractors.base import Features
from cdm.evaluate.extractors.domain import DomainExtractor, train_domain
from cdm.evaluate.frechet import frechet_estimate
from cdm.evaluate.measurements import (
    LevelImages,
    StageImages,
    features_of,
    measure_cascade,
    measure_images,
    view_of,
)
from cdm.evaluate.memorisation import Known, memorisation
from cdm.evaluate.stats import FeatureStats, feature_stats

COUNT, LOW, SIDE = 520, 8, 16
Spoil = Callable[[Tensor], Tensor]


def letters(count: int, seed: int) -> Tensor:
    return torch.from_numpy(letters_array(count, SIDE, seed).images)


TRAIN, VAL, FRESH = letters(1040, 0), letters(COUNT, 1), letters(COUNT, 2)


@pytest.fixture(scope="module")
def extractor() -> DomainExtractor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(domain, "EFFORT", 800)
        return train_domain(TRAIN, torch.arange(1040) % 26, seed=0)


@pytest.fixture(scope="module")
def reference(extractor) -> FeatureStats:
    return feature_stats(features_of(extractor, TRAIN))


def as_saved(x: Tensor) -> Tensor:
    return x.clamp(0, 255).round().to(torch.uint8)


def down(images: Tensor) -> Tensor:
    return area_resize(images, LOW, LOW)


def noise(x: Tensor, seed: int) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


def super_resolve(low_res: Tensor, letter: Tensor, spoil: Spoil = lambda x: x, carried: float = 1.0) -> Tensor:
    """The letter with ``carried`` of what is wrong with its low-res image, then spoilt."""
    error = low_res.float() - down(letter).float()
    up = F.interpolate(error, size=SIDE, mode="bilinear", align_corners=False)
    return as_saved(spoil(letter.float() + carried * up))


def cascade(base: Spoil = lambda x: x, sr: Spoil = lambda x: x, carried: float = 1.0) -> StageImages:
    """Fresh letters through a base and an SR stage, either spoilt; real ones through the SR stage."""
    low_res = as_saved(base(down(FRESH).float()))
    from_real = super_resolve(down(VAL), VAL, sr, carried)
    return StageImages(
        full=(low_res, super_resolve(low_res, FRESH, sr, carried)),
        from_real=((from_real,),),
        real=(down(VAL), VAL),
    )


def smudged(x: Tensor, side: int = 3) -> Tensor:
    """A grey square of ``side`` x ``side`` pixels somewhere in each image."""
    place = torch.randint(0, LOW - side + 1, (len(x), 2), generator=torch.Generator().manual_seed(3))
    out = x.clone()
    for i, (row, column) in enumerate(place.tolist()):
        out[i, :, row : row + side, column : column + side] = 128
    return out


def grainy(amount: float) -> Spoil:
    return lambda x: x + amount * noise(x, 4)


def judged(images: StageImages, extractor: DomainExtractor, reference: FeatureStats) -> Diagnosis:
    return diagnose(measure_cascade(images, extractor, reference, "training set"))


def memories(samples: Tensor, extractor: DomainExtractor):
    return memorisation(*(Known(x, features_of(extractor, x)) for x in (samples, VAL, TRAIN)))


def test_held_out_real_letters_have_no_fault(extractor, reference):
    found = measure_cascade(
        cascade(),
        extractor,
        reference,
        "training set",
        memorisation=memories(FRESH, extractor),
        levels_used=(None, 0.3),
    )
    verdict = diagnose(found)
    assert not verdict.findings, verdict.sentence
    assert verdict.sentence.startswith("Nothing wrong was found in 520 images (domain distance ")
    total = found.distances[0].value - found.distances[-1].value
    assert sum(loss.value for loss in found.losses) == pytest.approx(total)
    images = measure_images(FRESH, VAL, extractor, reference, "training set")
    assert not diagnose(images).findings


def test_a_damaged_base(extractor, reference):
    verdict = judged(cascade(base=smudged), extractor, reference)
    assert verdict.findings[0].stage == 0 and "loss" in verdict.findings[0].kinds
    assert "Stage 0 (base, 8x8) is at fault" in verdict.sentence and "train stage 0 further" in verdict.sentence
    assert all(finding.stage == 0 for finding in verdict.findings)


def test_a_damaged_sr_stage(extractor, reference):
    verdict = judged(cascade(sr=grainy(40)), extractor, reference)
    assert verdict.findings[0].stage == 1 and "loss" in verdict.findings[0].kinds
    assert "train stage 1 further" in verdict.sentence
    assert all(finding.stage == 1 for finding in verdict.findings)


def test_an_sr_stage_that_goes_its_own_way(extractor, reference):
    """It draws sharp letters, only others than it is given: its distance is that of real letters."""
    images = cascade()
    others = VAL.roll(26, dims=0)  # same letters, in other shapes and colours
    images = replace(images, from_real=((others,),), full=(images.full[0], FRESH.roll(26, dims=0)))
    verdict = judged(images, extractor, reference)
    assert verdict.findings[0].stage == 1 and "consistency" in verdict.findings[0].kinds
    assert "its output departs from the low-res image" in verdict.sentence


def test_a_wrong_augmentation_level(extractor, reference):
    """With the level, less of the base's fault comes through and more errors of the SR stage's own are made."""

    def at(level: float) -> StageImages:
        return cascade(base=lambda x: smudged(x, 4), sr=grainy(60 * level**2), carried=(1 - level) ** 2)

    trials = [LevelImages(1, level, (x := at(level)).full[-1], x.from_real[0][-1]) for level in (0.0, 0.3, 0.5)]
    for used in (0.95, 0.0):
        found = measure_cascade(at(used), extractor, reference, "training set", levels_used=(None, used), levels=trials)
        verdict = diagnose(found)
        assert verdict.findings[0].kinds == ("level",) and verdict.findings[0].stage == 1
        assert f" instead of {used:g}" in verdict.sentence and "no training is needed" in verdict.sentence
        assert any(f"at {level} instead" in verdict.sentence for level in (0.3, 0.5))
    right = measure_cascade(at(0.5), extractor, reference, "training set", levels_used=(None, 0.5), levels=trials)
    assert all("level" not in finding.kinds for finding in diagnose(right).findings)


@pytest.mark.parametrize("stage", [0, 1])
def test_a_colour_shift(stage, extractor, reference):
    tint = torch.tensor([14.0, 0.0, -10.0])[:, None, None]
    images = cascade(base=lambda x: x + tint) if stage == 0 else cascade(sr=lambda x: x + tint)
    verdict = judged(images, extractor, reference)
    assert verdict.findings[0].stage == stage and "colour" in verdict.findings[0].kinds
    assert "colours are shifted: channel 0 by +1" in verdict.sentence and "channel 2 by -" in verdict.sentence
    assert "channel 1" not in verdict.sentence


def test_a_generator_that_copies_training_images(extractor, reference):
    samples = torch.cat([TRAIN[: COUNT // 4], FRESH[COUNT // 4 :]])
    found = measure_images(
        samples, VAL, extractor, reference, "training set", memorisation=memories(samples, extractor)
    )
    verdict = diagnose(found)
    assert verdict.findings[0].kinds == ("copies",)
    assert "copies training images" in verdict.sentence


class Thumbnails:
    """An extractor with other eyes: images at 6x6 pixels."""

    name, hash, dim, spatial_dim, num_probabilities = "thumbnails", "0" * 12, 108, 0, 0
    resize, verified = "area to 6x6", True

    def __call__(self, images: Tensor) -> Features:
        return Features(area_resize(images, 6, 6).flatten(1).float() / 255)


def test_samples_that_please_one_extractor_only(extractor, reference):
    """Noise, changed until the domain net sees letters in it; and a cascade that both find fault with."""
    net, target = extractor.net, extractor(FRESH[:260]).main
    x = (0.3 * noise(FRESH[:260], 5)).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05)
    for _ in range(30):
        loss = (net.features(x.clamp(-1, 1)) - target).square().sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    eyes = Thumbnails()
    own = feature_stats(features_of(eyes, TRAIN))

    def verdict_on(samples: Tensor) -> tuple[Measurements, Diagnosis]:
        full, floor = (frechet_estimate(own, features_of(eyes, images[: len(samples)])) for images in (samples, VAL))
        views = [view_of(eyes, own, full, floor)]
        found = measure_images(samples, VAL, extractor, reference, "training set", views=views)
        return found, diagnose(found)

    found, verdict = verdict_on(as_saved((x.detach() + 1) * 127.5))
    assert verdict.findings[0].kinds == ("disagreement",), [view.excess for view in found.views]
    assert "These images please domain" in verdict.sentence and "but not thumbnails" in verdict.sentence
    _, verdict = verdict_on(cascade(base=smudged).full[-1])
    assert verdict.findings and all("disagreement" not in finding.kinds for finding in verdict.findings)
    _, verdict = verdict_on(FRESH)
    assert not verdict.findings
