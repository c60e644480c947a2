"""What figures come to in words: FID's verdict beside the others', and the first sentences of a report."""

from dataclasses import replace

import pytest

from cdm.evaluate.intervals import Estimate
from cdm.evaluate.memorisation import CopyRate, Memorisation
from cdm.evaluate.results import Figure
from cdm.pipeline.evaluate_findings import copies_sentence, summary, verdict


def distance(extractor, value, floor, metric="fd"):
    return Figure(metric=metric, value=value, floor=floor, extractor=extractor, hash="a" * 12, generated=2048,
                  real=2048, reference="train", data="d")  # fmt: skip


def test_samples_that_please_inception_alone_are_told():
    """Guidance by an ImageNet classifier lowers FID; the user's own domain sees no better images."""
    told = verdict([distance("inception", 3.0, 2.0), distance("domain", 40.0, 4.0)])
    assert "disagree" in told["sentence"] and "trust the others" in told["sentence"]
    assert [(row["ratio"], row["imagenet"]) for row in told["rows"]] == [(1.5, True), (10.0, False)]


@pytest.mark.parametrize(
    ("inception", "domain", "words"),
    [((3.0, 2.0), (6.5, 4.0), "They agree"), ((30.0, 2.0), (5.0, 4.0), "harsher"), (None, (5.0, 4.0), "FID was not"),
     ((3.0, 2.0), None, "add --extractors domain"), (None, None, "nothing can be said")],
)  # fmt: skip
def test_other_verdicts(inception, domain, words):
    given = [distance(name, *pair) for name, pair in (("inception", inception), ("domain", domain)) if pair]
    assert words in verdict(given)["sentence"]


def test_figures_without_a_floor_stand_beside():
    coverage = Figure(metric="coverage", value=0.5, extractor="domain", hash="a" * 12, reference="val", generated=9)
    score = Figure(metric="is", value=9.0, extractor="inception", hash="b" * 12, generated=9)
    told = verdict([coverage, score])
    assert [(row["shown"], row["imagenet"]) for row in told["beside"]] == [("0.500", False), ("9.00", True)]


def test_the_summary_begins_with_the_distance_and_ends_with_what_to_do():
    figures = [distance("domain", 12.0, 3.0)]
    text = summary(figures, verdict(figures), {"sentence": "Stage 0 is at fault.", "kinds": [["loss"]]})
    assert text == (
        "FD-domain against the training images is 12.00, that of real validation images 3.00. Stage 0 is at fault."
    )


def memory(chance):
    rate = CopyRate(threshold=1.0, rate=Estimate(0.2, 0.15, 0.25, "Wilson"), expected=0.01, chance=chance)
    return Memorisation(by_features=rate, by_pixels=rate, samples=(1.0, 2.0, 3.0), val=(1.0, 2.0, 3.0),
                        sample_count=100, val_count=100, train_count=100, pairs=(), val_in_train=0)  # fmt: skip


def test_copies_are_told_where_chance_does_not_explain_them():
    assert "training images are repeated" in copies_sentence(memory(1e-6))
    assert "no copying is seen" in copies_sentence(memory(0.3))


def test_leaked_validation_images_are_told():
    found = memory(0.3)
    found = replace(found, by_features=replace(found.by_features, left_out=40), samples_in_train=3)
    assert "of 60 real validation images" in copies_sentence(found)
    assert copies_sentence(found).endswith(
        "3 samples are training images, pixel for pixel. "
        "40 validation images are training images themselves and were left out."
    )
