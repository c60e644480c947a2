"""Progress of sampling and evaluation: a bar on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cdm.cascade import Cascade
from cdm.cascade import Progress as SampleProgress
from cdm.config import SamplingConfig
from cdm.train.log import duration
from cdm.types import Image

LINE_EVERY_S = 10.0


class PlainLines:
    """For logs and pipes: a line with the time left, at most one in ``LINE_EVERY_S`` seconds, none in the first."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._what, self._began, self._before = "", clock(), 0.0
        self._last = self._began

    def update(self, what: str, done: int | float, total: int | float, info: str) -> None:
        now = self._clock()
        if what != self._what:
            self._what, self._began, self._before = what, now, done
        if now - self._last < LINE_EVERY_S or done >= total:
            return
        self._last = now
        made = done - self._before
        left = f", {duration((now - self._began) * (total - done) / made)} left" if made > 0 else ""
        self._console.print(f"{what}: {info}{left}", markup=False, highlight=False, soft_wrap=True)


class SamplingWork:
    """How much is done: images through stages, each as costly as ``costs`` tells. A batch that the memory did not
    suffice for is not counted: what it had done is made again in smaller ones."""

    def __init__(self, costs: Sequence[float]) -> None:
        self._costs = costs
        self._finished = 0.0

    def update(self, stage: int, done: int, of: int, images: int) -> float:
        """Takes in step ``done`` of the batch under way; returns all that is done."""
        passed = self._finished + self._costs[stage] * images * done / of
        if done == of:
            self._finished = passed
        return passed


@contextmanager
def sampling_progress(
    cascade: Cascade, images: int, settings: SamplingConfig, last: int, first: int = 0
) -> Iterator[SampleProgress]:
    """Over all steps of ``images`` images, weighed by pixels, with time left."""
    costs = [float(stage.size**2 * steps) for stage, steps in zip(cascade.config.stages, settings.steps, strict=True)]
    work, total = SamplingWork(costs), images * sum(costs[first : last + 1])
    console = Console(stderr=True)
    lines = None if console.is_terminal else PlainLines(console)
    with Progress(
        TextColumn("sampling"), BarColumn(), TextColumn("{task.fields[info]}"), TimeRemainingColumn(), console=console,
        disable=lines is not None, transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task("sampling", total=total, info="")

        def progress(stage: int, done: int, of: int, preview: Image) -> None:
            passed = work.update(stage, done, of, len(preview))
            info = f"stage {stage}, step {done}/{of}"
            bar.update(task, completed=passed, info=info)
            if lines is not None:
                lines.update("sampling", passed, total, f"{100 * passed / total:.0f} %, {info}")

        yield progress


@contextmanager
def counting_progress(visible: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """One thing after another: ``progress(what, done, total)``, with time left. ``visible`` False: nothing is shown."""
    console = Console(stderr=True)
    lines = PlainLines(console) if visible and not console.is_terminal else None
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeRemainingColumn(), console=console, disable=not (visible and console.is_terminal), transient=True,
    ) as bar:  # fmt: skip
        tasks: dict[str, TaskID] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                for task in tasks.values():
                    bar.update(task, visible=False)
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total, visible=True)
            if lines is not None:
                lines.update(what, done, total, f"{done:,} of {total:,}")

        yield progress
