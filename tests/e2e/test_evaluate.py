"""``cdm evaluate`` as a user runs it: a run or images in, a report out; again after a kill; on two processes."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from tests.browser import look
from tests.e2e.command import TIMEOUT_S, environment, refused, run_here, succeeded
from tests.e2e.conftest import QUICK, write_images

from cdm.evaluate.cas import cas
from cdm.evaluate.extractors.base import Features
from cdm.evaluate.kid import kid
from cdm.evaluate.results import load_report


def values(folder):
    """Every computed figure by what it is."""
    return {figure.key: figure.value for figure in load_report(folder).computed}


# ---- the whole of it -------------------------------------------------------------------------------------------------


def test_every_kind_of_figure_is_there_or_has_its_reason(evaluated):
    report = load_report(evaluated / "out")
    computed = {figure.metric for figure in report.computed}
    assert computed >= {"kid", "precision", "recall", "density", "coverage"}
    for figure in report.computed:
        assert figure.generated and figure.interval, figure
        assert not figure.extractor or len(figure.hash) == 12
    reasons = " ".join(figure.reason for figure in report.missing)
    assert "FD on domain needs 1,280 images on both sides and has 36 generated" in reasons
    assert report.memorisation and report.diagnosis and report.verdict
    assert [cost["stage"] for cost in report.costs] == ["0-8", "1-16"]
    assert {figure.reference for figure in report.computed if figure.metric == "kid"} == {"val", "train"}


def test_missing_weights_are_listed_with_the_file_and_its_place(evaluated):
    found = [figure for figure in load_report(evaluated / "out").missing if figure.extractor == "inception"]
    assert {figure.metric for figure in found} >= {"fd", "sfid", "is"}
    assert all("weights-inception-2015-12-05-6726825d.pth" in figure.reason for figure in found)
    assert all("--extractor-weights" in figure.reason for figure in found)


def test_too_few_images_are_said_at_once(evaluated):
    said = (evaluated / "said").read_text()
    assert "not computed: FD-domain: FD on domain needs 1,280" in said and "go by KID" in said
    assert "report.html" in said


def test_images_are_kept_as_asked(evaluated):
    files = sorted((evaluated / "images").rglob("*.png"))
    assert len(files) == 36 and {path.parent.name for path in files} == {"cat", "dog"}
    with PILImage.open(files[0]) as picture:
        assert picture.size == (16, 16)


@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_in_a_browser(evaluated, width, tmp_path):
    seen = look(evaluated / "out" / "report.html", tmp_path, width)
    assert seen.console == [] and seen.screenshot.stat().st_size > 5000
    assert seen.found["images"] >= 4 and seen.found["broken"] == 0
    assert seen.found["width"] <= width and seen.found["font"] >= 12
    assert "KID" in seen.found["text"] and "Not computed" in seen.found["text"]


def test_classes_are_scored_with_both_arms(evaluated, real, cache, tmp_path, monkeypatch):
    """Trained for a few steps only: that the figures, counts and sentence come through."""
    monkeypatch.setattr("cdm.pipeline.evaluate_findings.cas", partial(cas, steps=1, seeds=(0, 1)))
    ran = run_here("evaluate", evaluated / "images", "--data", real / "val", "--train-data", real / "train",
                   "--metrics", "cas", "--out", tmp_path / "out")  # fmt: skip
    succeeded(ran, "CAS top-1", "trained on real images")
    report = load_report(tmp_path / "out")
    assert {figure.metric for figure in report.computed} == {"cas_top1", "cas_real_top1"}  # two classes have no top-5
    assert report.cas["class_names"] == ["cat", "dog"] and len(report.cas["generated"]) == 2
    assert report.cas["sentence"] in (tmp_path / "out" / "report.html").read_text()


def test_without_classes_there_is_no_score_and_the_reason_is_told(evaluated, real, cache, tmp_path):
    for path in sorted((evaluated / "images").rglob("*.png")):
        (tmp_path / "plain").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "plain" / path.name)
    ran = run_here("evaluate", tmp_path / "plain", "--data", real / "val", "--metrics", "cas", "--out",
                   tmp_path / "out")  # fmt: skip
    refused(ran, "CAS needs classes", "report.html")


def test_stages_are_not_compared_where_the_real_images_have_no_classes(trained, real, own, cache, tmp_path):
    """The run's images have classes, those carried up from real ones would have none."""
    (tmp_path / "plain").mkdir()
    for i, path in enumerate(sorted((real / "val").rglob("*.png"))):
        shutil.copy(path, tmp_path / "plain" / f"{i}.png")
    ran = run_here(
        "evaluate", trained.folder, "--data", tmp_path / "plain", *own, "--out", tmp_path / "out", "--dry-run"
    )
    succeeded(ran, "no diagnosis: the run draws classes, and validation images without class folders have none")


def test_an_npz_in_the_home_folder_is_found(evaluated, real, own, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "val.npz", np.zeros((8, 16, 16, 3), np.uint8))
    ran = run_here("evaluate", evaluated / "images", "--data=~/val.npz", *own, "--out", tmp_path / "out", "--dry-run")
    succeeded(ran, "8 images of", "val.npz")


# ---- images ----------------------------------------------------------------------------------------------------------


def test_the_same_images_in_a_folder_zip_or_npz_get_the_same_figures(evaluated, real, own, cache, tmp_path):
    common = ("--data", real / "val", "--metrics", "kid,prdc", *own)
    folder = ("evaluate", evaluated / "images", *common, "--out", tmp_path / "folder")
    succeeded(run_here(*folder, "--save", tmp_path / "images.zip"), "36 images saved in")
    succeeded(run_here("evaluate", tmp_path / "images.zip", *common, "--out", tmp_path / "zip", "--save",
                       tmp_path / "images.NPZ"), "reused from an earlier evaluation")  # fmt: skip
    succeeded(run_here("evaluate", tmp_path / "images.NPZ", *common, "--out", tmp_path / "npz"))
    assert len(values(tmp_path / "folder")) == 5
    assert values(tmp_path / "folder") == values(tmp_path / "zip") == values(tmp_path / "npz")
    with np.load(tmp_path / "images.NPZ") as made:
        assert made["arr_0"].shape == (36, 16, 16, 3) and sorted(set(made["arr_1"].tolist())) == [0, 1]


def test_the_same_command_again_computes_nothing(evaluated, real, own, cache, tmp_path, monkeypatch):
    again = ("evaluate", evaluated / "images", "--data", real / "val", "--metrics", "kid", *own, "--out",
             tmp_path / "o")  # fmt: skip
    succeeded(run_here(*again))
    before = values(tmp_path / "o")
    monkeypatch.setattr("cdm.pipeline.evaluate_figures.kid", lambda *_: pytest.fail("computed twice"))
    monkeypatch.setattr("cdm.pipeline.image_source.FileImages.pick", lambda *_: pytest.fail("read twice"))
    succeeded(run_here(*again))
    assert values(tmp_path / "o") == before


def test_figures_of_another_method_are_computed_again(evaluated, real, own, cache, tmp_path, monkeypatch):
    again = ("evaluate", evaluated / "images", "--data", real / "val", "--metrics", "kid", *own, "--out",
             tmp_path / "o")  # fmt: skip
    succeeded(run_here(*again))
    (before,) = values(tmp_path / "o").values()
    monkeypatch.setattr("cdm.pipeline.image_source.METHOD", -1)
    monkeypatch.setattr("cdm.pipeline.evaluate_figures.kid", lambda *given: replace(kid(*given), value=before + 1))
    succeeded(run_here(*again))
    assert list(values(tmp_path / "o").values()) == [before + 1]


def test_few_images_are_computed_with_force_and_marked(evaluated, real, own, cache, tmp_path):
    ran = run_here("evaluate", evaluated / "images", "--data", real / "val", "--metrics", "fd", *own, "--force",
                   "--out", tmp_path / "out")  # fmt: skip
    succeeded(ran, "FD-blocks", " !")
    assert load_report(tmp_path / "out").find("fd").forced


def test_more_images_are_diagnosed_as_if_they_were_the_first(made, real, own, cache, tmp_path):
    """Real images put in after a stage are others where there are more: what is kept of fewer is not taken for them."""
    command = ("evaluate", made, "--data", real / "val", "--metrics", "diagnosis", *own, *QUICK)
    for count, out in ((8, "grown"), (20, "grown"), (20, "whole")):
        run_here(*command, "-n", count, "--out", tmp_path / out)
    grown, whole = (load_report(tmp_path / out).diagnosis for out in ("grown", "whole"))
    assert whole["count"] == 20 and grown == whole


def test_larger_real_images_are_told_with_both_sizes(evaluated, real, own, cache, tmp_path):
    for name in ("cat", "dog"):
        write_images(tmp_path / "large" / name, 16, seed=2, width=48, height=40)
    ran = run_here("evaluate", evaluated / "images", "--data", tmp_path / "large", "--metrics", "kid", *own, "--out",
                   tmp_path / "out")  # fmt: skip
    succeeded(ran, "are 40 pixels (median shorter side), those judged 16: they are compared at 16")
    data = load_report(tmp_path / "out").data["val"]
    assert (data["own_size"], data["size"]) == (40, 16)
    assert "40 pixels, compared at 16" in (tmp_path / "out" / "report.html").read_text()


# ---- interruption and processes --------------------------------------------------------------------------------------


def test_an_interrupted_evaluation_goes_on(made, real, own, cache, tmp_path, monkeypatch):
    """Killed in its third block: the first two are not made again, nor are the files of --save, and the figures are
    those of an evaluation that never stopped."""
    from cdm.pipeline import generate

    command = ("evaluate", made, "--data", real / "val", "-n", 28, "--metrics", "kid,prdc", *own, *QUICK)
    succeeded(run_here(*command, "--out", tmp_path / "whole"))
    make, blocks = generate.RunImages.stages, []

    def stages(self, start, stop):
        if start == 16 and len(blocks) == 2:
            raise KeyboardInterrupt
        blocks.append(start)
        return make(self, start, stop)

    monkeypatch.setattr(generate.RunImages, "stages", stages)
    here = (*command, "--out", tmp_path / "out", "--save", tmp_path / "images")
    ran = run_here(*here)
    assert ran.code == 130 and "give the same command again" in ran.err, ran
    blocks.append(-1)
    succeeded(run_here(*here), "going on: 16 of 28 images are done")
    assert blocks == [0, 8, -1, 16, 24]
    assert values(tmp_path / "out") == values(tmp_path / "whole")
    assert len(list((tmp_path / "images").rglob("*.png"))) == 28


def test_two_processes_give_the_figures_of_one(made, real, own, cache, tmp_path):
    command = (
        "evaluate",
        made,
        "--data",
        real / "val",
        "-n",
        28,
        "--metrics",
        "kid,prdc,diagnosis",
        *own,
        *QUICK,
    )
    succeeded(run_here(*command, "--out", tmp_path / "one"))
    line = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "cdm.cli.main",
    ]
    done = subprocess.run([*line, *map(str, command), "--out", str(tmp_path / "two")], capture_output=True, text=True,
                          env=environment(CDM_CACHE=str(tmp_path / "cache-of-two")), timeout=TIMEOUT_S)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = load_report(tmp_path / "two")
    assert report.made["processes"] == 2
    assert done.stdout.count("judging 28 images") == 1  # only the first process talks
    one = load_report(tmp_path / "one")
    assert [(f.key, f.value, f.low, f.high) for f in report.computed] == [
        (f.key, f.value, f.low, f.high) for f in one.computed
    ]
    assert report.diagnosis == one.diagnosis


# ---- data ------------------------------------------------------------------------------------------------------------


def test_training_images_given_as_validation_are_warned_of(evaluated, real, own, cache, tmp_path):
    ran = run_here("evaluate", evaluated / "images", "--data", real / "train", "--train-data", real / "train",
                   "--metrics", "kid", *own, "--out", tmp_path / "out")  # fmt: skip
    succeeded(ran, "warning: the validation images are training images, every one")
    assert "every one" in load_report(tmp_path / "out").warnings[0]


def test_grey_validation_images_beside_colours_are_warned_of(evaluated, real, own, cache, tmp_path):
    """By evaluate and by train; grey beside grey is nothing to speak of."""
    for path in (real / "val").rglob("*.png"):
        grey = tmp_path / "grey" / path.relative_to(real / "val")
        grey.parent.mkdir(parents=True, exist_ok=True)
        PILImage.open(path).convert("L").save(grey)
    ran = run_here("evaluate", evaluated / "images", "--data", tmp_path / "grey", "--train-data", real / "train",
                   "--metrics", "kid", *own, "--out", tmp_path / "out")  # fmt: skip
    succeeded(ran, "warning: the validation images are grey, those trained on in colour")
    plan = ("train", "--out", tmp_path / "run", "--sizes", "8,16", "--images", "640", "--dry-run")
    grey, colour = tmp_path / "grey", real / "train"
    for data, val, told in ((colour, grey, "--val"), (grey, colour, "DATA"), (grey, grey, "")):
        ran = run_here(*plan, data, "--val", val)
        succeeded(ran)
        assert (f"the images of {told} are grey" in ran.out) == bool(told)


def test_what_a_run_held_out_is_its_validation_data(trained, own, cache, tmp_path):
    """By the names that training recorded, not by another draw."""
    names = (trained.folder / "held_out.txt").read_text().splitlines()
    command = ("evaluate", "--data", trained.data, "-n", 8, "--metrics", "kid", *own, *QUICK)
    ran = run_here(*command, trained.folder, "--out", tmp_path / "out")
    succeeded(ran, f"the {len(names)} images that it held out are the validation images")
    data = load_report(tmp_path / "out").data
    assert (data["val"]["count"], data["train"]["count"]) == (len(names), 24 - len(names))
    run = trained.copy(tmp_path / "run")
    (run / "held_out.txt").write_text("".join(f"{name}\n" for name in names[:2]))
    refused(run_here(*command, run, "--out", tmp_path / "less"), "that training recorded: put the file back")
    (run / "held_out.txt").unlink()
    refused(run_here(*command, run, "--out", tmp_path / "none"), "held_out.txt is not there")


def test_the_training_data_is_known_wherever_it_lies(trained, own, cache, tmp_path, monkeypatch):
    """Seen from another folder, as a link, as a copy; and changed data is told of."""
    names = (trained.folder / "held_out.txt").read_text().splitlines()
    copied = shutil.copytree(trained.data, tmp_path / "copy")
    (tmp_path / "link").symlink_to(trained.data)
    common = ("-n", 8, "--metrics", "kid", *own, *QUICK, "--dry-run", "--out", tmp_path / "out")
    monkeypatch.chdir(trained.data.parent)
    for data in (trained.data, trained.data.name, copied, tmp_path / "link"):
        ran = run_here("evaluate", trained.folder, "--data", data, *common)
        succeeded(ran, f"the {len(names)} images that it held out are the validation images")
        assert f"train: {24 - len(names)} images" in ran.out
    write_images(copied / "cat", 13, seed=0)
    ran = run_here("evaluate", trained.folder, "--data", copied, *common)
    succeeded(ran, "has all images that the run held out, yet other files than it was trained on")


@pytest.mark.parametrize("flag", ["--out", "--save"])
def test_an_evaluation_does_not_replace_the_files_of_the_run(trained, tmp_path, flag):
    run = trained.copy(tmp_path / "run")
    places = {"--out": tmp_path / "out"} | {flag: run}
    given = [part for pair in places.items() for part in pair]
    refused(run_here("evaluate", run, "--data", trained.data, *given), f"{flag} {run} is the run itself", "evaluation.")
    assert "training report" in (run / "report.html").read_text()


def test_features_are_kept_where_the_system_keeps_caches(evaluated, real, own, tmp_path, monkeypatch):
    monkeypatch.delenv("CDM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    ran = run_here("evaluate", evaluated / "images", "--data", real / "val", "--metrics", "kid", *own, "--out",
                   tmp_path / "out")  # fmt: skip
    succeeded(ran)
    assert list((tmp_path / "xdg" / "cdm" / "reference").iterdir())


def test_some_training_images_among_the_validation_images_are_counted(evaluated, real, own, cache, tmp_path):
    mixed = shutil.copytree(real / "val", tmp_path / "mixed")
    shutil.copy(real / "train" / "cat" / "03.png", mixed / "cat" / "another-name.png")
    ran = run_here("evaluate", evaluated / "images", "--data", mixed, "--train-data", real / "train",
                   "--metrics", "kid", *own, "--out", tmp_path / "out")  # fmt: skip
    succeeded(ran, "validation images are training images too, pixel by pixel")


def test_a_dry_run_writes_nothing(made, real, tmp_path):
    ran = run_here("evaluate", made, "--data", real / "val", "--out", tmp_path / "out", "--dry-run")
    succeeded(ran, "2,048 images", "nothing was written")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_lists_what_will_be_measured_and_what_not(evaluated, real, own, cache, tmp_path, monkeypatch):
    """As the command itself does it at its end."""
    monkeypatch.setattr("cdm.evaluate.extractors.domain.EFFORT", 20)
    monkeypatch.setenv("CDM_WEIGHTS", str(tmp_path / "no weights"))
    (tmp_path / "plain").mkdir()
    for path in sorted((evaluated / "images").rglob("*.png")):
        shutil.copy(path, tmp_path / "plain" / path.name)
    own = ("--extractors", f"{own[1]},domain,inception")
    command = ("evaluate", tmp_path / "plain", "--data", real / "val", *own, "--out", tmp_path / "out")
    planned, done = run_here(*command, "--dry-run"), run_here(*command)
    succeeded(planned, "KID-blocks ×1000, precision, recall, density, coverage against val; KID-domain")
    succeeded(done)

    def left_out(ran):
        return sorted(line for line in ran.out.splitlines() if line.startswith(("not computed", "no diagnosis")))

    assert left_out(planned) == left_out(done) and len(left_out(done)) == 5, planned
    listed = next(line for line in planned.out.splitlines() if line.startswith("to be measured"))
    assert "diagnosis" in listed
    for word in ("FD", "FID", "Inception", "CAS", "copies"):
        assert word not in listed


@pytest.mark.parametrize("metric", ["diagnosis", "memorisation"])
def test_one_finding_alone_is_an_evaluation(evaluated, real, own, cache, tmp_path, metric):
    ran = run_here("evaluate", evaluated / "images", "--data", real / "val", "--train-data", real / "train",
                   "--metrics", metric, *own, "--out", tmp_path / "out")  # fmt: skip
    succeeded(ran, "report.html")
    assert getattr(load_report(tmp_path / "out"), metric)


def test_a_better_level_is_measured_on_real_low_res_too(made, real, own, cache, tmp_path, monkeypatch):
    def better(found):
        return found.levels[1] if found.levels else None

    monkeypatch.setattr("cdm.pipeline.evaluate_apart.better_level", better)
    ran = run_here("evaluate", made, "--data", real / "val", "-n", 30, "--metrics", "diagnosis", *own, *QUICK,
                   "--aug-level", "0", "--out", tmp_path / "out")  # fmt: skip
    succeeded(ran)
    levels = load_report(tmp_path / "out").diagnosis["levels"]
    assert [level["level"] for level in levels] == [0.1, 0.2]
    assert levels[0]["oracle"] is None and levels[1]["oracle"]["value"] > 0


def test_labels_of_an_npz_are_the_classes_of_the_real_images(evaluated, real, own, cache, tmp_path, monkeypatch):
    monkeypatch.setattr("cdm.pipeline.evaluate_findings.cas", partial(cas, steps=1, seeds=(0, 1)))
    images = np.random.default_rng(0).integers(0, 256, (36, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", arr_0=images, arr_1=np.arange(36) % 2)
    ran = run_here("evaluate", tmp_path / "images.npz", "--data", real / "val", "--train-data", real / "train",
                   "--metrics", "cas", "--out", tmp_path / "out")  # fmt: skip
    succeeded(ran, "CAS top-1")
    assert load_report(tmp_path / "out").cas["class_names"] == ["cat", "dog"]


class Eyes:
    """Stands for Inception: blocks of pixels, of two sizes."""

    name, hash, dim, spatial_dim, num_probabilities = "inception", "0" * 12, 12, 3, 0
    resize, verified = "area", True

    def __call__(self, images):
        pool = torch.nn.functional.adaptive_avg_pool2d
        return Features(*(pool(images.float() / 255, side).flatten(1) for side in (2, 1)))


def test_statistics_that_were_saved_read_as_real_images(evaluated, real, cache, tmp_path, monkeypatch):
    """The distance to the file is that to the images it was made of."""
    monkeypatch.setattr("cdm.evaluate.extractors.load_inception", lambda *_: Eyes())
    common = ("--metrics", "fd,sfid,kid", "--extractors", "inception", "--force", "-n", 12)
    images, file = evaluated / "images", tmp_path / "made" / "reference.npz"
    first = ("evaluate", images, "--data", real / "val", *common, "--out", tmp_path / "a", "--save-statistics", file)
    succeeded(run_here(*first), "statistics of 32 real images saved in")
    with np.load(file) as made:
        assert set(made) == {"mu", "sigma", "mu_s", "sigma_s", "count"} and made["mu_s"].shape == (3,)
    succeeded(run_here("evaluate", images, "--data", file, *common, "--out", tmp_path / "b"))
    one, other = load_report(tmp_path / "a"), load_report(tmp_path / "b")
    for metric in ("fd", "sfid"):
        assert other.find(metric).value == pytest.approx(one.find(metric).value, rel=1e-6)
        assert other.find(metric).real == 32
    again = [argument for argument in first if argument != "--force"]
    succeeded(run_here(*again))  # its own file
    refused(run_here(*[tmp_path / "c" if a == tmp_path / "a" else a for a in again]), "exists already", "--force")


# ---- compare ---------------------------------------------------------------------------------------------------------


def test_compare_puts_reports_side_by_side(evaluated, real, own, cache, tmp_path):
    common = ("--data", real / "val", "--metrics", "kid,prdc", *own)
    succeeded(run_here("evaluate", evaluated / "images", *common, "--out", tmp_path / "made"))
    for name in ("cat", "dog"):
        write_images(tmp_path / "square" / name, 18, width=16, height=16)
    succeeded(run_here("evaluate", tmp_path / "square", *common, "--out", tmp_path / "true"))
    page = tmp_path / "both.html"
    compare = ("compare", tmp_path / "made", tmp_path / "true" / "report.json", "--out", page)
    succeeded(run_here(*compare), "made", "true", "KID-blocks", "recall", str(page))
    assert "KID-blocks" in page.read_text()
    refused(run_here(*compare), "both.html exists already", "--force")


def no_report(folder):
    return (folder / "a", folder / "b"), ("no report at", "cdm evaluate")


def one_report(folder):
    return (folder / "a",), ("fewer than two reports",)


def damaged_report(folder):
    (folder / "report.json").write_text(json.dumps({"kind": "evaluation"}))
    return (folder, folder), ("is damaged",)


@pytest.mark.parametrize("make", [no_report, one_report, damaged_report], ids=lambda make: make.__name__)
def test_compare_refuses(make, tmp_path):
    arguments, words = make(tmp_path)
    refused(run_here("compare", *arguments), *words)
