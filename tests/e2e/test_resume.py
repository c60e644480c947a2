"""A run that is killed or interrupted again and again ends with the weights, bit for bit, of one that never stopped."""

import json
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.e2e.forker import Forker

from cdm.artifacts import append_event, load_tensors, read_events, read_log
from cdm.runtime import has_fast_bf16

KILLED = -signal.SIGKILL
SIZES = (8, 16)
BATCH = 8
PRECISIONS = ["fp32", *(["bf16"] if has_fast_bf16(torch.device("cpu")) else [])]


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    with Forker() as forker:
        yield forker


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for k in range(16):
        path = folder / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return folder


@dataclass
class Run:
    """One run folder and how it is asked for. ``plant``: NaNs that all its launches meet."""

    forker: Forker
    folder: Path
    data: Path
    images: int = 160
    interval: int = 40
    precision: str = "fp32"
    plant: list[dict[str, Any]] = field(default_factory=list)

    def launch(self, point: dict[str, Any] | None = None) -> int:
        """The exit status of one run of the command, stopped at ``point``; negative for a signal."""
        argv = ["train", str(self.data), "--out", str(self.folder), "--recipe", "tiny", "--sizes", "8,16", "--flip"]
        argv += ["--images", str(self.images), "--checkpoint-images", str(self.interval), "--val-fraction", "0.2"]
        argv += ["--precision", self.precision, "--threads", "1"]
        constants = {"PREVIEWS": [0.5], "VALIDATIONS": [0.5]}
        said = str(self.folder.with_suffix(".txt"))
        return self.forker.run(argv=argv, output=said, point=point, plant=self.plant, constants=constants)

    def stop(self, point: dict[str, Any], status: int = KILLED) -> None:
        """Launch, and see it stopped at ``point``; then see that it lost no more than one checkpoint interval."""
        before = [len(self.lines(k)) for k in range(2)]
        assert self.launch(point) == status, f"not stopped at {point}:\n{self.said()}"
        for k in range(2):
            lines = self.lines(k)
            taken_up = [i for i in range(before[k], len(lines)) if lines[i].get("resumed")]
            if before[k] and taken_up:
                reached = self.reached.get(k, 0)
                assert reached - lines[taken_up[0]]["images_seen"] <= self.interval, (point, lines)
                self.reached.pop(k)
            new = [line["images_seen"] for line in lines[max([before[k], *taken_up]) :]]
            self.reached[k] = max([self.reached.get(k, 0), *new])
        if point["kind"] == "step":
            self.reached[point["stage"]] = point["images"]

    reached: dict[int, int] = field(default_factory=dict)
    """Per stage, how far it was when it was last stopped."""

    def finish(self) -> None:
        assert self.launch() == 0, self.said()

    def said(self) -> str:
        return self.folder.with_suffix(".txt").read_text()

    def stage(self, k: int) -> Path:
        return self.folder / f"{k}-{SIZES[k]}"

    def lines(self, k: int) -> list[dict[str, Any]]:
        """The log as it was written, repeats included."""
        path = self.stage(k) / "log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def decisions(self, *kinds: str) -> list[dict[str, Any]]:
        """What was decided, without the time of day."""
        events = read_events(self.folder / "events.jsonl")
        return [{k: v for k, v in event.items() if k != "time"} for event in events if event["kind"] in kinds]

    def replay(self, folder: Path) -> "Run":
        """A new run that has of this one its configuration and its recorded decisions, nothing else."""
        for source in (self.folder / "cascade.json", *self.folder.glob("*/config.json")):
            target = folder / source.relative_to(self.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
        for event in read_events(self.folder / "events.jsonl"):
            if event["kind"] in ("budget", "rollback"):
                append_event(folder / "events.jsonl", event)
        return replace(self, folder=folder, reached={})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every weight of a run: all stages, raw and both EMA profiles."""
    out = {}
    for k, size in enumerate(SIZES):
        for name in ("model", "ema-0.050", "ema-0.100"):
            tensors, meta = load_tensors(folder / f"{k}-{size}" / f"{name}.safetensors")
            out |= {f"{k}/{name}/{key}": value for key, value in tensors.items()}
            out[f"{k}/{name}/images_seen"] = torch.tensor(meta["images_seen"])
    return out


def differing(run: Run, other: Run) -> list[str]:
    """Names of the weights that are not equal bit for bit."""
    ours, theirs = weights(run.folder), weights(other.folder)
    assert ours.keys() == theirs.keys()
    return [name for name in theirs if not torch.equal(ours[name], theirs[name])]


def assert_same_story(run: Run, straight: Run) -> None:
    """The logs, repeats taken out, tell the same of each update; the last pictures are there."""
    for k in range(2):
        rows, wanted = (read_log(r.stage(k) / "log.jsonl") for r in (run, straight))
        assert [row["images_seen"] for row in rows] == list(range(BATCH, straight.images + 1, BATCH))
        for row, other in zip(rows, wanted, strict=True):
            for name in ("images_seen", "loss", "lr", "grad_norm", "skipped", "attempt"):
                assert str(row[name]) == str(other[name]), (name, row, other)
        assert rows[-1]["val_loss"] == wanted[-1]["val_loss"]
        assert len(list((run.stage(k) / "samples").glob(f"*{straight.images:010d}.png"))) == 1
    assert (run.folder / "samples.png").read_bytes() == (straight.folder / "samples.png").read_bytes()


@pytest.fixture(scope="module")
def straight_run(forker: Forker, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """A run that is never stopped, by precision."""

    @cache
    def made(precision: str) -> Run:
        run = Run(forker, tmp_path_factory.mktemp("straight") / precision, data, precision=precision)
        run.finish()
        return run

    return made


# ---- points ----------------------------------------------------------------------------------------------------------


def step(stage: int, images: int, **more: Any) -> dict[str, Any]:
    return {"kind": "step", "stage": stage, "images": images} | more


def write(file: str, part: float) -> dict[str, Any]:
    return {"kind": "write", "file": file, "part": part}


def rename(file: str, when: str) -> dict[str, Any]:
    return {"kind": "rename", "file": file, "when": when}


def event(kind: str, stage: int, torn: bool) -> dict[str, Any]:
    return {"kind": "event", "event": kind, "stage": stage, "torn": torn}


def points(seed: int) -> list[dict[str, Any]]:
    """Points of every kind, in the order in which a run comes to them; places within their range are drawn."""
    rng = random.Random(seed)

    def between(low: int, high: int) -> int:
        return rng.randrange(low, high, BATCH)

    return [
        rename("cascade.json", "before"),
        event("budget", 0, torn=True),
        event("budget", 0, torn=False),
        step(0, between(8, 40)),  # before the first checkpoint
        write(".ckpt-000000000040", rng.random()),
        rename("ckpt-000000000040", "before"),
        rename("0-8/ema-0.100", "before"),
        rename("ckpt-000000000040", "after"),
        step(0, between(48, 80)),  # between two
        step(0, between(48, 80)),
        write(".ema-0.050.safetensors", rng.random()),
        rename("0-8/model", "after"),
        rename("ckpt-000000000080", "after"),
        step(0, between(88, 120)),
        rename("ckpt-000000000160", rng.choice(["before", "after"])),
        event("stage_done", 0, torn=True),
        event("stage_done", 0, torn=False),
        step(1, between(8, 40)),
        write(".model.safetensors", rng.random()),
        step(1, between(48, 80)),
        rename("1-16/training/ckpt-000000000080", "after"),
        step(1, between(128, 160)),
        write(".ckpt-000000000160", rng.random()),
        event("stage_done", 1, torn=True),
        event("stage_done", 1, torn=False),
        rename("samples.png", "before"),
    ]


@pytest.mark.parametrize(("precision", "every"), [(PRECISIONS[0], 1), *((name, 5) for name in PRECISIONS[1:])])
def test_killed_again_and_again(
    precision: str, every: int, forker: Forker, data: Path, straight_run: Callable[[str], Run], tmp_path: Path
) -> None:
    """bf16, where it is fast, with every fifth point."""
    run = Run(forker, tmp_path / "run", data, precision=precision)
    for point in points(seed=0)[every // 2 :: every]:
        print(point)
        run.stop(point)
    run.finish()
    assert differing(run, straight_run(precision)) == []
    assert_same_story(run, straight_run(precision))


def test_interrupted_twice(forker: Forker, data: Path, straight_run: Callable[[str], Run], tmp_path: Path) -> None:
    """Ctrl-C saves, between checkpoints too, and says how to go on; so it does in a run that goes on."""
    run = Run(forker, tmp_path / "run", data)
    for point, signal_name in ((step(0, 56), "SIGINT"), (step(0, 64), "SIGINT"), (step(1, 24), "SIGTERM")):
        run.stop(point | {"signal": signal_name}, status=130)
        assert f"--out {run.folder}" in run.said().splitlines()[-1]
        assert "go on" in run.said().splitlines()[-1]
        saved = sorted((run.stage(point["stage"]) / "training").iterdir())[-1]
        assert saved.name == f"ckpt-{point['images']:012d}.safetensors"
    run.finish()
    marks = [[line["images_seen"] for line in run.lines(k) if line.get("resumed")] for k in range(2)]
    assert marks == [[56, 64], [24]]
    assert differing(run, straight_run("fp32")) == []
    assert_same_story(run, straight_run("fp32"))


# ---- planted NaNs ----------------------------------------------------------------------------------------------------

NANS = [
    {"where": "loss", "stage": 0, "attempt": 0, "begin": 8, "end": 72},  # eight in a row: back to fresh weights
    {"where": "input", "stage": 0, "attempt": 1, "begin": 24, "end": 32},  # one: skipped
    {"where": "gradient", "stage": 0, "attempt": 1, "begin": 40, "end": 48},
    {"where": "gradient", "stage": 0, "attempt": 1, "begin": 96, "end": 160},  # back to the checkpoint at 80
    {"where": "loss", "stage": 0, "attempt": 2, "begin": 200, "end": 208},
    {"where": "input", "stage": 1, "attempt": 0, "begin": 120, "end": 200},  # back to 160, in the midst of them
]
ROLL_BACKS = [  # stage, at, to, attempt, lr_scale
    (0, 80, 0, 1, 0.5),
    (0, 160, 80, 2, 0.25),
    (1, 240, 160, 1, 0.5),
]


def test_planted_nans(forker: Forker, data: Path, tmp_path: Path) -> None:
    straight = Run(forker, tmp_path / "straight", data, images=240, interval=80, plant=NANS)
    straight.finish()

    def roll_backs(run: Run) -> list[tuple[Any, ...]]:
        return [tuple(e[n] for n in ("stage", "at", "to", "attempt", "lr_scale")) for e in run.decisions("rollback")]

    assert roll_backs(straight) == ROLL_BACKS
    assert straight.said().count("updates in a row without a finite gradient") == 3
    ends = [read_log(straight.stage(k) / "log.jsonl")[-1] for k in range(2)]
    assert [(end["skipped"], end["attempt"]) for end in ends] == [(3, 2), (5, 1)]
    assert all(torch.isfinite(x).all() for x in weights(straight.folder).values())

    run = replace(straight, folder=tmp_path / "run", reached={})
    for point, status in (
        (step(0, 56), KILLED),  # in the first bad run
        (event("rollback", 0, torn=True), KILLED),
        (event("rollback", 0, torn=False), KILLED),  # recorded, not yet in effect
        (step(0, 32, attempt=1), KILLED),  # after it, before a checkpoint
        (step(0, 104, attempt=1, signal="SIGINT"), 130),  # saved in the second bad run, off the regular places
        (step(0, 152, attempt=1), KILLED),
        (event("rollback", 0, torn=False), KILLED),
        (step(0, 88, attempt=2), KILLED),
        (step(1, 184), KILLED),
        (event("rollback", 1, torn=True), KILLED),
        (event("rollback", 1, torn=False), KILLED),
        (step(1, 168, attempt=1), KILLED),
    ):
        assert run.launch(point) == status, f"not stopped at {point}:\n{run.said()}"
    run.finish()
    assert roll_backs(run) == ROLL_BACKS
    assert differing(run, straight) == []
    assert_same_story(run, straight)

    replayed = straight.replay(tmp_path / "replayed")
    replayed.finish()
    assert roll_backs(replayed) == ROLL_BACKS
    assert differing(replayed, straight) == []


def test_extended(forker: Forker, data: Path, tmp_path: Path) -> None:
    """A half-finished run is given a larger budget, then a finished one; both are recorded and replay."""
    run = Run(forker, tmp_path / "run", data)
    assert run.launch(step(0, 104, signal="SIGINT")) == 130
    run.images = 240
    assert run.launch(step(1, 56)) == KILLED
    run.finish()
    run.images = 264
    assert run.launch(step(0, 256)) == KILLED
    run.finish()
    told = [(e["stage"], e["at"], e["images"]) for e in run.decisions("budget")]
    assert told == [(0, 0, 160), (1, 0, 160), (0, 104, 240), (1, 0, 240), (0, 240, 264), (1, 240, 264)]
    before = weights(run.folder)
    assert int(before["0/model/images_seen"]) == int(before["1/model/images_seen"]) == 264

    run.finish()
    assert "is trained already" in run.said().splitlines()[-1]
    run.images = 160
    assert run.launch() == 2
    assert "--images 264" in run.said().splitlines()[-1] and "--images 160" in run.said().splitlines()[-1]
    after = weights(run.folder)
    assert all(torch.equal(before[name], after[name]) for name in before)

    run.images = 264
    replayed = run.replay(tmp_path / "replayed")
    replayed.finish()
    assert differing(replayed, run) == []
