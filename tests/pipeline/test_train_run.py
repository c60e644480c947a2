"""``cdm train`` from Python: what a second call takes over, what it warns of, and streams of validation."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.e2e.forker import tiny

from cdm.artifacts import append_event, load_json, read_events, read_log, save_json
from cdm.cascade import Cascade, load_config
from cdm.config import CascadeConfig, DataConfig
from cdm.errors import UserError
from cdm.pipeline import held_out, look
from cdm.pipeline.generate import no_progress
from cdm.pipeline.look import Validation
from cdm.pipeline.request import TrainRequest
from cdm.pipeline.train_run import Prepared, prepare, train
from cdm.recipes.facts import Facts
from cdm.rng import Purpose, Rng
from cdm.train.loop import Stopped
from cdm.types import Batch


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr("cdm.train.loop.PREVIEWS", ())
    monkeypatch.setattr("cdm.train.loop.VALIDATIONS", ())
    monkeypatch.setattr("cdm.pipeline.train_run.find_tensorboard", lambda say: None)


def write_images(folder: Path, classes: str, count: int = 6, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for k in range(count):
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / name / f"{k}.png")
    return folder


class Asking:
    """One user who asks for the same run again and again."""

    def __init__(self, tmp_path: Path) -> None:
        self.said: list[str] = []
        self.request = TrainRequest(
            data=str(write_images(tmp_path / "data", "bde", count=4)), out=tmp_path / "run", recipe="tiny",
            sizes=(4, 8), channels=1, images=80, checkpoint_images=40, threads=1, precision="fp32", val_fraction=0.3,
            command="cdm train ...",
        )  # fmt: skip

    def prepare(self, **changed: Any) -> Prepared:
        def make_config(
            sizes: tuple[int, ...], class_names: tuple[str, ...], data: DataConfig, count: int
        ) -> CascadeConfig:
            return tiny(Facts(sizes, class_names, data, count, self.request.seed))

        return prepare(replace(self.request, **changed), make_config, None, self.said.append, no_progress)

    def train(self, **changed: Any) -> Path:
        return train(self.prepare(**changed), self.said.append)

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.request.out / "events.jsonl") if event["kind"] == kind]


@pytest.fixture
def user(tmp_path: Path) -> Asking:
    return Asking(tmp_path)


def test_stages_alone_then_the_report(user: Asking) -> None:
    out = user.request.out
    assert user.train(stage=0) == out
    assert "stage 1 is still to be trained" in user.said[-1]
    assert not (out / "samples.png").exists()
    assert user.train(stage=1) == out / "report.html"
    assert (out / "samples.png").exists()
    assert [event["stage"] for event in user.events("stage_done")] == [0, 1]
    made = (out / "report.html").stat().st_mtime_ns
    assert user.train() == out / "report.html"
    assert "is trained already" in user.said[-1]
    assert (out / "report.html").stat().st_mtime_ns == made
    (out / "report.html").unlink()
    user.train()
    assert (out / "report.html").exists()


def test_all_skipped_files_are_named_in_the_run(user: Asking, tmp_path: Path) -> None:
    """Only ten of them on the terminal; of other data later, only those."""
    for k in range(12):
        (tmp_path / "data" / "b" / f"broken{k:02}.png").touch()
    user.prepare()
    assert "skipped 2 more; a run names all of them in its skipped.txt" in user.said
    assert not user.request.out.exists()
    user.train(stage=0)
    path = user.request.out / "skipped.txt"
    assert path.read_text().splitlines() == [f"b/broken{k:02}.png: the file is empty" for k in range(12)]
    assert f"12 skipped files named in {path}" in user.said
    for file in (tmp_path / "data" / "b").glob("broken*"):
        file.unlink()
    user.train(stage=0, allow_changed_data=True)
    assert path.read_text() == ""


def test_the_images_held_out_are_named_in_the_run(user: Asking) -> None:
    prepared = user.prepare()
    user.train(stage=0)
    names = (user.request.out / "held_out.txt").read_text().splitlines()
    assert prepared.val is not None and len(names) == len(prepared.val) > 0
    folder = Path(user.request.data)
    assert names == sorted(names) and all((folder / name).is_file() for name in names)


def test_a_run_goes_on_with_the_images_it_held_out(user: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list decides, not another draw."""
    user.train(stage=0)
    names = (user.request.out / "held_out.txt").read_text().splitlines()
    monkeypatch.setattr("cdm.pipeline.train_run.split_rows", None)  # never asked
    prepared = user.prepare(stage=0, images=160)
    assert prepared.held_out == tuple(names) and prepared.val is not None and len(prepared.val) == len(names)


@pytest.mark.parametrize("damage", ["emptied", "cut", "extended", "one unknown"])
def test_a_list_that_training_did_not_write_is_refused(user: Asking, damage: str) -> None:
    """Or images that were trained on would count as held out, or the other way round."""
    user.train(stage=0)
    path = user.request.out / "held_out.txt"
    text = path.read_text()
    trained_on = next(
        name
        for found in sorted(Path(user.request.data).rglob("*.png"))
        if (name := str(found.relative_to(user.request.data))) not in text
    )
    path.write_text(
        {"emptied": "", "cut": text[text.index("\n") + 1 :], "extended": f"{text}{trained_on}\n",
         "one unknown": f"{text}x/1.png\n"}[damage]
    )  # fmt: skip
    with pytest.raises(UserError, match="that training recorded: put the file back"):
        user.prepare(stage=0, images=160)


def test_a_list_saved_by_another_editor_is_the_same_list(user: Asking) -> None:
    """Line ends of Windows, a byte order mark, no line end at the end; and a deleted one is written again."""
    user.train(stage=0)
    path = user.request.out / "held_out.txt"
    text = path.read_text()
    wanted = user.prepare(stage=0, images=160).held_out
    for other in (text.replace("\n", "\r\n").encode(), b"\xef\xbb\xbf" + text.encode(), text.rstrip("\n").encode()):
        path.write_bytes(other)
        assert user.prepare(stage=0, images=160).held_out == wanted
    path.unlink()
    user.train(stage=0)
    assert path.read_text() == text


def test_names_with_line_breaks_are_one_line_each(tmp_path: Path) -> None:
    names = ("a\nb/1.png", "c\\n/2.png", "d\r/3.png", "plain/4.png")
    mark = held_out.write_held_out(tmp_path, names)
    assert len((tmp_path / "held_out.txt").read_text().splitlines()) == 4
    assert held_out.read_held_out(tmp_path) == set(names) and held_out.held_out_mark(names[::-1]) == mark


@pytest.mark.parametrize("damage", ["everything", "others"])
def test_held_out_names_that_are_not_of_the_data_are_told(user: Asking, damage: str) -> None:
    user.train(stage=0)
    names = {
        "everything": sorted(
            str(path.relative_to(user.request.data)) for path in Path(user.request.data).rglob("*.png")
        ),
        "others": ["x/1.png"],
    }[damage]
    held_out.write_held_out(user.request.out, names)
    events = user.request.out / "events.jsonl"  # as written before the list was recorded
    events.write_text("".join(line for line in events.read_text().splitlines(True) if '"start"' not in line))
    with pytest.raises(UserError, match="expected some of them and not all: put back"):
        user.prepare(stage=0, images=160)


def test_validation_images_of_one_class_are_a_class(user: Asking, tmp_path: Path) -> None:
    """A single class folder would else be taken for a common top folder."""
    prepared = user.prepare(val=str(write_images(tmp_path / "val", "d", seed=1)))
    assert prepared.val is not None and prepared.val.labels is not None
    assert set(prepared.val.labels.tolist()) == {1} and len(prepared.train) == 12


@pytest.mark.parametrize(("classes", "got"), [("bx", "got the class 'x'"), ("", "got images without class folders")])
def test_validation_images_of_other_classes_are_refused(user: Asking, tmp_path: Path, classes: str, got: str) -> None:
    val = write_images(tmp_path / "val", classes)
    if not classes:
        write_images(tmp_path / "loose", "b").joinpath("b").rename(val)
    with pytest.raises(UserError) as told:
        user.prepare(val=str(val))
    for words in (f"--val {val}", got, "expected the classes b, d, e", "leave --val out"):
        assert words in str(told.value)


def test_other_machine_is_named(user: Asking) -> None:
    user.train(stage=0)
    assert not any("warning" in said and "bit for bit" in said for said in user.said)
    start = user.events("start")[-1]
    append_event(user.request.out / "events.jsonl", start | {"torch": "1.0", "threads": 64, "norm": "before"})
    user.train(stage=0)
    warnings = [said for said in user.said if "bit for bit" in said]
    assert len(warnings) == 3
    assert "torch was '1.0' and is" in warnings[0] and "threads was 64 and is 1 now" in warnings[1]
    assert "norm was 'before' and is '" in warnings[2]


def test_changed_data_keeps_the_numbers_of_the_classes(user: Asking, tmp_path: Path) -> None:
    """Without its first class folder, the others still have their own labels; an unknown one is refused."""
    user.train(stage=0)
    fewer = write_images(tmp_path / "fewer", "de")
    with pytest.raises(UserError, match="--allow-changed-data"):
        user.prepare(data=str(fewer))
    prepared = user.prepare(data=str(fewer), allow_changed_data=True)
    assert prepared.config.class_names == ("b", "d", "e")
    batch = prepared.batches(0)(Rng(0), torch.arange(32))
    assert batch.labels is not None and set(batch.labels.tolist()) == {1, 2}
    with pytest.raises(UserError, match="got the class 'a'"):
        user.prepare(data=str(write_images(tmp_path / "other", "abd")), allow_changed_data=True)


def test_data_that_was_allowed_to_change_is_the_runs_own_from_then_on(user: Asking, tmp_path: Path) -> None:
    """Recorded with both fingerprints; no flag is needed again, and other data is other data still."""
    user.request = replace(user.request, val=str(write_images(tmp_path / "val", "b")))
    user.train(stage=0)
    first = user.prepare()
    assert user.events("data_changed") == []
    second, third = str(write_images(tmp_path / "second", "bde", 5)), str(write_images(tmp_path / "third", "bde", 6))
    with pytest.raises(UserError, match="--allow-changed-data"):
        user.train(stage=0, data=second)
    user.train(stage=0, data=second, allow_changed_data=True)
    (event,) = user.events("data_changed")
    now = user.prepare(data=second)  # no flag
    assert event["fingerprint_before"] == first.fingerprint != event["fingerprint"] == now.fingerprint
    assert event["val_fingerprint_before"] == event["val_fingerprint"] == first.val_fingerprint is not None
    assert any("the data has changed" in said for said in user.said)
    user.train(stage=0, data=second)
    user.train(stage=0, data=second, allow_changed_data=True)
    assert len(user.events("data_changed")) == 1
    for other in (third, user.request.data):
        with pytest.raises(UserError, match=f"expected {now.fingerprint[:12]}"):
            user.prepare(data=other)


def test_validation_images_that_were_allowed_to_change(user: Asking, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "val", "b")
    user.request = replace(user.request, val=str(folder))
    user.train(stage=0)
    write_images(tmp_path / "more", "d").joinpath("d").rename(folder / "d")
    with pytest.raises(UserError, match=r"data at .*val is not what"):
        user.prepare()
    user.train(stage=0, allow_changed_data=True)
    (event,) = user.events("data_changed")
    assert event["val_fingerprint"] != event["val_fingerprint_before"]
    user.prepare()


def test_changed_16_bit_data_keeps_the_window(user: Asking, tmp_path: Path) -> None:
    """The window says which intensity -1 and 1 stand for; weights were trained on that."""

    def write(folder: Path, high: int) -> str:
        folder.mkdir()
        for k in range(6):
            pixels = np.random.default_rng(k).integers(500, high, (8, 8), dtype=np.uint16)
            pixels[0, 0], pixels[0, 1] = 500, high
            Image.fromarray(pixels).save(folder / f"{k}.png")
        return str(folder)

    user.request = replace(user.request, data=write(tmp_path / "deep", 3000))
    user.train(stage=0)
    assert load_config(user.request.out).data.window == (500, 3000)
    prepared = user.prepare(data=write(tmp_path / "deeper", 4000), allow_changed_data=True)
    assert prepared.train.pyramid.window == (500, 3000)


def test_16_bit_data_of_8_bit_values_is_read_again_as_at_first(user: Asking, tmp_path: Path) -> None:
    """As 8-bit cameras are often saved: its window is that of 8-bit images, its bit depth is not."""
    (tmp_path / "deep").mkdir()
    pixels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    for k in range(6):
        Image.fromarray(np.roll(pixels, k)).save(tmp_path / "deep" / f"{k}.png")
    user.request = replace(user.request, data=str(tmp_path / "deep"), sizes=(8, 16))
    first = user.prepare()
    assert (first.config.data.bit_depth, first.config.data.window) == (16, (0, 255))
    user.train(stage=0)
    again = user.prepare()
    assert np.array_equal(first.train.pyramid.at(1), again.train.pyramid.at(1))


def test_run_that_another_process_began_meanwhile_is_not_taken_for_ones_own(user: Asking) -> None:
    mine = user.prepare(seed=1)
    user.train(stage=0)
    with pytest.raises(UserError, match="--seed 0, now it is 1"):
        train(mine, user.said.append)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_a_second_one_stops_at_once(
    user: Asking, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = user.prepare()
    batches = Prepared.batches
    handler = signal.getsignal(number)

    def sending(times: int) -> Any:
        def make(self: Prepared, index: int) -> Any:
            source = batches(self, index)

            def batch(rng: Rng, positions: torch.Tensor) -> Batch:
                if int(positions[0]) == 56 and index == 0:
                    for _ in range(times):
                        signal.raise_signal(number)
                return source(rng, positions)

            return batch

        return make

    monkeypatch.setattr(Prepared, "batches", sending(2))
    with pytest.raises(KeyboardInterrupt):
        train(prepared, user.said.append)
    assert signal.getsignal(number) is handler
    log = user.request.out / "0-4" / "log.jsonl"
    assert read_log(log)[-1]["images_seen"] == 56
    saved = user.request.out / "0-4" / "training"
    assert [path.name for path in saved.iterdir()] == ["ckpt-000000000040.safetensors"]

    monkeypatch.setattr(Prepared, "batches", sending(1))
    with pytest.raises(Stopped):
        train(user.prepare(), user.said.append)
    assert sorted(path.name for path in saved.iterdir())[-1] == "ckpt-000000000064.safetensors"


def test_stage_configurations_are_there_when_the_cascade_is(user: Asking) -> None:
    user.train(stage=0)
    stages = [load_json(user.request.out / f"{k}-{size}" / "config.json")["config"] for k, size in ((0, 4), (1, 8))]
    assert load_json(user.request.out / "cascade.json")["config"]["stages"] == stages


def test_stage_folder_of_another_run_is_refused(user: Asking) -> None:
    """When the run goes on, and when it is sampled from."""
    user.train(stage=0)
    path = user.request.out / "0-4" / "config.json"
    body = load_json(path)
    body["config"]["net"]["dropout"] = 0.5
    save_json(path, body)
    message = r"0-4/config.json and cascade.json differ in 'net'; expected the same: put back the stage folder"
    with pytest.raises(UserError, match=message):
        user.prepare()
    with pytest.raises(UserError, match=message):
        Cascade.load(user.request.out, stages=[0])
    path.unlink()  # as in a cascade exported without it
    user.prepare()
    assert len(Cascade.load(user.request.out, stages=[0]).stages) == 1


def test_validation_draws_from_other_streams_than_training(user: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of no stage and no attempt; and the same numbers each time it looks."""
    prepared = user.prepare()
    assert prepared.val is not None
    used: list[tuple[Rng, torch.Tensor]] = []
    noise = look.noise_batch

    def noting(stage: Any, batch: Batch, rng: Rng, logsnr: torch.Tensor) -> Any:
        used.append((rng, batch.index))
        return noise(stage, batch, rng, logsnr)

    monkeypatch.setattr(look, "noise_batch", noting)
    seed = prepared.config.seed
    for index in range(2):
        stage, validation = prepared.stage(index), Validation(prepared.val, seed)
        first = validation(stage)
        assert len(first) == 4 and validation(stage) == first
    index = torch.arange(64)
    for rng, _ in used:
        drawn = rng.normal(Purpose.TRAIN_NOISE, index, (4,)).flatten()
        for stage in range(2):
            for attempt in range(3):
                trained = Rng(seed, stage, attempt).normal(Purpose.TRAIN_NOISE, index, (4,)).flatten()
                assert abs(float(torch.corrcoef(torch.stack([drawn, trained]))[0, 1])) < 0.3


def test_held_out_images_are_never_trained_on(user: Asking) -> None:
    prepared = user.prepare()
    assert prepared.val is not None
    assert not set(prepared.train.rows.tolist()) & set(prepared.val.rows.tolist())
    assert len(prepared.train) + len(prepared.val) == 12
