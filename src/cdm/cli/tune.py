"""``cdm tune``."""

from __future__ import annotations

from cdm.cli.options import Tune
from cdm.cli.paths import user_path
from cdm.cli.say import say
from cdm.pipeline.tune_request import TuneRequest


def run_tune(options: Tune, command: str) -> None:
    request = TuneRequest(
        run=user_path(options.run, "RUN"),
        data=options.data,
        train_data=options.train_data,
        minutes=options.minutes,
        images=options.num,
        axes=tuple(dict.fromkeys(options.axis.split(","))),
        hand_over=options.hand_over,
        metric=options.metric,
        levels=options.levels,
        seed=options.seed,
        batch_size=options.batch_size,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        command=command,
    )

    # torch comes only now: wrong options are told at once
    from cdm.cli.progress import counting_progress
    from cdm.pipeline.tune_level_run import check_levels, tune_levels
    from cdm.pipeline.tune_run import tune

    if "level" in request.axes:
        check_levels(request)  # before the other axis takes its time
    reports = []
    try:
        with counting_progress() as progress:
            if "steps" in request.axes:
                reports.append(tune(request, progress, say))
            if "level" in request.axes:  # at the sampler and steps just found, if these were searched too
                reports.append(tune_levels(request, progress, say))
    except KeyboardInterrupt as stopped:
        told = f"interrupted; what was measured is kept in {request.out}: give the same command again to go on."
        raise KeyboardInterrupt(told) from stopped
    say(f"next: open {' and '.join(map(str, reports))}, or cdm sample {options.run} --quality fast")
