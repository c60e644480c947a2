"""Progress of sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cdm.cascade import Cascade
from cdm.cascade import Progress as SampleProgress
from cdm.config import SamplingConfig
from cdm.types import Image


@contextmanager
def sampling_progress(
    cascade: Cascade, images: int, batch_size: int, settings: SamplingConfig, last: int, first: int = 0
) -> Iterator[SampleProgress]:
    """A bar over all steps of all batches, weighed by pixels, with time left. Silent where output is no terminal."""
    costs = [stage.size**2 for stage in cascade.config.stages]
    batches = -(-images // batch_size)
    total = batches * sum(settings.steps[k] * costs[k] for k in range(first, last + 1))
    console = Console(stderr=True)
    with Progress(
        TextColumn("sampling"), BarColumn(), TextColumn("{task.fields[info]}"), TimeRemainingColumn(), console=console,
        disable=not console.is_terminal, transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task("sampling", total=total, info="")

        def progress(stage: int, done: int, of: int, preview: Image) -> None:
            advance = costs[stage] * settings.steps[stage] / of
            bar.update(task, advance=advance, info=f"stage {stage}, step {done}/{of}")

        yield progress


@contextmanager
def counting_progress(visible: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for one thing after another: ``progress(what, done, total)``, with time left. Silent where output is no
    terminal."""
    console = Console(stderr=True)
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

        yield progress
