"""``cdm sample`` into files: what a call keeps, what it makes again, and how it goes on when the memory runs out."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from tests.fakes import random_cascade, stage_config

from cdm.cascade import Cascade
from cdm.data.save import read_png_info
from cdm.errors import UserError
from cdm.pipeline.asks import Ask, Asks, parse_batch_size, plan_asks
from cdm.pipeline.sample_run import _batches, _Files, sample_to_files
from cdm.stage import Stage


@pytest.fixture(scope="module")
def cascade() -> Cascade:
    options = {"channels": 3, "num_labels": 3}
    return random_cascade(stage_config(8, **options), stage_config(16, 8, **options), classes="ab")


class Shown:
    """What progress is told."""

    def __init__(self) -> None:
        self.planned: list[int] = []
        self.steps: list[tuple[int, int, int, int]] = []

    @contextmanager
    def __call__(self, images: int) -> Iterator[Any]:
        self.planned.append(images)
        yield lambda stage, done, of, preview: self.steps.append((stage, done, of, len(preview)))


def sample(cascade: Cascade, out: Path, count: int = 5, **changes: Any) -> tuple[list[str], Shown]:
    """``count`` images of both classes; what was said, and what progress was told."""
    said: list[str] = []
    shown = Shown()
    options: dict[str, Any] = {"run": "run", "seed": 0, "stop_after": 1, "force": False, "batch_size": 4}
    options |= {"settings": cascade.settings(steps=[2, 2]), "weights": "ema", "watch": shown, "say": said.append}
    sample_to_files(cascade, plan_asks(cascade, (), count), out=out, **(options | changes))
    return said, shown


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("?/*.png"))}


@pytest.fixture
def full(request: pytest.FixtureRequest, cascade: Cascade) -> Any:
    """``full(most)``: for one test there is no room for more than ``most`` images in the base."""

    def make(most: int) -> None:
        def check(net: Any, inputs: tuple[Any, ...]) -> None:
            if len(inputs[0]) > most:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        request.addfinalizer(cascade.stages[0].net.register_forward_pre_hook(check).remove)

    return make


# ---- out of memory ---------------------------------------------------------------------------------------------------


def test_out_of_memory_makes_the_files_of_the_smaller_batch_and_says_so_once(cascade, full, tmp_path):
    sample(cascade, tmp_path / "small", batch_size=2)
    full(3)
    said, shown = sample(cascade, tmp_path / "halved", batch_size=4)
    assert contents(tmp_path / "halved") == contents(tmp_path / "small") and len(contents(tmp_path / "small")) == 10
    assert [line for line in said if "suffice" in line] == [
        "the memory does not suffice for 4 images at once in stage 0: going on with 2"
    ]
    assert "10 images in" in said[-1] and (tmp_path / "halved" / "grid.png").exists()
    assert shown.planned == [10] and sum(n for _, done, of, n in shown.steps if done == of) == 2 * 10


def test_files_written_before_the_memory_was_gone_stay_and_the_same_call_goes_on(cascade, full, tmp_path, monkeypatch):
    wanted = tmp_path / "wanted"
    sample(cascade, wanted)
    original, calls = Cascade.sample, []

    def dies(self: Cascade, *args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            full(0)
        return original(self, *args, **options)

    monkeypatch.setattr(Cascade, "sample", dies)
    with pytest.raises(UserError, match="does not suffice for one image in stage 0"):
        sample(cascade, tmp_path / "out")
    assert contents(tmp_path / "out").items() < contents(wanted).items() and len(contents(tmp_path / "out")) == 4
    monkeypatch.undo()
    cascade.stages[0].net._forward_pre_hooks.clear()
    said, shown = sample(cascade, tmp_path / "out")
    assert said[0] == "4 of 10 images are there from an earlier call; going on with the rest"
    assert contents(tmp_path / "out") == contents(wanted) and shown.planned == [6]


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_is_made_as_a_whole_and_only_what_is_missing_is_written(cascade, tmp_path):
    sample(cascade, tmp_path)
    before = contents(tmp_path)
    lost = tmp_path / "b" / "b-seed0-00001.png"  # number 6, of the batch 4 to 7
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("?/*.png") if path != lost}
    lost.unlink()
    _, shown = sample(cascade, tmp_path)
    assert contents(tmp_path) == before and shown.planned == [4]
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert {n for *_, n in shown.steps} == {4}


def test_batches_leave_out_those_that_are_wholly_kept():
    kept = bytearray(10)
    assert list(_batches(kept, 4)) == [range(0, 4), range(4, 8), range(8, 10)]
    kept[0:5] = b"\1" * 5
    assert list(_batches(kept, 4)) == [range(4, 8), range(8, 10)]
    assert list(_batches(kept, 2, 4)) == [range(4, 6), range(6, 8), range(8, 10)]
    assert list(_batches(bytearray(b"\1" * 10), 4)) == []


def test_several_batches_take_one_turn_of_an_offloaded_stage_and_images_stay_the_same(cascade, tmp_path, monkeypatch):
    sample(cascade, tmp_path / "usual", count=10, batch_size=2)
    moves: list[int] = []
    to = Stage.to
    monkeypatch.setattr(Stage, "to", lambda stage, *where: (moves.append(stage.index), to(stage, *where))[1])
    offloaded = Cascade(cascade.config, cascade.stages, "cpu", offload=True)
    sample(offloaded, tmp_path / "offloaded", count=10, batch_size=2)
    assert moves == 2 * [0, 0, 1, 1]  # there and back, for 8 batches and for the last two
    assert contents(tmp_path / "offloaded") == contents(tmp_path / "usual")


@pytest.mark.parametrize(("text", "size"), [("auto", None), ("1", 1), ("128", 128)])
def test_batch_sizes(text, size):
    assert parse_batch_size(text) == size


@pytest.mark.parametrize("text", ["0", "-1", "x", "", "1.5", "²", "AUTO", "9" * 5000])
def test_what_is_no_batch_size(text):
    with pytest.raises(UserError, match="expected auto, or a whole number of at least 1"):
        parse_batch_size(text)


# ---- very many images ------------------------------------------------------------------------------------------------


def test_asks_are_those_of_each_class_in_turn(cascade):
    asks = plan_asks(cascade, (), 3)
    assert [asks[i] for i in range(len(asks))] == [Ask(label, index) for label in (0, 1) for index in range(3)]
    assert list(plan_asks(cascade, ("b", "b"), 2)) == [Ask(1, 0), Ask(1, 1)]
    assert plan_asks(cascade, (), 1_000_000)[1_999_999] == Ask(1, 999_999)


def test_looking_for_the_files_of_very_many_images_takes_little_time_and_memory(cascade, tmp_path):
    """Time is that of a file; what is held is a byte for each image, here 20,000 of which 500 are there."""
    told = {"made_by": "cdm sample", "run": "run", "seed": 0, "settings": {"steps": [2] * 100}}
    files = _Files(cascade, Asks((0, 1), 10_000), tmp_path, 0, told)
    (tmp_path / "a").mkdir()
    some = _Files(cascade, Asks((0,), 500), tmp_path, 0, told)
    for i in range(500):
        some.save(i, torch.zeros(3, 16, 16, dtype=torch.uint8))
    begin = time.process_time()
    files.kept()
    spent = time.process_time() - begin
    memory = []
    for _ in range(3):  # threads of earlier tests count as well, but not each time
        tracemalloc.start()
        try:
            kept = files.kept()
            memory.append(tracemalloc.get_traced_memory())
        finally:
            tracemalloc.stop()
    held, peak = min(memory)
    assert sum(kept) == 500 and kept.startswith(b"\1" * 500)
    assert held < 2 * 20_000 and peak < 500_000
    assert spent < 30  # mostly the checks of every signature; 0.3 ms a file without
    assert sum(map(len, _batches(kept, 64))) == 20_000 - 448


# ---- files that stand in the way -------------------------------------------------------------------------------------


def test_a_picture_is_kept_without_being_decoded_only_if_it_is_whole(cascade, tmp_path):
    sample(cascade, tmp_path)
    path = tmp_path / "a" / "a-seed0-00002.png"
    whole = path.read_bytes()
    at = whole.index(b"IDAT") + 10
    for damaged in (whole[:-20], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a-seed0-00002\.png exists already; use --force"):
            sample(cascade, tmp_path)
    path.write_bytes(whole)
    assert sample(cascade, tmp_path)[0][-1].startswith("nothing to do: 10 images")


def test_notes_that_follow_the_pixels_are_read_too(tmp_path):
    """As some programs write them: the chunk is moved behind the pixels."""
    from cdm.data.save import save_png

    path = save_png(tmp_path / "a.png", torch.from_numpy(np.zeros((3, 4, 4), np.uint8)), {"seed": 5})
    data = path.read_bytes()
    begin = data.index(b"tEXt") - 4
    length = int.from_bytes(data[begin : begin + 4], "big") + 12
    note, rest = data[begin : begin + length], data[:begin] + data[begin + length :]
    end = rest.index(b"IEND") - 4
    path.write_bytes(rest[:end] + note + rest[end:])
    with PILImage.open(path) as picture:
        assert "cdm" not in picture.info
    assert read_png_info(path) == {"seed": 5}


def test_another_setting_is_refused_and_counted(cascade, tmp_path):
    sample(cascade, tmp_path)
    other = replace(cascade.settings(steps=[2, 2]), aug_level=(0.1,))
    with pytest.raises(UserError, match=r"exists already \(and 9 more of these\)"):
        sample(cascade, tmp_path, settings=other)
    assert "kept" not in sample(cascade, tmp_path, settings=other, force=True)[0][-1]
