"""The training loop: roll-backs, the clock, what is kept and looked at, and how a stage is taken up again."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.train.tiny import Images, make_stage, same, stage_config, weights_of
from torch import Tensor

from cdm.artifacts import append_event, load_tensors, make_folder, read_events, read_log
from cdm.errors import UserError
from cdm.losses import LossOutput
from cdm.rng import Purpose, Rng
from cdm.stage import Stage
from cdm.train import loop, step
from cdm.train.events import Events
from cdm.train.log import TrainLog, TrainProgress
from cdm.train.loop import MAX_ATTEMPTS, RollBack, StageJob, Stopped, read_plan, read_roll_backs, train_stage
from cdm.types import Batch, Dropout


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the loop is looked at here (tests/e2e trains whole stages): a loss that needs no network, yet depends on all
    weights, on the images and on the random key; and no waiting for the disk, as no loss of power is simulated."""

    def loss(stage: Stage, batch: Batch, rng: Rng, dropout: Dropout | None) -> LossOutput:
        weights = torch.cat([p.flatten() for p in stage.net.parameters()])
        x = batch.x0.flatten(1)
        noise = rng.normal(Purpose.TRAIN_NOISE, batch.index, (1,))[:, 0]
        error = (x @ weights[: x.shape[1]] - x.mean(1) - 0.1 * noise).square() + 1e-3 * weights.square().mean()
        return LossOutput(error, error.detach(), noise)

    monkeypatch.setattr(step, "stage_loss", loss)
    monkeypatch.setattr(os, "fsync", lambda fd: None)


class Killed(BaseException):
    """Like a kill, it leaves the loop at once; nothing catches it."""


class Run:
    """One stage in a run folder, trained in this process. ``minutes``: seconds of its time budget."""

    def __init__(self, folder: Path, *, images: int = 240, interval: int = 80, seconds: float = 0.0) -> None:
        self.folder = make_folder(folder)
        self.stage_folder = folder / "0-8"
        self.source = Images()
        self.said = io.StringIO()
        self.options: dict[str, Any] = {}
        Events(folder / "events.jsonl").append(
            "budget", stage=0, at=0, images=images, checkpoint_images=interval, seconds=seconds
        )

    def train(self, batches: Callable[[Rng, Tensor], Batch] | None = None, **options: Any) -> None:
        config = stage_config()
        job = StageJob(
            stage=make_stage(config), shadow=make_stage(config, seed=9), folder=make_folder(self.stage_folder),
            batches=batches or self.source, seed=0, **(self.options | options),
        )  # fmt: skip
        log = TrainLog(self.stage_folder, 0)
        console = Console(file=self.said, width=500)
        with TrainProgress("stage 0-8", 0, console=console) as progress:
            train_stage(job, Events(self.folder / "events.jsonl"), log, progress)

    def killed_at(self, position: int, attempt: int = 0) -> None:
        """Train until the update that begins at ``position``."""

        def batches(rng: Rng, positions: Tensor) -> Batch:
            if (int(positions[0]), rng.attempt) == (position, attempt):
                raise Killed
            return self.source(rng, positions)

        with pytest.raises(Killed):
            self.train(batches)

    def weights(self) -> dict[str, Tensor]:
        return weights_of(self.stage_folder)

    def log(self) -> list[dict[str, Any]]:
        return read_log(self.stage_folder / "log.jsonl")

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.folder / "events.jsonl") if event["kind"] == kind]

    def checkpoints(self) -> list[int]:
        return sorted(int(p.stem[5:]) for p in (self.stage_folder / "training").glob("ckpt-*.safetensors"))

    def checkpoint(self, images_seen: int) -> Path:
        return self.stage_folder / "training" / f"ckpt-{images_seen:012d}.safetensors"


def bad(attempt: int | None, begin: int, end: int) -> set[tuple[int | None, int]]:
    """Every update of ``attempt`` (None: of all) that begins in [begin, end)."""
    return {(attempt, position) for position in range(begin, end, 8)}


# ---- non-finite steps ------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def looks_at_tiny_budgets(monkeypatch):
    """Budgets of tests are smaller than what is left between two looks."""
    monkeypatch.setattr("cdm.train.loop.PREVIEW_APART", 0)
    monkeypatch.setattr("cdm.train.loop.VALIDATION_APART", 0)


def test_looks_keep_apart():
    """Sixteen marks in 8,000 images: only those at least 4,000 apart count, the first one always."""
    marks = [seen for seen in range(100, 8001, 100) if loop._marked(seen, 100, 8000, loop.VALIDATIONS, 4000)]
    assert marks == [500, 4500]


def test_roll_back_is_recorded_and_said_before_it_takes_effect(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.source.nan = bad(0, 96, 160)
    known: list[tuple[int, int, str]] = []

    def batches(rng: Rng, positions: Tensor) -> Batch:
        if rng.attempt:
            known.append((int(positions[0]), len(run.events("rollback")), run.said.getvalue()))
        return run.source(rng, positions)

    run.train(batches)
    (event,) = run.events("rollback")
    assert {k: event[k] for k in ("stage", "at", "to", "attempt", "lr_scale")} == {
        "stage": 0, "at": 160, "to": 80, "attempt": 1, "lr_scale": 0.5,
    }  # fmt: skip
    position, recorded, said = known[0]
    assert (position, recorded) == (80, 1)
    assert "8 updates in a row without a finite gradient at 160 images; back to 80 at 0.5 of the learning rate" in said
    rows = run.log()
    assert [row["attempt"] for row in rows] == [0] * 10 + [1] * 20
    assert rows[-1]["skipped"] == 0  # those that were rolled back are not in this story
    assert rows[10]["lr"] == pytest.approx(0.5 * 2e-3)
    assert all(torch.isfinite(x).all() for x in run.weights().values())


def test_seven_in_a_row_are_only_skipped(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.source.nan = bad(0, 96, 152) | bad(0, 160, 216)
    run.train()
    assert run.events("rollback") == []
    assert [row["skipped"] for row in run.log()] == [0] * 12 + list(range(1, 8)) + [7] + list(range(8, 15)) + [14] * 3


def test_roll_back_without_a_checkpoint_goes_to_fresh_weights(tmp_path: Path) -> None:
    """Bad from the ninth update on: what was learnt until then is forgotten too."""
    run, halved = Run(tmp_path / "run"), Run(tmp_path / "halved")
    run.source.nan = bad(0, 8, 80)
    run.train()
    assert [event["to"] for event in run.events("rollback")] == [0]
    append_event(halved.folder / "events.jsonl", run.events("rollback")[0])
    halved.train()  # attempt 1 at half the rate from the start
    assert same(run.weights(), halved.weights())


def test_persistent_nan_ends_with_one_sentence_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.source.nan = bad(None, 96, 240)
    with pytest.raises(UserError, match=r"8 updates in a row, 6 times.*last good state is kept.*--out") as told:
        run.train()
    assert "\n" not in str(told.value)
    assert [event["attempt"] for event in run.events("rollback")] == list(range(1, MAX_ATTEMPTS + 1))
    assert [event["lr_scale"] for event in run.events("rollback")] == [0.5**k for k in range(1, MAX_ATTEMPTS + 1)]
    assert run.checkpoints() == [80]
    before = run.weights()
    assert all(torch.isfinite(x).all() for x in before.values())
    with pytest.raises(UserError, match="8 updates in a row"):
        run.train()  # once more: the same end, no new attempts
    assert len(run.events("rollback")) == MAX_ATTEMPTS
    assert same(run.weights(), before)


def test_second_roll_back_may_go_further_back_than_the_first(tmp_path: Path) -> None:
    """The checkpoint that the first one went to is damaged when the second one comes: both replay."""
    run = Run(tmp_path / "run")
    run.source.nan = bad(0, 168, 240) | bad(1, 168, 240)
    reached: list[int] = []

    def batches(rng: Rng, positions: Tensor) -> Batch:
        if rng.attempt == 1 and int(positions[0]) == 200:
            run.checkpoint(160).write_bytes(b"damaged")
        reached.append(int(positions[0]))
        return run.source(rng, positions)

    run.train(batches)
    assert [(e["to"], e["attempt"]) for e in run.events("rollback")] == [(160, 1), (80, 2)]
    assert "Checkpoint refused" in run.said.getvalue()
    events = Events(run.folder / "events.jsonl")
    assert read_roll_backs(events, 0) == [RollBack(80, 2, 0.25)]
    assert read_roll_backs(events, 1) == []
    again = Run(tmp_path / "again")
    for event in run.events("rollback"):
        append_event(again.folder / "events.jsonl", event)
    again.train()
    assert same(run.weights(), again.weights())


def test_recorded_roll_back_holds_from_an_older_checkpoint_too(tmp_path: Path) -> None:
    """Killed after the roll-back to 160; that checkpoint is damaged, so the run comes from 80, meets 160, and goes on
    there as it did."""
    straight, run = Run(tmp_path / "straight"), Run(tmp_path / "run")
    for one in (straight, run):
        one.source.nan = bad(0, 160, 240)
    straight.train()
    run.killed_at(184, attempt=1)
    run.checkpoint(160).write_bytes(b"damaged")
    run.killed_at(160, attempt=1)
    run.train()
    assert len(run.events("rollback")) == 1
    assert same(run.weights(), straight.weights())


def test_checkpoint_that_a_roll_back_made_void_is_not_used(tmp_path: Path) -> None:
    """An interrupt saved at 120, the roll-back went to 80, and the kill came before 120 could be deleted."""
    straight, run = Run(tmp_path / "straight"), Run(tmp_path / "run")
    for one in (straight, run):
        one.source.nan = bad(0, 88, 160)
    straight.train()
    with pytest.raises(Stopped):
        run.train(stop=stop_at(run, 120))
    assert run.checkpoints() == [80, 120]
    void = run.checkpoint(120).read_bytes()
    run.killed_at(80, attempt=1)
    assert run.checkpoints() == [80]
    run.checkpoint(120).write_bytes(void)
    run.train()
    assert [(e["at"], e["to"]) for e in run.events("rollback")] == [(160, 80)]
    assert same(run.weights(), straight.weights())


def test_interrupt_right_after_a_long_bad_run_does_not_hide_it(tmp_path: Path) -> None:
    """Counters are read at 128 images; the bad run is over at 104 and the interrupt comes at 112."""
    straight, run = Run(tmp_path / "straight", interval=240), Run(tmp_path / "run", interval=240)
    for one in (straight, run):
        one.source.nan = bad(0, 40, 104)
    straight.train()
    with pytest.raises(Stopped):
        run.train(stop=stop_at(run, 112))
    run.train()
    assert [(e["at"], e["to"]) for e in straight.events("rollback")] == [(128, 0)]
    assert [e["at"] for e in run.events("rollback")] == [128]


def stop_at(run: Run, images_seen: int) -> Callable[[], bool]:
    """A ``stop`` that says yes after the update that ends at ``images_seen``."""

    def stop() -> bool:
        rows = run.log()
        return bool(rows) and rows[-1]["images_seen"] == images_seen

    return stop


# ---- the clock -------------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes only where it is told to, for all of the loop. ``update_s``: of an update, beside its data."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, update_s: float = 0.0) -> None:
        self.now = 1000.0
        update = step.Trainee.step

        def updating(trainee: step.Trainee, batch: Batch, rng: Rng, lr: float) -> None:
            self.now += update_s
            update(trainee, batch, rng, lr)

        monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: self.now))
        monkeypatch.setattr(step.Trainee, "step", updating)

    def slow(self, run: Run, seconds: Callable[[int], float]) -> Callable[[Rng, Tensor], Batch]:
        """A batch source that takes ``seconds(position)`` for each batch."""

        def batches(rng: Rng, positions: Tensor) -> Batch:
            self.now += seconds(int(positions[0]))
            return run.source(rng, positions)

        return batches


def test_stage_in_time_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, clock = Run(tmp_path / "run", interval=40, seconds=30.0), Clock(monkeypatch, update_s=0.8)
    run.train(clock.slow(run, lambda position: 0.25))
    assert len(run.events("budget")) == 1
    assert [row["seconds"] for row in run.log()] == pytest.approx([1.05 * k for k in range(1, 31)])
    assert [row["data_wait"] for row in run.log()] == pytest.approx([0.25 / 1.05] * 30)
    assert "24% of the time went into waiting for data" in run.said.getvalue()
    other = Run(tmp_path / "other", interval=40, seconds=30.0)
    other.train(clock.slow(other, lambda position: 0.01))
    assert "waiting for data" not in other.said.getvalue()


@pytest.mark.parametrize("slow_from", [0, 120])
def test_late_stage_is_shortened_by_a_recorded_decision_that_replays(
    slow_from: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, clock = Run(tmp_path / "run", interval=40, seconds=30.0), Clock(monkeypatch)
    run.train(clock.slow(run, lambda position: 2.0 if position >= slow_from else 1.0))
    made, *shortened = run.events("budget")
    assert shortened and all(event["why"] == "behind the clock" for event in shortened)
    assert all(a["images"] > b["images"] > b["at"] for a, b in zip([made, *shortened], shortened, strict=False))
    assert "behind the clock" in run.said.getvalue()
    last = run.log()[-1]
    assert last["images_seen"] == shortened[-1]["images"] < 240
    assert 27 <= last["seconds"] <= 33
    assert last["lr"] < 2e-3 / 2  # it decayed

    fast = Run(tmp_path / "replayed", interval=40, seconds=30.0)
    for event in shortened:
        append_event(fast.folder / "events.jsonl", event)
    fast.train()
    assert len(fast.events("budget")) == 1 + len(shortened)
    assert same(run.weights(), fast.weights())


def test_early_stage_is_lengthened_by_a_recorded_decision_that_replays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine was busy when the speed was measured: 240 images would take 9 seconds of 30."""
    run, clock = Run(tmp_path / "run", interval=40, seconds=30.0), Clock(monkeypatch)
    run.train(clock.slow(run, lambda position: 0.3))
    _, *longer = run.events("budget")
    assert longer and all(event["why"] == "ahead of the clock" for event in longer)
    last = run.log()[-1]
    assert last["images_seen"] == longer[-1]["images"] > 600
    assert 0.8 * 30 <= last["seconds"] <= 30
    assert last["lr"] < 2e-3 / 2  # it decayed
    rates = [row["lr"] for row in run.log()[20:]]
    assert rates == sorted(rates, reverse=True)  # and never rose again

    slow = Run(tmp_path / "replayed", interval=40, seconds=30.0)
    for event in longer:
        append_event(slow.folder / "events.jsonl", event)
    slow.train()
    assert slow.events("budget")[1:] == longer
    assert same(run.weights(), slow.weights())


def test_killed_after_it_was_shortened_it_does_not_decide_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between checkpoints: the run comes from before the decision, on a machine that is fast by now."""
    run, clock = Run(tmp_path / "run", interval=80, seconds=30.0), Clock(monkeypatch)

    def batches(rng: Rng, positions: Tensor) -> Batch:
        if len(run.events("budget")) == 2 and not run.checkpoint(int(positions[0])).exists():
            raise Killed
        return clock.slow(run, lambda position: 1.0 if position < 104 else 2.5)(rng, positions)

    with pytest.raises(Killed):
        run.train(batches)
    decision = run.events("budget")[1]
    assert run.checkpoints()[-1] < decision["at"]
    run.train()
    assert run.events("budget")[1:] == [decision]
    assert run.log()[-1]["images_seen"] == decision["images"]


def test_a_gpu_waits_only_while_it_has_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks are passed when what is queued before them is done, and read after that, late ones too."""
    now, queue_ends = [100.0], [100.0]

    class Mark:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: object) -> None:
            self.at = queue_ends[0] = max(queue_ends[0], now[0])

        def query(self) -> bool:
            return self.at <= now[0]

        def elapsed_time(self, end: "Mark") -> float:
            assert end.query()
            return 1000 * (end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Mark)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    clock = loop._Clock(0.0, torch.device("cuda"))
    for making, update in ((2.0, 10.0), (3.0, 10.0), (25.0, 10.0)):  # the third batch: asked for at 105, there at 130
        with clock.waiting():
            now[0] += making
        queue_ends[0] = max(queue_ends[0], now[0]) + update
    assert clock.data_wait() == pytest.approx((2 + 0 + 8) / 30)  # idle from 122 on
    now[0] += 30
    assert clock.data_wait() == pytest.approx(10 / 60)


def test_pauses_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, clock = Run(tmp_path / "run", interval=40, seconds=30.0), Clock(monkeypatch)
    for stopped_at in (88, 96, 200):
        with pytest.raises(Stopped):
            run.train(clock.slow(run, lambda position: 1.0), stop=stop_at(run, stopped_at))
        clock.now += 86400
    run.train(clock.slow(run, lambda position: 1.0))
    assert len(run.events("budget")) == 1
    assert run.log()[-1]["seconds"] == pytest.approx(30.0)


def test_roll_back_counts_as_time_and_waiting_stays_a_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, clock = Run(tmp_path / "run", interval=80, seconds=37.0), Clock(monkeypatch, update_s=0.6)
    run.source.nan = bad(0, 96, 160)
    run.train(clock.slow(run, lambda position: 0.4))
    assert run.log()[-1]["seconds"] == pytest.approx(40.0)  # 30 updates and 10 done twice
    assert [row["data_wait"] for row in run.log()] == pytest.approx([0.4] * 30)


# ---- what is kept and looked at --------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 3])
def test_last_checkpoints_and_snapshots_are_kept(tmp_path: Path, keep: int) -> None:
    run = Run(tmp_path / "run", images=200, interval=40)
    run.train(keep=keep)
    newest = [40, 80, 120, 160, 200][-keep:]
    assert run.checkpoints() == newest
    snapshots = sorted(p.name for p in (run.stage_folder / "snapshots").iterdir())
    assert snapshots == sorted(f"ema-{e}-{n:012d}.safetensors" for e in ("0.050", "0.100") for n in newest)


def test_interrupts_do_not_push_out_the_regular_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    for stopped_at in (88, 96, 104):
        with pytest.raises(Stopped):
            run.train(stop=stop_at(run, stopped_at))
    assert run.checkpoints() == [80, 96, 104]


def test_budget_that_is_no_multiple_of_anything_ends_with_a_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", images=104, interval=40)
    run.train()
    assert run.checkpoints() == [80, 104]
    assert run.log()[-1]["images_seen"] == 104
    for name in ("model", "ema-0.050", "ema-0.100"):
        assert load_tensors(run.stage_folder / f"{name}.safetensors")[1]["images_seen"] == 104
    weights = run.weights()
    assert not torch.equal(weights["ema-0.050/first.weight"], weights["ema-0.100/first.weight"])


class Looks:
    """An evaluator and a previewer that note what they are shown."""

    def __init__(self, losses: Callable[[int], float] = lambda count: 1.0) -> None:
        self.losses = losses
        self.validated: list[dict[str, Tensor]] = []
        self.previewed: list[int] = []

    def evaluate(self, stage: Stage) -> dict[str, float]:
        assert not stage.net.checkpointing
        self.validated.append({k: v.detach().clone() for k, v in stage.net.named_parameters()})
        return {"low": self.losses(len(self.validated)), "high": 1.0}

    def preview(self, stage: Stage, images_seen: int) -> None:
        self.previewed.append(images_seen)

    def options(self) -> dict[str, Any]:
        return {"evaluate": self.evaluate, "preview": self.preview}


def test_looks_come_at_shares_of_the_budget_and_see_the_first_average(tmp_path: Path) -> None:
    run, looks = Run(tmp_path / "run", images=240, interval=80), Looks()
    run.train(**looks.options())
    validated = [row["images_seen"] for row in run.log() if "val_loss" in row]
    assert len(validated) == len(looks.validated) == 16
    assert validated[-1] == 240
    assert looks.previewed == [8, 16, 24, 48, 72, 96, 120, 144, 168, 192, 216, 240]
    shown = {f"ema-0.050/{k}": v for k, v in looks.validated[-1].items()}
    final = {k: v for k, v in run.weights().items() if k.startswith("ema-0.050/")}
    assert same(shown, final)


def test_looks_change_nothing(tmp_path: Path) -> None:
    seen, unseen, looks = Run(tmp_path / "seen"), Run(tmp_path / "unseen"), Looks()
    seen.train(**looks.options())
    unseen.train()
    assert same(seen.weights(), unseen.weights())


def test_extended_stage_is_looked_at_further(tmp_path: Path) -> None:
    run, looks = Run(tmp_path / "run", images=80, interval=80), Looks()
    run.train(**looks.options())
    Events(run.folder / "events.jsonl").append(
        "budget", stage=0, at=80, images=320, checkpoint_images=80, seconds=0.0, why="extended"
    )
    run.train(**looks.options())
    assert [n for n in looks.previewed if n > 80] == [96, 128, 160, 192, 224, 256, 288, 320]


def test_killed_after_its_last_checkpoint_a_stage_gets_its_last_looks(tmp_path: Path) -> None:
    run, looks = Run(tmp_path / "run"), Looks()

    def killed(stage: Stage) -> dict[str, float]:
        if run.checkpoint(240).exists():
            raise Killed
        return looks.evaluate(stage)

    with pytest.raises(Killed):
        run.train(evaluate=killed, preview=looks.preview)
    before = run.weights()
    assert looks.previewed[-1] < 240
    run.train(**looks.options())
    assert looks.previewed[-1] == 240
    assert run.log()[-1]["images_seen"] == 240
    assert {"loss", "val_loss"} <= run.log()[-1].keys()
    assert same(run.weights(), before)


def test_rising_validation_loss_is_warned_of_once(tmp_path: Path) -> None:
    """Over a kill too; the training loss falls as the stage learns."""
    run, looks = Run(tmp_path / "run", images=480, interval=80), Looks(lambda count: float(count))

    def batches(rng: Rng, positions: Tensor) -> Batch:
        """One image alone, so that the loss falls steadily."""
        return Batch(torch.full((len(positions), 1, 8, 8), 0.5), None, positions)

    with pytest.raises(Stopped):
        run.train(batches, **looks.options(), stop=stop_at(run, 320))
    run.train(batches, **looks.options())
    rows = [row for row in run.log() if "val_loss" in row]
    assert rows[-1]["loss"] < rows[0]["loss"]
    said = run.said.getvalue()
    assert said.count("validation loss has risen three times") == 1
    assert "More data" in said


def test_stop_saves_and_the_next_start_goes_on_from_there(tmp_path: Path) -> None:
    straight, run = Run(tmp_path / "straight"), Run(tmp_path / "run")
    straight.train()
    with pytest.raises(Stopped):
        run.train(stop=stop_at(run, 56))
    assert run.checkpoints() == [56]
    begun: list[int] = []

    def batches(rng: Rng, positions: Tensor) -> Batch:
        begun.append(int(positions[0]))
        return run.source(rng, positions)

    run.train(batches)
    assert begun == list(range(56, 240, 8))
    assert "going on from 56 images" in run.said.getvalue()
    assert same(run.weights(), straight.weights())


def test_plan_is_read_from_events(tmp_path: Path) -> None:
    events = Events(tmp_path / "events.jsonl")
    assert read_plan(events, 0) is None
    events.append("budget", stage=1, at=0, images=80, checkpoint_images=16, seconds=0.0)
    assert read_plan(events, 0) is None
    events.append("budget", stage=0, at=0, images=160, checkpoint_images=40, seconds=9.0)
    events.append("budget", stage=0, at=80, images=120, checkpoint_images=40, seconds=9.0, why="behind the clock")
    plan = read_plan(events, 0)
    assert plan is not None and (plan.goal, plan.checkpoint_images, plan.seconds) == (120, 40, 9.0)
    assert [plan.total(n) for n in (0, 72, 80)] == [160, 160, 120]
