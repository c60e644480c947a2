"""``cdm upscale``."""

from __future__ import annotations

from pathlib import Path

from cdm.cascade import Cascade
from cdm.cli.options import Upscale
from cdm.cli.paths import user_path
from cdm.cli.progress import sampling_progress
from cdm.cli.say import say
from cdm.errors import UserError
from cdm.pipeline.asks import find_class
from cdm.pipeline.request import parse_numbers
from cdm.pipeline.sample_run import upscale_to_files
from cdm.runtime import set_threads
from cdm.settings import lost_grids
from cdm.train.log import counted


def run_upscale(options: Upscale) -> None:
    set_threads(options.threads)
    cascade = Cascade.load(options.run, device=options.device, precision=options.precision, say=say)
    count = len(cascade.stages)
    if count < 2:
        raise UserError(f"{options.run} has no SR stage; expected a cascade of at least 2 stages.")
    own = parse_numbers(options.steps, int, "steps", "16")
    if own is not None and len(own) > count - 1:
        raise UserError(
            f"got {counted(len(own), 'number')} of steps for {counted(count - 1, 'SR stage')}; expected one for each: "
            "leave out the base."
        )
    levels = parse_numbers(options.aug_level, float, "aug-level", "0.1 or 0.1,0.2")
    settings = cascade.settings(
        steps=None if own is None else [1, *own],
        aug_level=levels[0] if levels is not None and len(levels) == 1 else levels,
        hand_over="non_truncated",
    )
    for note in lost_grids(cascade.config, settings, first=1):
        say(note)
    label = None if options.class_name is None else find_class(options.class_name, cascade.class_names)
    out = Path(options.run) / "upscaled" if options.out is None else user_path(options.out)
    try:
        with sampling_progress(cascade, len(options.images), settings, count - 1, first=1) as progress:
            upscale_to_files(
                cascade, options.images, label=label, seed=options.seed, settings=settings, out=out,
                force=options.force, progress=progress, say=say,
            )  # fmt: skip
    except KeyboardInterrupt as stopped:
        told = (
            "interrupted; the images are written at the end: give the same command again (--force if some are there)."
        )
        raise KeyboardInterrupt(told) from stopped
