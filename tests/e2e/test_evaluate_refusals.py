"""What ``cdm evaluate`` refuses in one sentence, and what it goes on without."""

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from tests.e2e.command import refused, run_here, succeeded
from tests.e2e.conftest import QUICK, write_images

from cdm.evaluate.results import load_report


def npz(folder, **arrays):
    np.savez(folder / "images.npz", **arrays)
    return folder / "images.npz"


def pictures(folder, count=12, **options):
    """Twelve images of one class."""
    write_images(folder / "made" / "cat", count, **({"width": 16, "height": 16} | options))
    return folder / "made"


def too_few_samples(folder, real):
    return (pictures(folder), "--metrics", "fd"), ("FD on blocks needs 120 images", "12 generated", "--force")


def size_mismatch(folder, real):
    made = pictures(folder)
    PILImage.new("RGB", (24, 24)).save(made / "cat" / "zz.png")
    return (made,), ("zz.png", "24x24", "16x16", "expected all of one square size")


def images_larger_than_the_real_ones(folder, real):
    return (pictures(folder, width=64, height=64),), ("smaller than 64",)


def different_classes(folder, real):
    for name in ("cow", "hen"):
        write_images(folder / "made" / name, 12, width=16, height=16)
    return (folder / "made",), ("'cow'", "cat, dog", "same classes")


def wrong_keys(folder, real):
    return (npz(folder, images=np.zeros((12, 16, 16, 3), np.uint8)),), ("arr_0",)


def wrong_dtype(folder, real):
    return (npz(folder, arr_0=np.zeros((12, 16, 16, 3), np.int32)),), ("int32", "uint8")


def nan_pixels(folder, real):
    return (npz(folder, arr_0=np.full((12, 16, 16, 3), np.nan, np.float32)),), ("float32", "uint8")


def objects(folder, real):
    return (npz(folder, arr_0=np.array([{"a": 1}, None], dtype=object)),), ("object",)


def zero_variance(folder, real):
    return (pictures(folder), "--extractors", f"custom:{real / 'own.py'}:constant"), (
        "the same features",
        "zero variance",
    )


def corrupted_weights(folder, real):
    (folder / "weights.pth").write_bytes(b"not a weight file")
    return (
        (pictures(folder), "--extractors", "inception", "--extractor-weights", f"inception={folder / 'weights.pth'}"),
        ("weights.pth",),
    )


def unknown_metric(folder, real):
    return (pictures(folder), "--metrics", "fdi"), ("unknown metric 'fdi'", "did you mean 'fd'")


def unknown_extractor(folder, real):
    return (pictures(folder), "--extractors", "incepton"), ("unknown extractor 'incepton'", "did you mean 'inception'")


def missing_callable(folder, real):
    return (pictures(folder), "--extractors", f"custom:{real / 'own.py'}:nothing"), ("nothing",)


def sampling_options_for_images(folder, real):
    return (pictures(folder), "--steps", "4,4"), ("--steps", "no run folder", "leave it out")


def only_a_run(*options):
    """An option that images cannot follow."""

    def make(folder, real):
        return (pictures(folder), *options), (options[0], "no run folder", "leave it out")

    make.__name__ = f"{options[0]}_for_images"
    return make


def weights_at(value, *words):
    def make(folder, real):
        return (pictures(folder), "--extractors", "domain,inception", "--extractor-weights", value), words

    make.__name__ = f"weights_{value.split(':')[0].split('=')[0]}"
    return make


def weights_of_what_is_not_used(folder, real):
    (folder / "weights.pth").write_bytes(b"")
    given = f"inception={folder / 'weights.pth'}"
    return (pictures(folder), "--extractors", "domain", "--extractor-weights", given), (given, "among --extractors")


def labels_from(first):
    """One of them is none of the two classes."""

    def make(folder, real):
        images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
        labels = first + np.arange(12) % 2
        return (npz(folder, arr_0=images, arr_1=labels), "--metrics", "kid"), (
            f"the label {-1 if first < 0 else 2} in arr_1",
            "expected 0 to 1",
        )

    make.__name__ = f"labels_from_{first}"
    return make


def statistics_without_inception(folder, real):
    return (pictures(folder), "--save-statistics", folder / "s.npz"), ("Inception is not among the extractors",)


def statistics_of_another_name(folder, real):
    return (pictures(folder), "--save-statistics", folder / "s.zip"), ("ends in .npz",)


def more_images_than_there_are(folder, real):
    return (pictures(folder), "-n", "99"), ("-n is 99", "has 12 images")


def saved_among_the_judged_images(folder, real):
    return (pictures(folder), "--save", folder / "made" / "again"), ("--save", "lies inside", "place outside")


def saved_over_the_judged_images(folder, real):
    file = npz(folder, arr_0=np.zeros((12, 16, 16, 3), np.uint8))
    return (file, "--save", file, "--force"), ("--save", "is the same as", "place outside")


def nothing_there(folder, real):
    return (folder / "nowhere",), ("no data at", "check the path")


REFUSED = [
    too_few_samples, size_mismatch, images_larger_than_the_real_ones, different_classes, wrong_keys, wrong_dtype,
    nan_pixels, objects, zero_variance, corrupted_weights, unknown_metric, unknown_extractor, missing_callable,
    sampling_options_for_images,
    only_a_run("--seed", "0"), only_a_run("--weights", "nonsense"), only_a_run("--precision", "bogus"),
    only_a_run("--sampler", "ddim"), only_a_run("--aug-level", "0.1"),
    weights_at("custom:own.py:blocks=/nowhere", "takes none"), weights_at("domain=/nowhere", "takes none"),
    weights_at("inception=/nowhere", "there is nothing at", "inception=/nowhere"), weights_of_what_is_not_used,
    labels_from(-1), labels_from(1), statistics_without_inception, statistics_of_another_name,
    more_images_than_there_are, saved_among_the_judged_images, saved_over_the_judged_images, nothing_there,
]  # fmt: skip


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_refused(make, real, own, cache, tmp_path):
    arguments, words = make(tmp_path, real)
    if "--extractors" not in arguments:
        arguments = (*arguments, *own)
    refused(run_here("evaluate", *arguments, "--data", real / "val", "--out", tmp_path / "out"), *words)


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--data", "", ("--data is empty", "expected a folder, zip or .npz")),
        ("--out", "x" * 300, ("cannot be used: File name too long",)),
    ],
)
def test_places_that_are_none(real, tmp_path, flag, value, words):
    places = {"--data": real / "val", "--out": tmp_path / "out"}
    places[flag] = tmp_path / value if value else value
    given = [part for pair in places.items() for part in pair]
    refused(run_here("evaluate", pictures(tmp_path), *given), *words)


def test_training_images_of_other_classes_are_told(real, own, cache, tmp_path):
    for number, name in enumerate(("cow", "hen")):
        write_images(tmp_path / "train" / name, 20, seed=number)
    ran = run_here("evaluate", pictures(tmp_path), "--data", real / "val", "--train-data", tmp_path / "train", *own,
                   "--out", tmp_path / "out")  # fmt: skip
    refused(ran, "the class 'cat'", "cow, hen", "expected the same classes")


def test_a_dry_run_promises_what_will_come(real, own, cache, tmp_path):
    """Seven images of one of two classes: neither KID nor CAS."""
    made = npz(tmp_path, arr_0=np.zeros((7, 16, 16, 3), np.uint8), arr_1=np.zeros(7, np.int64))
    data = ("--data", real / "val", "--train-data", real / "train", "--metrics", "kid,cas,prdc")
    ran = run_here("evaluate", made, *data, *own, "--out", tmp_path / "out", "--dry-run")
    succeeded(
        ran,
        "KID needs at least 8 images on both sides; got 7 judged ones and",
        "CAS does not apply: 1 class without generated images: dog",
    )
    planned = next(line for line in ran.out.splitlines() if line.startswith("to be measured"))
    assert "KID" not in planned and "CAS" not in planned and "precision" in planned


@pytest.mark.parametrize(
    ("options", "words"), [(("--steps", "0,3"), ("0", "expected")), (("--grid", "foo"), ("'foo'", "expected one of"))]
)
def test_a_wrong_setting_is_told_before_any_data_is_read(made, tmp_path, options, words):
    ran = run_here("evaluate", made, "--data", tmp_path / "nowhere", *options, "--out", tmp_path / "out")
    refused(ran, *words)
    assert "nowhere" not in ran.err


def test_diverged_weights_are_told(made, real, own, cache, tmp_path, monkeypatch):
    """NaN pixels from the run itself."""
    from cdm.cascade import Cascade

    load = Cascade.load

    def diverged(*arguments, **options):
        cascade = load(*arguments, **options)
        next(cascade.stages[1].net.parameters()).data.fill_(torch.nan)
        return cascade

    monkeypatch.setattr(Cascade, "load", diverged)
    ran = run_here("evaluate", made, "--data", real / "val", "-n", 8, *own, *QUICK, "--out", tmp_path)
    refused(ran, "pixels that are no numbers", "diverged")


def test_a_metric_that_fails_leaves_the_others_standing(evaluated, real, own, cache, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise np.linalg.LinAlgError("did not converge")

    monkeypatch.setattr("cdm.pipeline.evaluate_figures.prdc", fails)
    ran = run_here("evaluate", evaluated / "images", "--data", real / "val", "--metrics", "kid,prdc", *own,
                   "--out", tmp_path / "out")  # fmt: skip
    succeeded(
        ran, "not computed: precision, recall, density, coverage: failed: LinAlgError: did not converge", "KID-blocks"
    )
    report = load_report(tmp_path / "out")
    assert {f.metric for f in report.missing} == {"precision", "recall", "density", "coverage"} and report.find("kid")
