"""``cdm sample``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cdm.artifacts import make_folder
from cdm.cascade import Cascade, image_seed, load_config
from cdm.cli.options import Sample
from cdm.cli.paths import user_path
from cdm.cli.progress import sampling_progress
from cdm.cli.say import say
from cdm.data.pixels import to_images
from cdm.data.save import read_png_info, save_png
from cdm.errors import UserError
from cdm.pipeline.asks import find_class, parse_batch_size, plan_asks, suffix_of
from cdm.pipeline.request import parse_numbers
from cdm.pipeline.sample_run import check_free, difference, read_made, sample_to_files
from cdm.runtime import set_threads
from cdm.settings import lost_grids


def run_sample(options: Sample) -> None:
    set_threads(options.threads)
    if options.again is not None:
        _again(options, options.again)
        return
    if not options.run:
        raise UserError("no run folder given; expected cdm sample RUN, or --again FILE.png.")
    asked = Cascade(load_config(options.run), ())  # enough to tell a wrong request before weights are read
    last = _last_stage(asked, options.stage)
    levels = parse_numbers(options.aug_level, float, "aug-level", "0.1 or 0.1,0.2")
    settings = asked.settings(
        quality=options.quality,
        steps=parse_numbers(options.steps, int, "steps", "32,16"),
        sampler=options.sampler,
        grid=options.grid,
        threshold=options.threshold,
        aug_level=levels[0] if levels is not None and len(levels) == 1 else levels,
        hand_over=options.hand_over,
    )
    asks = plan_asks(asked, options.class_names, options.num)
    batch_size = parse_batch_size(options.batch_size)
    cascade = Cascade.load(
        options.run, weights=options.weights, device=options.device, precision=options.precision,
        stages=range(last + 1), offload=options.offload, say=say,
    )  # fmt: skip
    for note in lost_grids(asked.config, settings, options.quality) if options.grid is None else ():
        say(note)
    if options.offload and not cascade.offload:
        say("--offload changes nothing on a CPU: weights and images are in its memory anyway")
    out = Path(options.run) / "samples" if options.out is None else user_path(options.out)
    try:
        first = sample_to_files(
            cascade, asks, run=options.run, seed=options.seed, settings=settings, stop_after=last, out=out,
            force=options.force, batch_size=batch_size, weights=options.weights, say=say,
            watch=lambda images: sampling_progress(cascade, images, settings, last),
        )  # fmt: skip
    except KeyboardInterrupt as stopped:
        raise KeyboardInterrupt(
            f"interrupted; the images made so far are in {out}: give the same command again to go on."
        ) from stopped
    say(f"remake one of them: cdm sample --again {first}")


def _last_stage(cascade: Cascade, stage: int | None) -> int:
    count = len(cascade.config.stages)
    if stage is None:
        return count - 1
    if not 0 <= stage < count:
        raise UserError(f"got --stage {stage}; expected 0 (the base) to {count - 1}.")
    return stage


def _again(options: Sample, path: str) -> None:
    """Remake one image from what its file tells; with RUN given, from that folder."""
    _refuse_settings(options)
    made = read_made(path)
    run = options.run or made.run
    if not options.run and not Path(run).exists():
        raise UserError(
            f"{path} was made from {run}, which is not there; expected its run folder: name it, as "
            f"cdm sample RUN --again {path}."
        )
    precision = made.precision if options.precision == "auto" else options.precision
    cascade = Cascade.load(
        run, weights=made.weights, device=options.device, precision=precision, stages=range(made.stage + 1),
        offload=options.offload, say=say,
    )  # fmt: skip
    if cascade.hash != made.weights_hash:
        raise UserError(
            f"{path} was made with the weights {made.weights_hash}, {run} holds {cascade.hash} now; "
            "expected the same: name the run folder that still has them, as cdm sample RUN --again FILE."
        )
    out = Path(path) if options.out is None else user_path(options.out)
    if not options.out or out.is_dir() or options.out.endswith("/"):
        out = (out if options.out else out.parent) / f"{Path(path).stem}-again{Path(path).suffix}"
    suffix = suffix_of(cascade)
    if options.out and out.suffix != suffix:
        out = out.with_name(out.name + suffix)
    if not options.force:
        check_free([out, *([out.with_suffix(".json")] if suffix == ".npy" else [])], "--out")
    make_folder(out.parent)
    labels = None if made.ask_class is None else [find_class(made.ask_class, cascade.class_names)]
    sampled = cascade.sample(labels, [image_seed(made.seed, made.index)], settings=made.settings, stop_after=made.stage)
    image = to_images(sampled.images[-1], cascade.config.data.window)[0]
    save_png(out, image, read_png_info(path))
    off = difference(path, image)
    like = f"up to {off} intensity steps off: another machine, device or batch size rounds otherwise"
    say(f"remade in {out}, {like if off else 'equal in every pixel'}")


def _refuse_settings(options: Sample) -> None:
    """What the file itself tells, and what is of many images, must not be given beside ``--again``."""
    told = (
        "class_names",
        "num",
        "batch_size",
        "seed",
        "quality",
        "steps",
        "sampler",
        "grid",
        "threshold",
        "aug_level",
        "hand_over",
        "stage",
        "weights",
    )
    for field in dataclasses.fields(Sample):
        if field.name in told and getattr(options, field.name) != field.default:
            flag = "class" if field.name == "class_names" else field.name.replace("_", "-")
            raise UserError(
                f"got --{flag} beside --again, which makes one image as its file tells; leave --{flag} out, "
                "or sample a new image without --again."
            )
