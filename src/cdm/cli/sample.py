"""``cdm sample``."""

from __future__ import annotations

from pathlib import Path

from cdm.cascade import Cascade, image_seed, load_config
from cdm.cli.options import Sample
from cdm.cli.progress import sampling_progress
from cdm.cli.say import say
from cdm.data.pixels import to_images
from cdm.data.save import read_png_info, save_png
from cdm.errors import UserError
from cdm.pipeline.sample_run import (
    Ask,
    check_free,
    find_class,
    parse_numbers,
    plan_asks,
    read_made,
    sample_to_files,
)
from cdm.runtime import set_threads


def run_sample(options: Sample) -> None:
    set_threads(options.threads)
    if options.again is not None:
        _again(options, options.again)
        return
    if not options.run:
        raise UserError("no run folder given; expected cdm sample RUN, or --again FILE.png.")
    last = _last_stage(options.run, options.stage)
    cascade = Cascade.load(
        options.run, weights=options.weights, device=options.device, precision=options.precision, stages=range(last + 1)
    )
    levels = parse_numbers(options.aug_level, float, "aug-level")
    settings = cascade.settings(
        steps=parse_numbers(options.steps, int, "steps"),
        sampler=options.sampler,
        aug_level=levels[0] if levels is not None and len(levels) == 1 else levels,
        hand_over=options.hand_over,
    )
    asks = plan_asks(cascade, options.class_names, options.num)
    out = Path(options.out) if options.out else Path(options.run) / "samples"
    with sampling_progress(cascade, len(asks), options.batch_size, settings, last) as progress:
        sample_to_files(
            cascade, asks, run=options.run, seed=options.seed, settings=settings, stop_after=last, out=out,
            force=options.force, batch_size=options.batch_size, weights=options.weights, progress=progress, say=say,
        )  # fmt: skip
    if asks and (out / "grid.png").exists():
        say(f"remake one of them: cdm sample --again {next(out.rglob('*-seed*.png'))}")


def _last_stage(run: str, stage: int | None) -> int:
    count = len(load_config(run).stages)
    if stage is None:
        return count - 1
    if not 0 <= stage < count:
        raise UserError(f"got --stage {stage}; expected 0 (the base) to {count - 1}.")
    return stage


def _again(options: Sample, path: str) -> None:
    """Remake one image from what its file tells; with RUN given, from that folder."""
    made = read_made(path)
    run = options.run or made.run
    cascade = Cascade.load(
        run, weights=made.weights, device=options.device, precision=options.precision, stages=range(made.stage + 1)
    )
    if cascade.hash != made.weights_hash:
        raise UserError(
            f"{path} was made with the weights {made.weights_hash}, {run} holds {cascade.hash} now; "
            "expected the same: name the run folder that still has them, as cdm sample RUN --again FILE."
        )
    label = None if made.ask_class is None else find_class(made.ask_class, cascade.class_names)
    out = Path(options.out) if options.out else Path(path).with_name(f"{Path(path).stem}-again.png")
    if not options.force:
        check_free([out])
    ask = Ask(label, made.index)
    labels = None if ask.label is None else [ask.label]
    sampled = cascade.sample(labels, [image_seed(made.seed, ask.index)], settings=made.settings, stop_after=made.stage)
    save_png(out, to_images(sampled.images[-1], cascade.config.data.window)[0], read_png_info(path))
    say(f"remade in {out}")
