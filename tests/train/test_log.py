"""What is seen of training: the log file, TensorBoard, the terminal."""

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from cdm.train.log import Rate, TrainLog, TrainProgress, duration, find_tensorboard, read_log


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_log_lines_are_read_back_and_a_resume_replaces_what_it_repeats(tmp_path: Path) -> None:
    first = TrainLog(tmp_path / "0-16", 0)
    first.start(0)
    for images, loss in ((64, 1.0), (128, 0.5), (192, 0.4)):
        first.write(images, loss=loss, lr=1e-3, val_loss={"low": loss})
    first.close()
    again = TrainLog(tmp_path / "0-16", 0)
    again.start(128)
    assert [line["images_seen"] for line in read_log(again.path)] == [64, 128]
    again.write(192, loss=0.3)
    lines = read_log(again.path, stage=0)
    assert [line["loss"] for line in lines] == [1.0, 0.5, 0.3]
    assert lines[0] == {"stage": 0, "images_seen": 64, "loss": 1.0, "lr": 1e-3, "val_loss": {"low": 1.0}}
    again.go_back(64)  # a roll-back
    assert [line["images_seen"] for line in read_log(again.path)] == [64]
    assert read_log(again.path, stage=1) == []


def test_log_keeps_numbers_that_are_not_finite(tmp_path: Path) -> None:
    log = TrainLog(tmp_path, 0)
    log.start(0)
    log.write(64, loss=float("nan"), grad_norm=float("inf"))
    (line,) = read_log(log.path)
    assert line["loss"] != line["loss"] and line["grad_norm"] == float("inf")


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    written: list[tuple[str, float, int]] = []
    opened: list[tuple[str, int]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            opened.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, images_seen: int) -> None:
            written.append((name, value, images_seen))

        def close(self) -> None:
            written.append(("closed", 0, 0))

    log = TrainLog(tmp_path, 0, Writer)
    log.start(64)
    log.write(128, loss=0.5, images_per_s=None, val_loss={"low": 0.25})
    log.close()
    assert opened == [(str(tmp_path / "tensorboard"), 65)]  # what lies beyond 64 is dropped
    assert written == [("loss", 0.5, 128), ("val_loss/low", 0.25, 128), ("closed", 0, 0)]


@pytest.mark.filterwarnings("default")  # of tensorboard's own imports
def test_tensorboard_itself(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    said: list[str] = []
    log = TrainLog(tmp_path, 0, find_tensorboard(said.append))
    log.start(0)
    log.write(64, loss=0.5)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(64, 0.5)]
    assert said == []


def test_absence_of_tensorboard_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    said: list[str] = []
    assert find_tensorboard(said.append) is None
    assert len(said) == 1 and "pip install 'cascaded-diffusion[tensorboard]'" in said[0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3.0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200.0, "3 min 20 s"), (7500.0, "2 h 05 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_rate_looks_at_the_last_seconds_alone() -> None:
    clock = Clock()
    rate = Rate(window_s=10.0, clock=clock)
    assert rate.update(0) is None
    seen = 0
    for speed, want in ((100, 100), (10, 10)):
        for _ in range(20):
            clock.now += 1
            seen += speed
            told = rate.update(seen)
        assert told == pytest.approx(want)
    assert rate.update(5) is None  # a roll-back
    clock.now += 1
    assert rate.update(25) == pytest.approx(20)


def plain(clock: Clock) -> tuple[TrainProgress, io.StringIO]:
    out = io.StringIO()
    return TrainProgress("stage 0 (16x16)", 4000, console=Console(file=out), clock=clock), out


def test_plain_lines_every_ten_seconds_without_a_terminal() -> None:
    clock = Clock()
    progress, out = plain(clock)
    with progress:
        for seen in range(0, 4001, 100):
            clock.now += 1
            if seen >= 1000:
                progress.loss = 0.5
            rate = progress.update(seen)
    lines = out.getvalue().splitlines()
    assert rate == pytest.approx(100)
    assert lines[0] == "stage 0 (16x16): 0 of 4,000 images"
    assert lines[1] == "stage 0 (16x16): 1,000 of 4,000 images, 30 s left, 100 images/s, loss 0.5000"
    assert len(lines) == 5 and lines[-1].startswith("stage 0 (16x16): 4,000 of 4,000 images")
    assert "\x1b" not in out.getvalue()


def test_changed_budget_is_shown() -> None:
    progress, out = plain(Clock())
    progress.update(100, total=200)
    assert "100 of 200 images" in out.getvalue()


def test_sentences_are_printed_as_they_are() -> None:
    progress, out = plain(Clock())
    sentence = "[bold]/a/path[0] " + "long " * 60 + "end"
    progress.say(sentence)
    assert out.getvalue() == sentence + "\n"


def test_bar_on_a_terminal() -> None:
    clock, out = Clock(), io.StringIO()
    console = Console(file=out, force_terminal=True, width=150)
    with TrainProgress("stage 1 (64x64)", 4000, console=console, clock=clock) as progress:
        progress.update(1000)
        clock.now += 10
        progress.loss = 0.25
        progress.update(2000)
        progress.say("a sentence")
    text = out.getvalue()
    assert "━" in text and "2,000 of 4,000 images, 20 s left, 100 images/s, loss 0.2500" in text
    assert "a sentence" in text
