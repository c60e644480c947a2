"""The same command again: what goes on, what is refused, and what damage is made good."""

import json
import shutil

import pytest
from tests.e2e.command import refused, run, succeeded
from tests.e2e.conftest import OPTIONS, PLAN, write_images

from cdm import artifacts
from cdm.artifacts import read_log

MORE = (*PLAN, "--images", "704")


@pytest.fixture
def folder(trained, tmp_path):
    return trained.copy(tmp_path / "run")


def test_a_finished_run_says_so(trained, data):
    ran = run("train", data, "--out", trained.folder, *OPTIONS)
    succeeded(ran, "is trained already", "larger --images or --minutes")


def test_a_larger_budget_extends_the_run(folder, data):
    ran = run("train", data, "--out", folder, *MORE, "--stage", "0")
    succeeded(ran, "extended from 640 to 704 images", "going on from 640 images", "704 of 704 images")
    assert "704 images" in run("info", folder).out


CHANGED = {
    "other recipe": (("--recipe", "small"), ("--recipe demo", "now it is small", "--out")),
    "other sizes": (("--sizes", "8,32"), ("--sizes 8,16", "now it is 8,32")),
    "sizes left out": (("--sizes", None), ("--sizes 8,16", "now it is (not given)")),
    "other seed": (("--seed", "1"), ("--seed 0", "now it is 1", "repeat the old value")),
    "flips": (("--flip", ""), ("--flip False", "now it is True")),
    "smaller budget": (("--images", "639"), ("--images 640", "now it is --images 639", "larger")),
    "other kind of budget": (("--minutes", "9"), ("--images 640", "now it is --minutes 9")),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_changed_option_is_refused_naming_both_values(case, trained, data):
    (flag, value), words = CHANGED[case]
    given: dict[str, str | None] = dict(zip(OPTIONS[::2], OPTIONS[1::2], strict=True)) | {flag: value}
    if flag == "--minutes":
        del given["--images"]
    line = [part for key, text in given.items() if text is not None for part in (key, text) if part]
    refused(run("train", data, "--out", trained.folder, *line), str(trained.folder), *words)


@pytest.fixture
def other(data, tmp_path):
    shutil.copytree(data, tmp_path / "other")
    write_images(tmp_path / "other" / "dog", 13)
    return tmp_path / "other"


def test_other_data_is_refused(trained, other):
    refused(run("train", other, "--out", trained.folder, *OPTIONS), str(other), "--allow-changed-data", "--out")


def test_other_data_with_allow_changed_data(folder, other):
    """It is trained on, from where the run was; the next call needs no flag."""
    more = (*PLAN, "--images", "1280", "--stage", "0")
    ran = run("train", other, "--out", folder, *more, "--allow-changed-data")
    succeeded(ran, "the data has changed", "going on from 640 images", "1,280 of 1,280 images")
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    (changed,) = (event for event in events if event["kind"] == "data_changed")
    assert changed["fingerprint"] != changed["fingerprint_before"]
    rows = read_log(folder / "0-8" / "log.jsonl")
    assert rows[-1]["images_seen"] == 1280 and all(row["loss"] > 0 for row in rows[-8:])
    again = run("train", other, "--out", folder, *more)
    assert again.code == 0 and "the data has changed" not in again.out, again


def test_other_data_with_a_class_the_run_does_not_know(trained, other):
    write_images(other / "emu", 12)
    ran = run("train", other, "--out", trained.folder, *OPTIONS, "--allow-changed-data")
    refused(ran, "'emu'", "expected the classes cat, dog")


# ---- formats and damage ----------------------------------------------------------------------------------------------


def test_a_newer_format_is_refused(folder, data, monkeypatch):
    body = artifacts.load_json(folder / "cascade.json")
    with monkeypatch.context() as newer:
        newer.setattr(artifacts, "FORMAT_VERSION", artifacts.FORMAT_VERSION + 1)
        artifacts.save_json(folder / "cascade.json", body)
    before = (folder / "cascade.json").read_bytes()
    for command in (("train", data, "--out", folder, *MORE), ("sample", folder)):
        refused(run(*command), "cascade.json", "newer cdm", "reads up to", "Install the newer cdm")
    assert (folder / "cascade.json").read_bytes() == before


def test_a_damaged_cascade_file_is_refused(folder, data):
    text = (folder / "cascade.json").read_text().replace('"seed": 0', '"seed": 1', 1)
    (folder / "cascade.json").write_text(text)
    refused(run("train", data, "--out", folder, *MORE), "cascade.json is damaged", "checksum", "put back a copy")


def test_a_lost_cascade_file_is_refused(folder, data):
    """A new run over the old one's checkpoints would mix the two."""
    (folder / "cascade.json").unlink()
    refused(run("train", data, "--out", folder, *MORE), "no cascade.json", "put it back", "--out")
    assert not (folder / "cascade.json").exists()


def test_damaged_weights_are_refused_and_mended_by_the_training_command(folder, data):
    """From the checkpoint; nothing else stands in for them unasked."""
    weights = folder / "0-8" / "ema-0.050.safetensors"
    whole = weights.read_bytes()
    damage_by_a_bit(weights)
    refused(run("sample", folder, "--out", folder / "new"), "ema-0.050.safetensors is damaged", "checksum")
    weights.unlink()
    refused(run("sample", folder, "--out", folder / "new"), "has no weights at", "cdm train")
    assert not (folder / "new").exists()
    succeeded(run("train", data, "--out", folder, *OPTIONS), "ema-0.050.safetensors", "written again from")
    assert weights.read_bytes() == whole
    succeeded(run("sample", folder, "-n", "1", "--out", folder / "new"))


def damage_by_half(path):
    content = path.read_bytes()
    path.unlink()  # the file is linked from the shared run
    path.write_bytes(content[: len(content) // 2])


def damage_by_a_few_bytes(path):
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-100])


def damage_by_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1000] ^= 4
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [damage_by_half, damage_by_a_few_bytes, damage_by_a_bit], ids=lambda f: f.__name__)
def test_a_damaged_checkpoint_is_refused_and_the_previous_one_used(damage, folder, data):
    before, last = sorted((folder / "0-8" / "training").glob("ckpt-*.safetensors"))[-2:]
    damage(last)
    (folder / "0-8" / "training" / f".{last.name}.{10**9}.tmp").write_bytes(b"half of a write that was killed")
    ran = run("train", data, "--out", folder, *MORE, "--stage", "0")
    seen = int(before.stem.split("-")[1])
    succeeded(ran, str(last), "is damaged", f"going on from {seen} images", "704 of 704 images")
    assert (folder / "0-8" / "training" / f"{last.name}.damaged").exists()
    assert not list(folder.rglob(".*.tmp"))
