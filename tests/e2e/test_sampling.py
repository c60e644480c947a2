"""``cdm sample``, ``--again``, ``upscale`` and ``info``: what they refuse, keep and tell."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from tests.e2e.command import refused, run, run_here, succeeded
from tests.e2e.conftest import made_once
from tests.fakes import random_cascade, save_run, stage_config

from cdm import artifacts
from cdm.artifacts import load_json, save_json
from cdm.cascade import load_config
from cdm.config import AugmentationConfig, from_dict, to_dict
from cdm.data.save import read_png_info
from cdm.nn.unet import UNet

QUICK = ("--steps", "2,2")


@pytest.fixture(scope="session")
def sampled(shared, trained):
    """Two images of each class."""

    def make(folder):
        ran = run("sample", trained.folder, "-n", 2, "--out", folder / "images", *QUICK)
        succeeded(ran, f"4 images in {folder}", "grid.png", "2+2 network evaluations", "cdm sample --again")

    return made_once(shared, "sampled", make) / "images"


def test_images_tell_how_they_were_made(sampled, trained):
    assert sorted(path.relative_to(sampled).as_posix() for path in sampled.rglob("*.png")) == [
        "cat/cat-seed0-00000.png", "cat/cat-seed0-00001.png", "dog/dog-seed0-00000.png", "dog/dog-seed0-00001.png",
        "grid.png",
    ]  # fmt: skip
    info = read_png_info(sampled / "dog" / "dog-seed0-00001.png")
    assert (info["class"], info["seed"], info["index"], info["settings"]["steps"]) == ("dog", 0, 1, [2, 2])
    succeeded(run("info", trained.folder), *info["weights_hash"].split("-"))


def test_the_same_image_whatever_else_is_asked_for(sampled, trained, tmp_path):
    succeeded(run("sample", trained.folder, "-n", 1, "--class", "dog", "--out", tmp_path, *QUICK))
    name = "dog/dog-seed0-00000.png"
    assert (tmp_path / name).read_bytes() == (sampled / name).read_bytes()


def test_existing_files_are_kept_without_force(sampled, trained):
    before = {path: path.read_bytes() for path in sampled.rglob("*.png")}
    again = ("sample", trained.folder, "-n", 2, "--out", sampled, "--steps", "3,2")
    refused(run(*again), "exists already (and 3 more", "--force", "--out or --seed")
    assert {path: path.read_bytes() for path in sampled.rglob("*.png")} == before


def test_existing_files_are_overwritten_with_force(sampled, trained, tmp_path):
    out = shutil.copytree(sampled, tmp_path / "copy")
    succeeded(run("sample", trained.folder, "-n", 2, "--out", out, "--steps", "3,2", "--force"))
    name = "dog/dog-seed0-00000.png"
    assert (out / name).read_bytes() != (sampled / name).read_bytes()


def test_an_interrupted_call_goes_on_where_it_stopped(sampled, trained, tmp_path):
    """The same command makes what is missing, equal in every byte, and leaves the rest alone; then there is nothing."""
    out = shutil.copytree(sampled, tmp_path / "copy")
    (out / "grid.png").unlink()
    lost, kept = out / "dog" / "dog-seed0-00001.png", out / "cat" / "cat-seed0-00000.png"
    before, bytes_of_lost = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    again = ("sample", trained.folder, "-n", 2, "--out", out, *QUICK)
    succeeded(run(*again), "3 of 4 images are there from an earlier call", "4 images in", "grid.png")
    assert lost.read_bytes() == bytes_of_lost and kept.stat().st_mtime_ns == before
    succeeded(run(*again), "nothing to do: 4 images")
    (out / "grid.png").unlink()
    succeeded(run(*again), "all images are there; their sheet is now in", "grid.png")
    assert (out / "grid.png").exists()
    succeeded(run(*again[:3], 3, *again[4:]), "4 of 6 images are there", "grid-2.png")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has something to offload from")
def test_offloading_on_a_cpu_changes_nothing_and_says_so(sampled, trained, tmp_path):
    ran = run("sample", trained.folder, "-n", 1, "--class", "dog", "--out", tmp_path, "--offload", *QUICK)
    succeeded(ran, "--offload changes nothing on a CPU", "1 image in")
    name = "dog/dog-seed0-00000.png"
    assert (tmp_path / name).read_bytes() == (sampled / name).read_bytes()


def test_again_remakes_byte_by_byte(sampled, tmp_path):
    path = sampled / "dog" / "dog-seed0-00001.png"
    succeeded(run("sample", "--again", path, "--out", tmp_path), "equal in every pixel")
    succeeded(run("sample", "--again", path, "--out", f"{tmp_path}/new/"), f"{tmp_path}/new/dog-seed0-00001-again.png")
    assert (tmp_path / "dog-seed0-00001-again.png").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["new", "new.png", "new.npy"])
def test_again_of_what_png_cannot_hold(tmp_path, name):
    """Five channels: the new file is named as it is, and one that is there already is kept."""
    run_folder = save_run(tmp_path / "run", random_cascade(stage_config(8, channels=5)))
    succeeded(run_here("sample", run_folder, "-n", 1, "--steps", 2, "--out", tmp_path / "made"))
    (path,) = (tmp_path / "made").glob("*.npy")
    again = ("sample", run_folder, "--again", path, "--out", tmp_path / name)
    new = tmp_path / (name if name.endswith(".npy") else f"{name}.npy")
    succeeded(run_here(*again), f"remade in {new}, equal in every pixel")
    assert np.array_equal(np.load(new), np.load(path))
    refused(run_here(*again), f"{new} exists already", "--force")
    new.unlink()
    refused(run_here(*again), f"{new.with_suffix('.json')} exists already", "--force")


def test_again_with_other_weights_is_refused(sampled, trained, tmp_path):
    other = trained.copy(tmp_path / "other")
    for name in ("0-8/ema-0.050.safetensors", "1-16/ema-0.050.safetensors"):
        (other / name).unlink()
        shutil.copy(other / name.replace("0.050", "0.100"), other / name)
    path = sampled / "dog" / "dog-seed0-00001.png"
    refused(run("sample", other, "--again", path), "made with the weights", "holds", "expected the same")


def test_again_in_a_run_of_fewer_stages_is_refused(sampled, trained, tmp_path):
    body = load_json(trained.folder / "cascade.json")
    body["config"]["stages"].pop()
    save_json(tmp_path / "cascade.json", body)
    ran = run("sample", tmp_path, "--again", sampled / "dog" / "dog-seed0-00001.png")
    refused(ran, f"the stages 0, 1 of {tmp_path}, which has 1 (0 to 0)", "give another run folder")


def plain_png(folder):
    PILImage.new("RGB", (16, 16)).save(folder / "plain.png")
    return folder / "plain.png", ("does not tell how it was made", "expected")


def no_image(folder):
    (folder / "notes.png").write_text("not a picture")
    return folder / "notes.png", ("does not tell how it was made", "expected")


def missing(folder):
    return folder / "nothing.png", ("nothing.png is not there", "expected")


@pytest.mark.parametrize("make", [plain_png, no_image, missing], ids=lambda make: make.__name__)
def test_again_of_a_file_it_did_not_write_is_refused(make, tmp_path):
    path, words = make(tmp_path)
    refused(run("sample", "--again", path), *words)
    assert not list(tmp_path.glob("*-again*"))


def test_again_beside_other_settings_is_refused(sampled):
    path = sampled / "dog" / "dog-seed0-00001.png"
    refused(run("sample", "--again", path, "--steps", "9"), "--steps beside --again", "leave --steps out")
    refused(run("sample", "--again", path, "--batch-size", "9"), "makes one image", "leave --batch-size out")


REFUSED = {
    "unknown class": (("--class", "cta"), ("unknown class 'cta'", "expected one of cat, dog", "did you mean 'cat'")),
    "other case": (("--class", "DOG"), ("unknown class 'DOG'", "did you mean 'dog'")),
    "no images": (("-n", "0"), ("-n is 0", "expected at least 1")),
    "steps that are no numbers": (("--steps", "many"), ("--steps is 'many'", "expected whole numbers", "32,16")),
    "no steps": (("--steps", "0,4"), ("got 0 steps", "expected 1 to")),
    "steps for too many stages": (("--steps", "4,4,4"), ("3 numbers of steps for 2 stages", "expected one per stage")),
    "stage out of range": (("--stage", "2"), ("--stage 2", "expected 0 (the base) to 1")),
    "stage below zero": (("--stage", "-1"), ("--stage -1", "expected 0 (the base) to 1")),
    "augmentation level out of range": (("--aug-level", "1.5"), ("1.5 is out of range", "expected 0")),
    "augmentation level that is no number": (("--aug-level", "much"), ("--aug-level is 'much'", "expected numbers")),
    "too many augmentation levels": (
        ("--aug-level", "0.1,0.2"),
        ("got 2 augmentation levels", "SR stages is 1", "give one"),
    ),
    "unknown sampler": (("--sampler", "euler"), ("'euler'", "expected one of dpmpp")),
    "unknown hand-over": (("--hand-over", "loud"), ("'loud'", "expected non_truncated or truncated")),
    "unknown weights": (("--weights", "0.3"), ("0.3", "expected")),
    "no batch": (("--batch-size", "0"), ("--batch-size is '0'", "expected auto, or a whole number of at least 1")),
    "a batch in words": (("--batch-size", "x"), ("--batch-size is 'x'", "expected auto")),
    "seed too large": (("--seed", "99999999999"), ("--seed is 99999999999", "expected 0 to")),
    "device that is not there": (("--device", "cuda:99"), ("'cuda:99'", "--device cpu")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_sample_refuses(case, trained, tmp_path):
    options, words = REFUSED[case]
    refused(run("sample", trained.folder, *options, "--out", tmp_path / "new"), *words)
    assert not (tmp_path / "new").exists()


def test_a_precision_that_the_device_lacks_falls_back(trained, tmp_path):
    options = ("--device", "cpu", "--precision", "fp16", "-n", "1", "--steps", "2,2", "--out", tmp_path / "new")
    succeeded(
        run("sample", trained.folder, *options), "precision fp16 is not supported here, for this is a CPU: going on"
    )


def test_sample_needs_a_run_folder(tmp_path):
    refused(run("sample"), "no run folder given", "expected cdm sample RUN")
    refused(run("sample", tmp_path), str(tmp_path), "not a run folder", "expected the --out of")


def test_sample_of_a_stage_that_is_not_trained(trained, tmp_path):
    folder = trained.copy(tmp_path / "run")
    shutil.rmtree(folder / "1-16")
    refused(run("sample", folder), "stage 1", "has no weights", "cdm train")
    succeeded(run("sample", folder, "--stage", "0", "-n", "1", "--steps", "2"), "2 images")


def test_truncated_hand_over_before_a_stage_without_noise_augmentation(trained, tmp_path):
    """The SR stage is put in place of one trained with blur: fresh weights that fit."""
    folder = trained.copy(tmp_path / "run")
    body = artifacts.load_json(folder / "cascade.json")
    stage = body["config"]["stages"][1]
    stage["augmentation"] = to_dict(AugmentationConfig(kind="blur"))
    stage["net"]["has_aug_level"] = False
    artifacts.save_json(folder / "cascade.json", body)
    artifacts.save_json(folder / "1-16" / "config.json", {"config": stage})
    with torch.random.fork_rng(devices=[]):
        net = UNet(load_config(folder).stages[1].net)
    (folder / "1-16" / "ema-0.050.safetensors").unlink()
    artifacts.save_tensors(folder / "1-16" / "ema-0.050.safetensors", dict(net.named_parameters()), {})
    ran = run("sample", folder, "-n", 1, *QUICK, "--hand-over", "truncated")
    refused(ran, "truncated hand-over needs", "stage 1 has 'blur'", "--hand-over non_truncated")
    succeeded(run("sample", folder, "-n", 1, *QUICK), "2 images")


# ---- upscale ---------------------------------------------------------------------------------------------------------


def test_upscale_resizes_what_has_another_size_and_says_so(trained, tmp_path):
    for name, size in {"fits": (8, 8), "large": (30, 30), "wide": (20, 12), "small": (5, 5)}.items():
        PILImage.new("RGB", size, "teal").save(tmp_path / f"{name}.png")
    names = [tmp_path / f"{name}.png" for name in ("fits", "large", "wide", "small")]
    ran = run("upscale", trained.folder, *names, "--class", "dog", "--out", tmp_path / "up", "--steps", "2")
    succeeded(ran, "large.png: 30x30 pixels, resized to 8x8", "wide.png: 20x12 pixels, cropped and resized to 8x8",
              "small.png: 5x5 pixels, resized to 8x8", "4 images at 16 pixels")  # fmt: skip
    assert "fits.png" not in ran.out
    for name in ("fits", "large", "wide", "small"):
        with PILImage.open(tmp_path / "up" / f"{name}-upscaled.png") as picture:
            assert picture.size == (16, 16)


def test_upscale_that_is_interrupted_says_what_there_is(trained, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("cdm.cli.upscale.upscale_to_files", interrupted)
    ran = run_here("upscale", trained.folder, "a.png", "--out", tmp_path / "up")
    assert ran.code == 130 and "images are written at the end: give the same command again" in ran.err, ran


def upscale_text(folder):
    (folder / "notes.png").write_text("not a picture")
    return (folder / "notes.png",), ("notes.png", "not an image", "expected an image file")


def upscale_nothing(folder):
    return (), ("no image given", "expected cdm upscale RUN IMAGE")


def upscale_missing(folder):
    return (folder / "nothing.png",), ("nothing.png", "expected an image file")


def upscale_with_steps_for_the_base(folder):
    return ("a.png", "--steps", "4,4"), ("2 numbers of steps for 1 SR stage", "expected one for each")


def upscale_of_unknown_class(folder):
    PILImage.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "a.png")
    return (folder / "a.png", "--class", "dgo"), ("unknown class 'dgo'", "did you mean 'dog'")


UPSCALE = [upscale_text, upscale_nothing, upscale_missing, upscale_with_steps_for_the_base, upscale_of_unknown_class]


@pytest.mark.parametrize("make", UPSCALE, ids=lambda make: make.__name__)
def test_upscale_refuses(make, trained, tmp_path):
    arguments, words = make(tmp_path)
    refused(run("upscale", trained.folder, *arguments, "--out", tmp_path / "up"), *words)
    assert not (tmp_path / "up").exists()


# ---- info ------------------------------------------------------------------------------------------------------------


def test_info_tells_stages_classes_and_weights(trained):
    ran = run("info", trained.folder)
    succeeded(ran, "8 -> 16 pixels", "recipe demo", "2 classes: cat, dog", "640 images", "gaussian")
    assert max(map(len, ran.out.splitlines())) <= 100


@pytest.mark.parametrize("flag", [("-n", "3"), ("--device", "cpu"), ("--precision", "fp32")], ids=lambda flag: flag[0])
def test_info_refuses_what_is_for_the_bound(trained, flag):
    refused(run_here("info", trained.folder, *flag), f"{flag[0]} {flag[1]} without --bits-per-dim", "expected both")


def test_info_of_a_name_too_long():
    refused(run("info", "x" * 5000), "cannot be used", "name too long", "another path")


def test_info_refuses_a_bound_on_no_images(trained, data):
    refused(run("info", trained.folder, "--bits-per-dim", data, "-n", 0), "-n is 0", "expected at least 1 image")


def test_info_of_a_folder_that_is_no_run(tmp_path):
    refused(run("info", tmp_path), "not a run folder", "no cascade.json", "expected the --out of")


def test_info_of_a_file_that_is_not_a_configuration(tmp_path):
    (tmp_path / "cascade.json").write_text(json.dumps({"stages": []}))
    refused(run("info", tmp_path), "cascade.json is damaged", "put back a copy")


def test_images_for_a_bound_that_is_not_asked_for_are_refused(trained):
    refused(run("info", trained.folder, "-n", 8), "-n 8 without --bits-per-dim")


def test_bits_per_dim_of_one_class_alone(trained, data, tmp_path):
    """Its folder is not taken for a common top folder."""
    shutil.copytree(data / "dog", tmp_path / "data" / "dog")
    succeeded(run("info", trained.folder, "--bits-per-dim", tmp_path / "data", "-n", 1), "on 1 images")


def test_bits_per_dim_of_every_stage(trained, data):
    ran = run("info", trained.folder, "--bits-per-dim", data, "-n", 2)
    succeeded(ran, "stage 0-8: ", "stage 1-16: ")
    assert ran.out.count("bits per dimension on 2 images") == 2


def test_config_of_the_run_survives_a_round_trip(trained):
    config = load_config(trained.folder)
    assert from_dict(type(config), to_dict(config)) == config
