"""What figures come to in words: FID's verdict beside the others', and the first sentences of a report."""

from dataclasses import replace

import pytest

from cdm.evaluate.cas import ArmScore, CasResult, ClassScore
from cdm.evaluate.intervals import Estimate
from cdm.evaluate.memorisation import CopyRate, Memorisation
from cdm.evaluate.results import Figure
from cdm.pipeline.evaluate_findings import _cas_told, by_heart, copies_sentence, summary, verdict


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


@pytest.mark.parametrize(
    ("value", "high", "val_count", "words"),
    [(2.0, 2.4, 2048, "may be learnt by heart"), (2.0, 2.9, 2048, "no sign"), (4.0, 4.2, 2048, "no sign"),
     (2.0, 2.4, 1000, "cannot be told"), (2.0, None, 2048, "cannot be told")],
)  # fmt: skip
def test_samples_nearer_to_training_images_than_real_ones(value, high, val_count, words):
    """Against a floor of 3; fewer validation images than samples would be farther by their number alone."""
    figures = [replace(distance("domain", value, 3.0), low=value - 0.4, high=high),
               replace(distance("domain", 5.0, None), reference="val", real=val_count)]  # fmt: skip
    compared = verdict(figures)
    assert words in compared["by_heart"]
    assert ("by heart" in summary(figures, compared, None)) == (words == "may be learnt by heart")
    assert by_heart(figures[1:]) == ""


def test_classes_are_told_with_their_intervals_and_the_choice_of_network():
    share = Estimate(0.5, 0.4, 0.6, "t")
    arm = ArmScore(share, share, (0.5, 0.5))
    scores = (ClassScore("a", 20, share, share, Estimate(0.0, -0.1, 0.1, "t"), share, share),
              ClassScore("b", 0, None, None, None))  # fmt: skip
    found = CasResult(
        net="small ResNet", side=16, why="images of 16 pixels", recipe="abc", images=9, val_images=20, steps=5,
        batch_size=8, seeds=(0, 1), top=5, generated=arm, real=arm, difference=share, ceiling=0.5, gap=0.0,
        converged=True, per_class=scores, beats=(), hashes={},
    )  # fmt: skip
    told = _cas_told(found)
    assert (told["why"], told["class_names"], told["class_images"]) == ("images of 16 pixels", ["a"], [20])
    assert told["intervals"] == {"generated": [[0.4, 0.6]], "real": [[0.4, 0.6]], "difference": [[-0.1, 0.1]]}
    assert told["top5"] == {"generated": [0.5], "real": [0.5]} and told["recipe"] == "abc"
    assert _cas_told(replace(found, top=2))["top5"] == {}
