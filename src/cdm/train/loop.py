"""The training loop of one stage, read from top to bottom.

Resume is replay: the learning rate, the data, all noise, EMA and the moments of checkpoints are pure functions of
``images_seen``; what hangs on the clock or on chance is a recorded event (DESIGN decision 7). So a run that is killed
and started again ends with the same weights, bit for bit, as one that was never stopped.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cdm.errors import UserError
from cdm.rng import Rng
from cdm.stage import Stage, build_stage
from cdm.train.checkpoint import (
    delete_after,
    latest_checkpoint,
    prune,
    save_checkpoint,
    save_snapshots,
    save_weights,
)
from cdm.train.cores import Cores
from cdm.train.events import Events
from cdm.train.log import TrainLog, TrainProgress, overfit_warning, read_log
from cdm.train.plan import Pace, Plan, Segment, goal_in_time, learning_rate, round_to_batch
from cdm.train.step import BatchSource, Trainee

DATA_WAIT = 0.02
"""Above this share of a session the user is told that it waited for data."""
BAD_STEPS = 8
"""So many updates in a row without a finite gradient send the run back to its last good state."""
MAX_ATTEMPTS = 5
PREVIEWS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Pictures at these shares of the budget, and at the end: early on and then now and again."""
VALIDATIONS = tuple(k / 16 for k in range(1, 16))
PREVIEW_APART, VALIDATION_APART = 3000, 8000
"""Images between two looks at the least. One costs about as much as training on 100, or 200 images."""
CHECK_STEPS = 16
"""The device's counters are read once in so many updates."""


class Stopped(Exception):
    """Training was asked to stop (Ctrl-C); its state is saved."""


@dataclass(frozen=True)
class StageJob:
    """What the loop needs for one stage. ``evaluate`` and ``preview`` get the stage with its EMA weights.

    evaluate: mean squared error per band of noise level on held-out images, or None without any.
    preview: writes sample pictures; called with (stage, images_seen).
    stop: asked after every update; True saves and raises ``Stopped``.
    """

    stage: Stage
    shadow: Stage
    folder: Path
    batches: BatchSource
    seed: int
    keep: int = 2
    evaluate: Callable[[Stage], dict[str, float]] | None = None
    preview: Callable[[Stage, int], None] | None = None
    stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class RollBack:
    """From ``to`` images on, attempt ``attempt`` holds, at ``lr_scale`` of the learning rate."""

    to: int
    attempt: int
    lr_scale: float


def read_plan(events: Events, stage: int) -> Plan | None:
    """The recorded plan of a stage, or None before it was made."""
    budgets = events.all("budget", stage)
    if not budgets:
        return None
    segments = tuple(Segment(event["at"], event["images"]) for event in budgets)
    return Plan(segments, budgets[-1]["checkpoint_images"], budgets[-1]["seconds"])


def read_roll_backs(events: Events, stage: int) -> list[RollBack]:
    """Recorded roll-backs of a stage that still count, ``to`` not falling: a later one that went further back has made
    those before void."""
    kept: list[RollBack] = []
    for event in events.all("rollback", stage):
        roll_back = RollBack(event["to"], event["attempt"], event["lr_scale"])
        kept = [*(r for r in kept if r.to <= roll_back.to), roll_back]
    return kept


def train_stage(job: StageJob, events: Events, log: TrainLog, progress: TrainProgress) -> None:
    """Train until the goal in force is reached. Picks up where the newest good checkpoint left off."""
    plan = read_plan(events, job.stage.index)
    assert plan is not None
    batch_size = job.stage.config.optim.batch_size
    roll_backs = read_roll_backs(events, job.stage.index)
    trainee = _resume(job, roll_backs, progress)
    if trainee.images_seen:
        progress.say(f"stage {job.stage.name}: going on from {trainee.images_seen:,} images")
    log.start(trainee.images_seen)
    device = trainee.params[0].device
    clock = _Clock(trainee.seconds, device)
    cores = Cores() if device.type == "cpu" else None
    pace = Pace(max(plan.checkpoint_images, plan.goal // 8))
    log_every = max(batch_size, round_to_batch(plan.checkpoint_images / 8, batch_size))

    while trainee.images_seen < plan.total(trainee.images_seen):
        _begin_attempt(trainee, roll_backs)
        rng = Rng(job.seed, job.stage.index, trainee.attempt)
        positions = torch.arange(trainee.images_seen, trainee.images_seen + batch_size)
        with clock.waiting():
            batch = job.batches(rng, positions)
        lr = learning_rate(job.stage.config.optim, plan, trainee.images_seen)
        trainee.step(batch, rng, lr)

        seen = trainee.images_seen
        total = plan.total(seen)
        done = seen >= total
        trainee.seconds = clock.seconds()
        saving = done or plan.is_regular(seen)

        # counters are read late: a step in between does not wait for the device
        if (saving or _crossed(seen, batch_size, CHECK_STEPS * batch_size)) and float(trainee.max_bad_run) >= BAD_STEPS:
            trainee = _roll_back(job, plan, events, progress, trainee)
            roll_backs = read_roll_backs(events, job.stage.index)
            log.go_back(trainee.images_seen)
            continue

        rate = progress.update(seen, total=total)
        validating = _marked(seen, batch_size, total, VALIDATIONS, VALIDATION_APART)
        logging = saving or validating or _crossed(seen, batch_size, log_every)
        if logging:
            _log(log, trainee, progress, lr, rate, clock)
            if cores is not None and (warning := cores.warning()):
                progress.say(f"stage {job.stage.name}: {warning}")
        if saving:
            _save(job, trainee, plan)
        if validating and not done:
            _validate(job, trainee, log, progress)
        if job.preview is not None and not done and _marked(seen, batch_size, total, PREVIEWS, PREVIEW_APART):
            show_ema(trainee, job.shadow)
            job.preview(job.shadow, seen)

        if plan.seconds and not done and logging:
            plan = _keep_time(job, events, progress, plan, seen, clock.seconds(), pace)
        if not done and job.stop():
            if not saving:
                trainee.seconds = clock.seconds()
                _save(job, trainee, plan)
            raise Stopped

    if (waited := clock.data_wait()) > DATA_WAIT:
        progress.say(f"stage {job.stage.name}: {waited:.0%} of the time went into waiting for data (log.jsonl)")
    # after the loop, so that a run killed since its last checkpoint makes good for it
    _validate(job, trainee, log, progress)
    if job.preview is not None:
        show_ema(trainee, job.shadow)
        job.preview(job.shadow, trainee.images_seen)


class _Clock:
    """Seconds that a stage has trained for in all its sessions, and those of them that this session waited for data.
    Pauses between sessions do not count.

    A GPU has updates queued, so what counts there is how long it had nothing to do before the batch came: between two
    marks in its queue, which are read once it has passed them.
    """

    def __init__(self, before: float, device: torch.device) -> None:
        self._before, self._begin, self._waited = before, time.perf_counter(), 0.0
        self._device, self._marks = device, deque[tuple[torch.cuda.Event, torch.cuda.Event]]()

    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._begin

    @contextmanager
    def waiting(self) -> Iterator[None]:
        if self._device.type == "cuda":
            asked = self._mark()
            yield
            self._marks.append((asked, self._mark()))
            self._read_marks()
        else:
            begin = time.perf_counter()
            yield
            self._waited += time.perf_counter() - begin

    def _mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _read_marks(self) -> None:
        while self._marks and self._marks[0][1].query():
            asked, there = self._marks.popleft()
            self._waited += asked.elapsed_time(there) / 1000

    def data_wait(self) -> float:
        """Share of this session's time that was spent waiting for data."""
        self._read_marks()
        return self._waited / max(time.perf_counter() - self._begin, 1e-9)


def _resume(job: StageJob, roll_backs: Sequence[RollBack], progress: TrainProgress) -> Trainee:
    """The newest good state that no roll-back has made void; fresh weights where there is none."""

    def usable(meta: dict[str, Any]) -> bool:
        return all(meta["images_seen"] <= r.to for r in roll_backs if r.attempt > meta["attempt"])

    found = latest_checkpoint(job.folder, progress.say, usable)
    trainee = Trainee(job.stage)
    if found is not None:
        trainee.load(found[0], found[1])
    if roll_backs:
        delete_after(job.folder, trainee.images_seen)
    return trainee


def _begin_attempt(trainee: Trainee, roll_backs: Sequence[RollBack]) -> None:
    """Start the attempt that a roll-back recorded for these ``images_seen``."""
    for roll_back in roll_backs:
        if roll_back.to == trainee.images_seen and roll_back.attempt > trainee.attempt:
            trainee.start_attempt(roll_back.attempt, roll_back.lr_scale)


def _roll_back(job: StageJob, plan: Plan, events: Events, progress: TrainProgress, broken: Trainee) -> Trainee:
    """Back to the last checkpoint (or to fresh weights) at half the rate, under a new random key; recorded first.

    It goes back to a regular checkpoint where it can, so that an interrupt before does not change where it goes.
    """
    if broken.attempt + 1 > MAX_ATTEMPTS:
        raise UserError(
            f"stage {job.stage.name}: no finite gradient for {BAD_STEPS} updates in a row, {MAX_ATTEMPTS + 1} times; "
            "the last good state is kept. Look at the data, or train with --precision fp32 into a new --out."
        )
    found = latest_checkpoint(job.folder, progress.say, lambda meta: plan.is_regular(meta["images_seen"]))
    found = found or latest_checkpoint(job.folder, progress.say)
    to = found[1]["images_seen"] if found else 0
    attempt, scale = broken.attempt + 1, broken.lr_scale / 2
    broken.drop_recording()
    events.append(
        "rollback", stage=job.stage.index, at=broken.images_seen, to=to, attempt=attempt, lr_scale=scale
    )  # fmt: skip
    progress.say(
        f"stage {job.stage.name}: {BAD_STEPS} updates in a row without a finite gradient at {broken.images_seen:,} "
        f"images; back to {to:,} at {scale:g} of the learning rate"
    )
    if found is None:
        fresh = build_stage(job.stage.config, job.stage.index, num_classes=job.stage.num_classes, seed=job.seed)
        job.stage.net.load_state_dict(fresh.net.state_dict())
    return _resume(job, read_roll_backs(events, job.stage.index), progress)


def _log(
    log: TrainLog, trainee: Trainee, progress: TrainProgress, lr: float, rate: float | None, clock: _Clock
) -> None:
    loss, norm = trainee.read_means()
    progress.loss = loss
    log.write(
        trainee.images_seen, loss=loss, lr=lr * trainee.lr_scale, grad_norm=norm, images_per_s=rate,
        seconds=trainee.seconds, skipped=int(trainee.skipped), attempt=trainee.attempt, data_wait=clock.data_wait(),
    )  # fmt: skip


def _save(job: StageJob, trainee: Trainee, plan: Plan) -> None:
    """The weights people sample from, then the checkpoint: a kill in between is made good by the replay."""
    weights = {name: p.detach() for name, p in zip(trainee.names, trainee.params, strict=True)}
    emas = {
        profile: dict(zip(trainee.names, averaged, strict=True))
        for profile, averaged in zip(trainee.ema.profiles, trainee.ema.params, strict=True)
    }
    save_weights(job.folder, weights, emas, {"images_seen": trainee.images_seen, "stage": job.stage.name})
    save_snapshots(job.folder, trainee.images_seen, emas, keep=job.keep)
    tensors, meta = trainee.state()
    save_checkpoint(job.folder, trainee.images_seen, tensors, meta)
    prune(job.folder, keep=job.keep, regular=plan.is_regular)


def _validate(job: StageJob, trainee: Trainee, log: TrainLog, progress: TrainProgress) -> None:
    """Adds the validation loss to the line of the log, and says when it tells of learning by heart."""
    if job.evaluate is None:
        return
    show_ema(trainee, job.shadow)
    log.write(trainee.images_seen, val_loss=job.evaluate(job.shadow))
    warning = overfit_warning(read_log(log.path, job.stage.index))
    if warning:
        progress.say(f"stage {job.stage.name}: {warning}")


@torch.no_grad()
def show_ema(trainee: Trainee, shadow: Stage) -> None:
    """Copy the first EMA profile into ``shadow``, the stage that is evaluated and previewed."""
    torch._foreach_copy_(list(shadow.net.parameters()), trainee.ema.params[0])


def _crossed(seen: int, batch_size: int, interval: int) -> bool:
    """Whether the update that ended at ``seen`` passed a multiple of ``interval``."""
    return seen // interval > (seen - batch_size) // interval


def _marked(seen: int, batch_size: int, total: int, marks: tuple[float, ...], apart: int) -> bool:
    """Whether the update that ended at ``seen`` passed one of ``marks``, shares of the goal in force.

    Marks less than ``apart`` images after the one before do not count: looking must stay cheap beside a small budget.
    """
    return any(seen - batch_size < place <= seen for place in places(total, marks, apart))


def places(total: int, marks: tuple[float, ...], apart: int) -> list[float]:
    """Images seen at the ``marks`` of a goal of ``total`` images that count."""
    kept: list[float] = []
    for mark in marks:
        if not kept or mark * total - kept[-1] >= apart:
            kept.append(mark * total)
    return kept


def _keep_time(
    job: StageJob, events: Events, progress: TrainProgress, plan: Plan, seen: int, seconds: float, pace: Pace
) -> Plan:
    """Shorten or lengthen the stage, by a recorded event, when it would end well after or before its time."""
    rate = pace.update(seconds, seen)
    goal = None if rate is None else goal_in_time(plan, seen, seconds, rate, job.stage.config.optim)
    if goal is None:
        return plan
    why = f"{'behind' if goal < plan.total(seen) else 'ahead of'} the clock"
    events.append(
        "budget", stage=job.stage.index, at=seen, images=goal, checkpoint_images=plan.checkpoint_images,
        seconds=plan.seconds, why=why,
    )  # fmt: skip
    progress.say(f"stage {job.stage.name}: {why}; {goal:,} images instead of {plan.total(seen):,}")
    return dataclasses.replace(plan, segments=(*plan.segments, Segment(seen, goal)))
