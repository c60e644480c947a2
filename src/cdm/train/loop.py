"""The training loop of one stage, read from top to bottom.

Resume is replay: the learning rate, the data, all noise, EMA and the moments of checkpoints are pure functions of
``images_seen``; what hangs on the clock or on chance is a recorded event (DESIGN decision 7). So a run that is killed and
started again ends with the same weights, bit for bit, as one that was never stopped.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cdm.errors import UserError
from cdm.rng import Rng
from cdm.stage import Stage, build_stage
from cdm.train.checkpoint import latest_checkpoint, prune, save_checkpoint, save_snapshots, save_weights
from cdm.train.events import Events
from cdm.train.log import TrainLog, TrainProgress
from cdm.train.plan import Plan, Segment, learning_rate, round_to_batch
from cdm.train.step import BatchSource, Trainee

BAD_STEPS = 8
"""So many updates in a row without a finite gradient send the run back to its last good state."""
MAX_ATTEMPTS = 5
PREVIEWS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Pictures at these shares of the budget, and at the end: early on and then now and again."""
VALIDATIONS = tuple(k / 16 for k in range(1, 16))
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


def read_plan(events: Events, stage: int) -> Plan | None:
    """The recorded plan of a stage, or None before it was made."""
    segments, interval, seconds = [], 0, 0.0
    for event in events.all():
        if event.get("stage") != stage:
            continue
        if event["kind"] == "budget":
            segments.append(Segment(event["at"], event["images"]))
            interval, seconds = event["checkpoint_images"], event["seconds"]
    return Plan(tuple(segments), interval, seconds) if segments else None


def train_stage(job: StageJob, events: Events, log: TrainLog, progress: TrainProgress) -> None:
    """Train until the goal in force is reached. Picks up where the newest good checkpoint left off."""
    plan = read_plan(events, job.stage.index)
    assert plan is not None
    batch_size = job.stage.config.optim.batch_size
    trainee = _resume(job, events, progress)
    rng = Rng(job.seed, job.stage.index, trainee.attempt)
    log.start(trainee.images_seen)
    begin_seconds, begin = trainee.seconds, time.perf_counter()
    overfit, data_seconds = _Overfit(), 0.0
    log_every = max(batch_size, round_to_batch(plan.checkpoint_images / 8, batch_size))

    while trainee.images_seen < plan.total(trainee.images_seen):
        positions = torch.arange(trainee.images_seen, trainee.images_seen + batch_size)
        before = time.perf_counter()
        batch = job.batches(rng, positions)
        data_seconds += time.perf_counter() - before
        lr = learning_rate(job.stage.config.optim, plan, trainee.images_seen)
        trainee.step(batch, rng, lr)

        seen = trainee.images_seen
        total = plan.total(seen)
        done = seen >= total
        trainee.seconds = begin_seconds + time.perf_counter() - begin
        saving = done or _crossed(seen, batch_size, plan.checkpoint_images)

        # counters are read late: a step in between does not wait for the device
        if (saving or _crossed(seen, batch_size, CHECK_STEPS * batch_size)) and float(trainee.max_bad_run) >= BAD_STEPS:
            trainee = _roll_back(job, events, progress, trainee)
            rng = Rng(job.seed, job.stage.index, trainee.attempt)
            log.go_back(trainee.images_seen)
            begin_seconds, begin = trainee.seconds, time.perf_counter()
            continue

        rate = progress.update(seen, total=total)
        row: dict[str, Any] = {}
        validating = _marked(seen, batch_size, plan.segments[0].total, VALIDATIONS, done)
        if saving or validating or _crossed(seen, batch_size, log_every):
            loss, norm = trainee.read_means()
            elapsed = max(trainee.seconds - begin_seconds, 1e-9)
            row = {"loss": loss, "lr": lr * trainee.lr_scale, "grad_norm": norm, "images_per_s": rate}
            row |= {"seconds": trainee.seconds, "skipped": int(trainee.skipped), "attempt": trainee.attempt}
            row |= {"data_wait": data_seconds / elapsed}
            progress.loss = loss

        if saving:
            _save(job, trainee)
        if validating and job.evaluate is not None:
            show_ema(trainee, job.shadow)
            row["val_loss"] = job.evaluate(job.shadow)
            overfit.look(job.stage.name, row, progress)
        if row:
            log.write(seen, **row)
        if job.preview is not None and _marked(seen, batch_size, plan.segments[0].total, PREVIEWS, done):
            show_ema(trainee, job.shadow)
            job.preview(job.shadow, seen)

        if plan.seconds and not done and _crossed(seen, batch_size, plan.checkpoint_images):
            trainee.seconds = begin_seconds + time.perf_counter() - begin
            plan = _keep_time(job, events, progress, trainee, plan)
        if not done and job.stop():
            if not saving:
                _save(job, trainee)
            raise Stopped


def _resume(job: StageJob, events: Events, progress: TrainProgress) -> Trainee:
    """The newest good state, with the roll-backs recorded since applied to it."""
    trainee = Trainee(job.stage)
    found = latest_checkpoint(job.folder, progress.say)
    if found is not None:
        tensors, meta, _ = found
        trainee.load(tensors, meta)
        progress.say(f"stage {job.stage.name}: going on from {trainee.images_seen:,} images")
    for event in events.all():
        if event["kind"] == "rollback" and event.get("stage") == job.stage.index and event["attempt"] > trainee.attempt:
            if event["to"] == trainee.images_seen:
                _start_attempt(trainee, event["attempt"], event["lr_scale"])
    return trainee


def _start_attempt(trainee: Trainee, attempt: int, lr_scale: float) -> None:
    trainee.attempt, trainee.lr_scale = attempt, lr_scale
    trainee.bad_run.zero_()
    trainee.max_bad_run.zero_()


def _roll_back(job: StageJob, events: Events, progress: TrainProgress, broken: Trainee) -> Trainee:
    """Back to the last checkpoint (or to fresh weights) at half the rate, under a new random key; recorded first."""
    if broken.attempt + 1 > MAX_ATTEMPTS:
        raise UserError(
            f"stage {job.stage.name}: no finite gradient for {BAD_STEPS} updates, {MAX_ATTEMPTS} times over; the last good "
            "state is kept. Look at the data, or train with a lower learning rate or --precision fp32 in a new folder."
        )
    found = latest_checkpoint(job.folder, progress.say)
    to = found[1]["images_seen"] if found else 0
    scale = broken.lr_scale / 2
    events.append(
        "rollback", stage=job.stage.index, at=broken.images_seen, to=to, attempt=broken.attempt + 1, lr_scale=scale
    )
    progress.say(
        f"stage {job.stage.name}: {BAD_STEPS} updates in a row without a finite gradient at {broken.images_seen:,} images; "
        f"back to {to:,} at {scale:g} of the learning rate"
    )
    if found is None:
        fresh = build_stage(job.stage.config, job.stage.index, num_classes=job.stage.num_classes, seed=job.seed)
        job.stage.net.load_state_dict(fresh.net.state_dict())
    trainee = Trainee(job.stage)
    if found is not None:
        trainee.load(found[0], found[1])
    trainee.seconds = broken.seconds
    _start_attempt(trainee, broken.attempt + 1, scale)
    return trainee


def _save(job: StageJob, trainee: Trainee) -> None:
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
    prune(job.folder, keep=job.keep)


@torch.no_grad()
def show_ema(trainee: Trainee, shadow: Stage) -> None:
    """Copy the first EMA profile into ``shadow``, the stage that is evaluated and previewed."""
    torch._foreach_copy_(list(shadow.net.parameters()), trainee.ema.params[0])


def _crossed(seen: int, batch_size: int, interval: int) -> bool:
    """Whether the update that ended at ``seen`` passed a multiple of ``interval``."""
    return seen // interval > (seen - batch_size) // interval


def _marked(seen: int, batch_size: int, total: int, marks: tuple[float, ...], done: bool) -> bool:
    """Whether the update that ended at ``seen`` passed one of ``marks``, shares of the first goal; the end always."""
    return done or any(seen - batch_size < mark * total <= seen for mark in marks)


def _keep_time(job: StageJob, events: Events, progress: TrainProgress, trainee: Trainee, plan: Plan) -> Plan:
    """Shorten the stage, by a recorded event, when it will overrun its time by more than 10 %."""
    seen, total = trainee.images_seen, plan.total(trainee.images_seen)
    rate = seen / max(trainee.seconds, 1e-9)
    if trainee.seconds + (total - seen) / rate <= 1.1 * plan.seconds:
        return plan
    batch_size = job.stage.config.optim.batch_size
    goal = seen + round_to_batch(max(plan.seconds - trainee.seconds, 0) * rate, batch_size)
    if goal >= total:
        return plan
    events.append(
        "budget", stage=job.stage.index, at=seen, images=goal, checkpoint_images=plan.checkpoint_images,
        seconds=plan.seconds, why="behind the clock",
    )  # fmt: skip
    progress.say(f"stage {job.stage.name}: behind the clock; {goal:,} images instead of {total:,}")
    return dataclasses.replace(plan, segments=(*plan.segments, Segment(seen, goal)))


class _Overfit:
    """Warns once when the validation loss rises for three looks while the training loss falls."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, float]] = []
        self.warned = False

    def look(self, stage: str, row: dict[str, Any], progress: TrainProgress) -> None:
        values = list(row["val_loss"].values())
        self.rows.append((sum(values) / max(len(values), 1), row["loss"]))
        if self.warned or len(self.rows) < 4:
            return
        val, train = zip(*self.rows[-4:], strict=True)
        if val[0] < val[1] < val[2] < val[3] and train[3] < train[0]:
            self.warned = True
            progress.say(
                f"stage {stage}: validation loss has risen three times ({val[0]:.4f} to {val[3]:.4f}) while training "
                "loss fell: the stage begins to learn its images by heart. More data, --flip or a smaller budget help."
            )
