"""``cdm train``: from images to a trained run folder. The same call again resumes."""

from __future__ import annotations

import platform
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cdm.artifacts import (
    RunLock,
    load_json,
    make_folder,
    remove_leftovers,
    save_json,
    told_by_path,
    write_atomic,
)
from cdm.cascade import Cascade, load_config
from cdm.config import CascadeConfig, DataConfig, to_dict
from cdm.data.ahead import Ahead
from cdm.data.arrays import load_images
from cdm.data.batches import Pyramid, TrainingImages
from cdm.data.image_array import ImageArray
from cdm.data.plan import lost_images, plan_sizes, scan_sizes
from cdm.data.source import LETTERS_SPEC, Source, open_source
from cdm.data.split import split_rows
from cdm.errors import UserError
from cdm.evaluate.report import training_report
from cdm.nn.fused_norm import has_kernel
from cdm.pipeline.budget import extend, own_images, plan_stages, round_budget
from cdm.pipeline.generate import Progress
from cdm.pipeline.held_out import (
    FINGERPRINTS,
    HELD_OUT,
    held_out_mark,
    recorded_rows,
    recorded_training,
    write_held_out,
)
from cdm.pipeline.look import Preview, Validation, final_grid
from cdm.pipeline.request import TrainRequest, check_place, check_same, check_same_data, with_request
from cdm.rng import Rng
from cdm.runtime import choose_device, choose_dtype, precision_name, set_threads
from cdm.stage import Stage, build_stage, check_config
from cdm.train.checkpoint import mend_weights
from cdm.train.events import Events
from cdm.train.log import TrainLog, TrainProgress, counted, duration, find_tensorboard
from cdm.train.loop import StageJob, read_plan, train_stage
from cdm.train.plan import measure_speed
from cdm.train.step import Trainee

MakeConfig = Callable[[tuple[int, ...], tuple[str, ...], DataConfig, int], CascadeConfig]
"""A recipe, given sizes, class names, the data's form and the number of training images."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """A request with its data read and its configuration made; nothing is written yet."""

    request: TrainRequest
    config: CascadeConfig
    fingerprint: str
    val_fingerprint: str | None  # of --val
    train: TrainingImages
    val: TrainingImages | None
    device: torch.device
    dtype: torch.dtype
    threads: int
    began: float
    skipped: tuple[tuple[str, str], ...] = ()  # file and reason, of the training and validation data
    held_out: tuple[str, ...] = ()  # names of the training data's images that are not trained on

    @property
    def folder(self) -> Path:
        return self.request.out

    @property
    def todo(self) -> list[int]:
        return list(range(len(self.config.stages))) if self.request.stage is None else [self.request.stage]

    def stage_name(self, index: int) -> str:
        return f"{index}-{self.config.sizes[index]}"

    def stage(self, index: int) -> Stage:
        """A stage with the run's own fresh weights."""
        config = self.config
        stage = build_stage(
            config.stages[index], index, num_classes=config.num_classes, levels=config.data.levels, seed=config.seed
        )
        return stage.to(self.device, self.dtype)

    def batches(self, index: int) -> Callable[..., Any]:
        crop = self.config.stages[index].optim.crop_size

        if self.device.type != "cpu":  # there a thread would take a core from the update
            place = partial(self.train.place, device=self.device)
            return Ahead(partial(self.train.gather, index, crop_size=crop), place)
        return partial(self.train.batch, index, crop_size=crop)


def prepare(
    request: TrainRequest, make_config: MakeConfig, recipe_sizes: tuple[int, ...] | None, say: Say, progress: Progress
) -> Prepared:
    """Read the data, check it against an existing run, and make the configuration."""
    began = time.monotonic()
    device = choose_device(request.device)
    dtype = choose_dtype(request.precision, device, training=True, say=say)
    threads = set_threads(request.threads)
    with told_by_path(Path(request.data)):
        check_place(request)
    source = open_source(request.data)
    stored = _stored(request.out)
    run = None
    if stored is not None:
        check_same(stored, request)
        run = load_config(request.out)
        for k, stage in enumerate(run.stages):
            check_config(stage, request.out / f"{k}-{stage.size}")
    class_names = source.class_names if run is None else run.class_names
    val_source = None if request.val is None else open_source(request.val, class_names)
    val_fingerprint = None if val_source is None else val_source.fingerprint
    if stored is not None:
        check_same_data(stored, source.fingerprint, val_fingerprint, request)
    sizes = run.sizes if run is not None else request.sizes or _planned(source, recipe_sizes, say)
    reader = _Reader(request, sizes[-1], say, progress)
    array = reader.read(source, None if run is None else run.data)
    if run is not None:
        array = array.with_classes(run.class_names)  # changed data may have other folders
    pyramid = Pyramid(array, sizes)
    data = DataConfig(
        channels=array.channels,
        bit_depth=array.bit_depth,  # type: ignore[arg-type]
        window=array.window,
        flip=request.flip,
        balanced=request.balanced,
    )
    if val_source is not None:
        held = reader.read(val_source, data)
        try:
            held = held.with_classes(array.class_names)
        except UserError as error:
            raise UserError(
                f"--val {request.val} does not fit the training images: {str(error).rstrip('.')}: "
                "give folders of these classes, or leave --val out to hold out a share."
            ) from error
        if val_fingerprint == array.fingerprint:
            say("warning: --val is the training data; expected other images: over-fitting cannot show on these")
        if held.is_grey != array.is_grey:
            grey = "--val" if held.is_grey else "DATA"
            say(f"warning: the images of {grey} are grey, the others have colours: the validation loss tells of that")
        val: TrainingImages | None = TrainingImages(held, sizes)
        rows, held_out = None, ()
    else:
        held = None
        if stored is not None and stored["fingerprint"] == array.fingerprint and (request.out / HELD_OUT).exists():
            rows, held_rows = recorded_rows(request.out, array.names)
        else:
            rows, held_rows = split_rows(array.hashes, array.labels, request.val_fraction)
        held_out = tuple(array.names[i] for i in held_rows)
        val = TrainingImages(array, sizes, rows=held_rows, pyramid=pyramid) if len(held_rows) else None
    train = TrainingImages(array, sizes, rows=rows, pyramid=pyramid, flip=request.flip, balanced=request.balanced)
    config = run or with_request(make_config(sizes, array.class_names, data, len(train)), request)
    if request.stage is not None and not 0 <= request.stage < len(sizes):
        raise UserError(f"got --stage {request.stage}; expected 0 (the base) to {len(sizes) - 1}.")
    classes = f"of {counted(len(array.class_names), 'class', 'classes')}" if array.class_names else "without classes"
    say(
        f"{counted(len(train), 'training image')} {classes}, {len(val) if val else 0:,} held out; "
        f"stages {' -> '.join(map(str, sizes))}; {device.type}, {precision_name(dtype)}, {counted(threads, 'thread')}"
    )
    skipped = (*array.skipped, *((f"{request.val}/{name}", why) for name, why in (held.skipped if held else ())))
    return Prepared(
        request=request,
        config=config,
        fingerprint=source.fingerprint,
        val_fingerprint=val_fingerprint,
        train=train,
        val=val,
        device=device,
        dtype=dtype,
        threads=threads,
        began=began,
        skipped=skipped,
        held_out=held_out,
    )


def _stored(out: Path) -> dict[str, Any] | None:
    with told_by_path(out):
        there = next(path for path in (out, *out.parents) if path.exists())
    if not there.is_dir():
        what = "is a file" if there == out else f"lies below {there}, which is a file"
        raise UserError(f"--out {out} {what}; expected a folder to make, or a run to go on with.")
    if not (out / "cascade.json").exists():
        if next(out.glob("*-*/training/ckpt-*.safetensors"), None) is not None:
            raise UserError(
                f"{out} has checkpoints but no cascade.json; expected both: put it back, or choose another --out."
            )
        return None
    stored = load_json(out / "cascade.json")
    if "training" not in stored:
        raise UserError(
            f"{out} holds a cascade that `cdm train` did not start; expected a new folder or a run: change --out."
        )
    return recorded_training(out)


def _planned(source: Source, recipe_sizes: tuple[int, ...] | None, say: Say) -> tuple[int, ...]:
    """Sizes that nobody asked for: the recipe's, or by the data."""
    found = scan_sizes(source)
    sizes = recipe_sizes or plan_sizes(found.median)
    if lost := lost_images(found, sizes):
        say(f"warning: {lost}")
    return sizes


@dataclass(frozen=True)
class _Reader:
    """Reads images at the size of the last stage, with progress, and says what could not be used."""

    request: TrainRequest
    size: int
    say: Say
    progress: Progress

    def read(self, source: Source, like: DataConfig | None) -> ImageArray:
        """``like``: of the run, or of the training images; it settles bit depth and window."""
        array = load_images(
            source, self.size, self.request.channels, "auto" if like is None else like.bit_depth,
            window=None if like is None else like.window, threads=self.request.threads,
            progress=partial(self.progress, f"reading {source.where}"),
        )  # fmt: skip
        for name, reason in array.skipped[:10]:
            self.say(f"skipped {name}: {reason}")
        if len(array.skipped) > 10:
            self.say(f"skipped {len(array.skipped) - 10} more; a run names all of them in its skipped.txt")
        where = "" if like is None else f"{source.where}: "  # two sets may be read
        for warning in array.warnings:
            self.say(f"warning: {where}{warning}")
        return array


def train(prepared: Prepared, say: Say) -> Path:
    """Carry a prepared request out. Returns the report's path, or the run's where not all stages are trained yet."""
    if _stored(prepared.folder) is None:  # too small a budget is refused before anything is written
        for k in prepared.todo:
            if images := own_images(prepared.request, prepared.config.stages[k]):
                round_budget(images, prepared.config.stages[k])
    folder = make_folder(prepared.folder)
    with RunLock(folder):
        remove_leftovers(folder)
        stored = _stored(folder)
        if stored is not None:  # checked again: another process may have begun since this one looked
            check_same(stored, prepared.request)
            check_same_data(stored, prepared.fingerprint, prepared.val_fingerprint, prepared.request)
        events = Events(folder / "events.jsonl")
        if stored is not None:
            _note_data(prepared, stored, events, say)
        stages = prepared.config.stages
        extend(prepared.request, stages, prepared.todo, events, lambda k: str(folder / prepared.stage_name(k)), say)
        budgets = plan_stages(
            prepared.request, stages, prepared.todo, events, _speedometer(prepared, say), prepared.began
        )
        if stored is None:  # nothing is written for a budget that is refused
            _start(prepared, say)
        _name_files(prepared, say)
        _note_machine(prepared, events, say)
        for budget in budgets:
            events.append("budget", **budget)
        tensorboard = find_tensorboard(say)
        with _interrupts() as stop:
            for k in prepared.todo:
                _train_one(prepared, k, events, tensorboard, stop, say)
        return _finish(prepared, events, say)


def _start(prepared: Prepared, say: Say) -> None:
    """Write down what the run is; ``cascade.json`` comes last, and where it is, all is."""
    folder, request = prepared.folder, prepared.request
    for k, stage in enumerate(prepared.config.stages):
        save_json(make_folder(folder / prepared.stage_name(k)) / "config.json", {"config": to_dict(stage)})
    training = {
        "data": request.data,
        "path": request.data if request.data == LETTERS_SPEC else str(Path(request.data).expanduser().resolve()),
        "fingerprint": prepared.fingerprint,
        "val_fingerprint": prepared.val_fingerprint,
        "options": request.fixed(),
    }
    save_json(folder / "cascade.json", {"config": to_dict(prepared.config), "training": training})
    say(f"new run in {folder}")


def _note_data(prepared: Prepared, stored: dict[str, Any], events: Events, say: Say) -> None:
    """Record that other data was allowed; from then on it is the run's own."""
    before = {name: stored.get(name) for name in FINGERPRINTS}
    now = {name: getattr(prepared, name) for name in FINGERPRINTS}
    if all(before[name] in (None, now[name]) for name in FINGERPRINTS):  # None: from before it was recorded
        return
    events.append("data_changed", **now, **{f"{name}_before": value for name, value in before.items()})
    say(
        f"the data has changed (fingerprint {(before['fingerprint'] or 'none')[:12]} before, {now['fingerprint'][:12]} "
        "now); the run goes on with it from here, and its weights are those of no single data set"
    )


def _name_files(prepared: Prepared, say: Say) -> None:
    """Files skipped, with their reasons, in ``skipped.txt`` of the run; those held out in ``held_out.txt``."""
    path, count = prepared.folder / "skipped.txt", len(prepared.skipped)
    _write_lines(path, [f"{name}: {reason}" for name, reason in prepared.skipped])
    if count:
        say(f"{counted(count, 'skipped file')} named in {path}")
    write_held_out(prepared.folder, prepared.held_out)


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    if lines or path.exists():  # it may be of other data
        write_atomic(path, "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))


def _note_machine(prepared: Prepared, events: Events, say: Say) -> None:
    """Record what the numbers depend on; warn where it differs from the last start, as then bits may differ."""
    facts = {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "processor": _processor(),
        "device": str(prepared.device),
        "precision": precision_name(prepared.dtype),
        "threads": prepared.threads,
        "norm": "kernel" if has_kernel(prepared.device) else "torch",
    }
    last = events.last("start")
    if last is not None:
        for name, value in facts.items():
            if last.get(name) != value:
                say(
                    f"warning: {name} was {last.get(name)!r} and is {value!r} now; the run goes on, but its weights "
                    "will not equal bit for bit those of a run that was never stopped"
                )
    events.append("start", command=prepared.request.command, held_out=held_out_mark(prepared.held_out), **facts)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "")
    except OSError:
        return platform.processor()


def _speedometer(prepared: Prepared, say: Say) -> Callable[[int], float]:
    def speed(k: int) -> float:
        measured = measure_speed(
            Trainee(prepared.stage(k)), prepared.batches(k), Rng(prepared.config.seed, k), seconds=1.0
        )
        say(f"stage {prepared.stage_name(k)}: {measured:.0f} images/s measured")
        return measured

    return speed


def _train_one(
    prepared: Prepared, k: int, events: Events, tensorboard: type | None, stop: Callable[[], bool], say: Say
) -> None:
    """Train stage ``k``, unless its goal was reached before."""
    plan = read_plan(events, k)
    assert plan is not None
    name = prepared.stage_name(k)
    done = events.last("stage_done", k)
    folder = make_folder(prepared.folder / name)
    if done is not None and done["images"] >= plan.goal:
        mend_weights(folder, prepared.config.stages[k].optim.ema_sigma_rel, say)
        return
    stage, shadow = prepared.stage(k), prepared.stage(k)
    shadow.net.eval().requires_grad_(False)
    seed = prepared.config.seed
    job = StageJob(
        stage=stage,
        shadow=shadow,
        folder=folder,
        batches=prepared.batches(k),
        seed=seed,
        keep=prepared.request.keep,
        evaluate=Validation(prepared.val, seed) if prepared.val is not None else None,
        preview=Preview(prepared.config, folder, prepared.val or prepared.train, seed),
        stop=stop,
    )
    log = TrainLog(folder, k, tensorboard)
    with TrainProgress(f"stage {name}", plan.goal) as progress:
        train_stage(job, events, log, progress)
    log.close()
    final = read_plan(events, k)
    assert final is not None
    events.append("stage_done", stage=k, images=final.goal)


def _finish(prepared: Prepared, events: Events, say: Say) -> Path:
    """Samples and the report, once every stage is trained."""
    folder = prepared.folder
    missing = [k for k in range(len(prepared.config.stages)) if events.last("stage_done", k) is None]
    if missing:
        say(f"trained so far; stage {missing[0]} is still to be trained: the same command with --stage {missing[0]}")
        return folder
    ends = [event["kind"] for event in events.all() if event["kind"] in ("stage_done", "finished")]
    left = [folder / "report.html", folder / "samples.png"]
    if ends[-1] == "finished" and all(path.exists() for path in left):
        say(f"{folder} is trained already; a larger --images or --minutes would train it further")
        return folder / "report.html"
    cascade = Cascade.load(folder, device=str(prepared.device), precision=precision_name(prepared.dtype))
    began = time.monotonic()
    _, picture = final_grid(cascade, lambda made: _told_grid(made, began, say))
    write_atomic(folder / "samples.png", picture)
    report = training_report(folder, prepared.request.command)
    events.append("finished", weights=cascade.hash)
    say(
        f"done in {duration(time.monotonic() - prepared.began)}: {folder / 'samples.png'} (every class, low-res beside "
        f"high-res), {report}\nnext: cdm sample {folder} --seed 1"
    )
    return report


def _told_grid(made: int, began: float, say: Say) -> None:
    """Progress of the last samples, where they take a while."""
    if time.monotonic() - began > 2:
        say(f"samples for the last sheet: {made} made")


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM ask the loop to save and stop; a second Ctrl-C stops at once."""
    asked = False

    def ask(signum: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
