"""What a user gets from ``cdm train``: progress, logs, pictures and a report, without noise."""

import json
import re

from PIL import Image as PILImage
from tests.e2e.command import run, succeeded
from tests.e2e.conftest import PLAN

from cdm.artifacts import read_log


def test_progress_tells_images_speed_and_time_left(trained):
    lines = [line for line in trained.ran.out.splitlines() if line.startswith("stage 1-16: ") and " of " in line]
    assert len(lines) >= 2
    assert re.fullmatch(r"stage 1-16: 640 of 640 images, 0 s left, \d+ images/s, loss [\d.]+", lines[-1])


def test_nothing_on_stderr_and_the_next_step_told(trained):
    assert trained.ran.err == ""
    assert f"next: cdm sample {trained.folder}" in trained.ran.out
    assert "report.html" in trained.ran.out


def test_absence_of_tensorboard_is_said_once(trained):
    assert trained.ran.out.count("TensorBoard") == 1
    assert not list(trained.folder.rglob("tensorboard"))


def test_logs_tell_loss_speed_and_validation(trained):
    for name in ("0-8", "1-16"):
        rows = read_log(trained.folder / name / "log.jsonl")
        assert rows[-1]["images_seen"] == 640
        assert rows[-1]["loss"] > 0 and rows[-1]["images_per_s"] > 0
        assert len(rows[-1]["val_loss"]) == 4  # bands of noise level


def test_events_tell_command_budget_and_end(trained):
    events = [json.loads(line) for line in (trained.folder / "events.jsonl").read_text().splitlines()]
    assert events[0]["kind"] == "start" and events[0]["command"].startswith("cdm train ")
    assert [event["images"] for event in events if event["kind"] == "budget"] == [640, 640]
    kinds = [event["kind"] for event in events]
    assert kinds.index("finished") > max(i for i, kind in enumerate(kinds) if kind == "stage_done")


def test_pictures_appear_early_and_at_the_end(trained):
    """The first within a tenth of the budget: samples of the base, and panels of the SR stage."""
    for pattern in ("0-8/samples/0*.png", "1-16/samples/panel-0*.png"):
        seen = sorted(int(path.stem.split("-")[-1]) for path in trained.folder.glob(pattern))
        assert seen[0] <= 64 and seen[-1] == 640
    for path in [*trained.folder.rglob("samples/*.png"), trained.folder / "samples.png"]:
        with PILImage.open(path) as picture:
            picture.load()


def test_report_is_one_file_with_its_pictures(trained):
    text = (trained.folder / "report.html").read_text()
    assert "data:image/png;base64" in text
    assert not re.search(r'(src|href)="(https?:)?//', text)


def test_dry_run_prints_the_plan_and_writes_nothing(data, tmp_path):
    ran = run("train", data, "--out", tmp_path / "run", *PLAN, "--images", 660, "--dry-run")
    succeeded(ran, "0-8", "1-16", "parameters", "GFLOPs", "memory", "time", "nothing was written")
    assert re.search(r"images +│ +640 │ +640 ", ran.out)  # 660 in whole batches, as they would be trained on
    assert "…" not in ran.out  # no title is cut off
    assert not (tmp_path / "run").exists()
