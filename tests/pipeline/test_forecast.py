"""``--dry-run``: the time it tells against runs that really happen, and its warning of too little memory."""

from __future__ import annotations

import os
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cdm import runtime
from cdm.config import CascadeConfig, DataConfig
from cdm.errors import UserError
from cdm.pipeline import forecast as module
from cdm.pipeline.describe import describe
from cdm.pipeline.forecast import Forecast, StageForecast, forecast, warning
from cdm.pipeline.generate import no_progress
from cdm.pipeline.request import TrainRequest
from cdm.pipeline.train_run import Prepared, prepare, train
from cdm.recipes import make_config
from cdm.recipes.facts import Facts
from cdm.runtime import free_memory

KINDS: dict[str, tuple[str, tuple[int, int], int, str, tuple[int, int]]] = {
    "small 8, 16": ("small", (8, 16), 640, "fp32", (32, 32)),
    "demo 8, 16": ("demo", (8, 16), 960, "bf16", (64, 64)),
    "small 8, 32": ("small", (8, 32), 320, "fp32", (32, 16)),
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(40):
            picture = Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8))
            picture.save(tmp_path / "photos" / name / f"{k}.png")
    return tmp_path / "photos"


def prepared(photos: Path, out: Path, kind: str) -> Prepared:
    recipe, sizes, images, precision, batch_size = KINDS[kind]
    request = TrainRequest(
        data=str(photos), out=out, recipe=recipe, sizes=sizes, images=images, batch_size=batch_size,
        precision=precision, threads=1, command="cdm train ...",
    )  # fmt: skip

    def recipe_of(sizes: tuple[int, ...], class_names: tuple[str, ...], data: DataConfig, count: int) -> CascadeConfig:
        return make_config(recipe, Facts(sizes, class_names, data, count, 0))

    return prepare(request, recipe_of, None, lambda sentence: None, no_progress)


def told_over_real(photos: Path, out: Path, kind: str) -> float:
    """Told before, after and in between; both sides in time that this process got, so others do not count."""
    told = [forecast(prepared(photos, out, kind)).seconds for _ in range(2)]
    begin = time.process_time()
    train(prepared(photos, out, kind), lambda sentence: None)
    real = time.process_time() - begin
    told.append(forecast(prepared(photos, out.with_name("other"), kind)).seconds)
    print(f"{kind}: {[f'{t:.1f}' for t in told if t]} s told, {real:.1f} s in fact")
    return median(t for t in told if t is not None) / real


def test_time_is_within_30_percent_of_a_run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One configuration, another one each time, and a second try of the same."""
    clock = SimpleNamespace(perf_counter=time.process_time, monotonic=time.process_time)
    for name in ("cdm.train.plan", "cdm.pipeline.forecast", "cdm.pipeline.train_run"):
        monkeypatch.setattr(f"{name}.time", clock)
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # waits for a disk that others write to
    monkeypatch.setattr(module, "training_memory", lambda *_: 0)  # another test's
    seed = random.SystemRandom().randrange(10**6)
    kind = random.Random(seed).choice(list(KINDS))
    for attempt in range(2):
        ratio = told_over_real(photos, tmp_path / f"run{attempt}", kind)
        if 0.7 < ratio < 1.3:
            return
    pytest.fail(f"seed {seed}: {kind}: told {ratio:.2f} times the real time\n{capsys.readouterr().out}")


def test_what_is_left_of_a_run_is_told(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one that was stopped, of one that is done, and of one that is to go further; nothing is written."""
    monkeypatch.setattr(module, "training_memory", lambda *_: 0)
    out, asked = tmp_path / "run", prepared(photos, tmp_path / "run", "small 8, 16")
    base = replace(asked, request=replace(asked.request, stage=0))
    train(base, lambda sentence: None)
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    told = forecast(asked)
    assert [each.images for each in told.stages] == [0, 640] and told.stages[0].seconds == 0
    describe(base)
    assert "finds these stages of" in (text := capsys.readouterr().out) and "in all" not in text
    describe(asked)
    assert f"goes on in {out}; images and time are what is left" in capsys.readouterr().out
    further = replace(base, request=replace(base.request, images=960))
    assert [each.images for each in forecast(further).stages] == [320]
    for last in sorted((out / "0-8" / "training").glob("ckpt-*"))[-1:]:  # as if stopped before
        shutil.move(last, tmp_path / last.name)
    events = (out / "events.jsonl").read_text().splitlines(keepends=True)
    (out / "events.jsonl").write_text("".join(line for line in events if '"stage_done"' not in line))
    seen = max(int(path.stem[5:]) for path in (out / "0-8" / "training").glob("ckpt-*"))
    assert 0 < seen < 640 and [each.images for each in forecast(base).stages] == [640 - seen]
    with pytest.raises(UserError, match="was started with --images 640, now it is --images 320"):
        forecast(replace(base, request=replace(base.request, images=320)))
    assert {path for path in out.rglob("*")} <= set(files)


def stage(memory: int, parameters: int = 1000, index: int = 0) -> StageForecast:
    return StageForecast(
        index=index, parameters=parameters, flops=1, memory=memory, speed=None, images=None, seconds=None, sheet=None
    )


def test_a_plan_that_does_not_fit_is_told(photos: Path, tmp_path: Path) -> None:
    """On a CPU a process takes half as much again as its tensors."""
    run = prepared(photos, tmp_path / "run", "small 8, 32")
    gib = 2**30
    both = (stage(gib), stage(2 * gib, index=1))
    assert warning(run, Forecast(both, 3 * gib, None)) is None
    assert warning(run, Forecast(both, None, None)) is None
    sentence = warning(run, Forecast(both, 3 * gib - 1, None))
    assert sentence is not None and "stage 1-32 needs about 3.00 GiB" in sentence
    assert "--batch-size below 16" in sentence and "\n" not in sentence
    on_gpu = replace(run, device=torch.device("cuda"))
    assert warning(on_gpu, Forecast(both, 2 * gib, None)) is None
    assert "free on this cuda" in (warning(on_gpu, Forecast(both, 2 * gib - 1, None)) or "")
    huge = Forecast((stage(40 * gib, parameters=gib),), 28 * gib - 1, None)  # 7 copies of 4 bytes
    assert "no --batch-size helps" in (warning(on_gpu, huge) or "")


def test_free_memory_heeds_the_limit_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    whole = free_memory(cpu)
    assert whole is not None and 2**20 < whole < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    names = ("memory.max", "memory.current", "inactive_file")
    monkeypatch.setattr(runtime, "CGROUPS", ((str(tmp_path), *names),))
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 600000\ninactive_file 50000\n")
    assert free_memory(cpu) == 350_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(cpu) == pytest.approx(whole, rel=0.5)
