"""``cdm evaluate``."""

from __future__ import annotations

from pathlib import Path

from cdm.cli.options import Evaluate
from cdm.cli.paths import user_path
from cdm.cli.say import say
from cdm.errors import UserError
from cdm.pipeline.evaluate_request import EvaluateRequest
from cdm.pipeline.request import parse_numbers


def run_evaluate(options: Evaluate, command: str) -> None:
    request = _request(options, command)

    # torch comes only now: wrong options are told at once
    from cdm.cli.progress import counting_progress
    from cdm.pipeline.evaluate_plan import describe
    from cdm.pipeline.evaluate_run import evaluate
    from cdm.pipeline.processes import joined

    with joined() as processes:
        talk = say if processes.first else _silent
        try:
            with counting_progress(visible=processes.first) as progress:
                if options.dry_run:
                    describe(request, progress, talk)
                    return
                report = evaluate(request, processes, progress, talk)
        except KeyboardInterrupt as stopped:
            told = f"interrupted; what is done is kept in {options.out}: give the same command again to go on."
            raise KeyboardInterrupt(told) from stopped
        if report is not None:
            talk(f"next: open {report}, or put evaluations side by side: cdm compare {options.out} OTHER")


def _silent(sentence: str) -> None:
    """Only the first of several processes talks."""


def _request(options: Evaluate, command: str) -> EvaluateRequest:
    levels = parse_numbers(options.aug_level, float, "aug-level", "0.1 or 0.1,0.2")
    steps = parse_numbers(options.steps, int, "steps", "32,16")
    return EvaluateRequest(
        subject=options.subject,
        data=options.data,
        out=user_path(options.out),
        train_data=options.train_data,
        num=options.num,
        seed=options.seed,
        steps=None if steps is None else tuple(steps),
        sampler=options.sampler,
        grid=options.grid,
        threshold=options.threshold,
        aug_level=None if levels is None else tuple(levels),
        hand_over=options.hand_over,
        weights=options.weights,
        extractors=_names(options.extractors),
        metrics=_names(options.metrics),
        extractor_weights=dict(map(_pair, options.extractor_weights)),
        unverified=options.unverified_weights,
        save=None if options.save is None else str(user_path(options.save, "--save")),
        save_statistics=None
        if options.save_statistics is None
        else user_path(options.save_statistics, "--save-statistics"),
        force=options.force,
        batch_size=options.batch_size,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        command=command,
    )


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))


def _pair(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or not path:
        raise UserError(f"--extractor-weights is {text!r}; expected NAME=PATH, as inception=weights.pth.")
    return name, Path(path).expanduser()
