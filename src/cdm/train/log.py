"""What is seen of training: ``log.jsonl``, TensorBoard when it is installed, and progress on the terminal."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from cdm.artifacts import append_event, make_folder, read_log

BAR_WIDTH = 10

__all__ = ["TrainLog", "TrainProgress", "counted", "duration", "find_tensorboard", "overfit_warning", "read_log"]


def find_tensorboard(say: Callable[[str], None]) -> type | None:
    """TensorBoard's writer class, or None, which is said. Call it once per run and hand it to every ``TrainLog``."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        say("TensorBoard is not installed, log.jsonl alone is written: pip install 'cascaded-diffusion[tensorboard]'.")
        return None
    return SummaryWriter


class TrainLog:
    """Appends to the ``log.jsonl`` of one stage, and to TensorBoard.

    Args:
        folder: the stage's folder.
        stage: its number.
        tensorboard: what ``find_tensorboard`` gave.
    """

    def __init__(self, folder: str | Path, stage: int, tensorboard: type | None = None) -> None:
        self.path = make_folder(folder) / "log.jsonl"
        self.stage = stage
        self._folder = str(Path(folder) / "tensorboard")
        self._make = tensorboard
        self._tensorboard: Any = None

    def start(self, images_seen: int) -> None:
        """Training starts or goes on from here; lines beyond it no longer count."""
        self._tensorboard = self._make(self._folder, purge_step=images_seen + 1) if self._make else None
        if self.path.exists():
            self.go_back(images_seen)

    def go_back(self, images_seen: int) -> None:
        """Marks that training goes on from ``images_seen``: lines beyond it no longer count (resume, roll-back)."""
        append_event(self.path, {"stage": self.stage, "images_seen": images_seen, "resumed": True})

    def write(self, images_seen: int, **values: Any) -> None:
        """One line: loss, lr, grad_norm, images_per_s, seconds, skipped, data_wait, whatever was measured."""
        append_event(self.path, {"stage": self.stage, "images_seen": images_seen, **values})
        if self._tensorboard:
            for name, value in values.items():
                parts = value if isinstance(value, dict) else {"": value}
                for part, number in parts.items():
                    if isinstance(number, int | float):
                        self._tensorboard.add_scalar(f"{name}/{part}".rstrip("/"), number, images_seen)

    def close(self) -> None:
        if self._tensorboard:
            self._tensorboard.close()


def overfit_warning(rows: Sequence[dict[str, Any]]) -> str | None:
    """A sentence when, with the last of ``rows``, the validation loss has risen three times in a row while the training
    loss fell; None otherwise, and where that was so before: it is said once."""
    looks = [(fmean(row["val_loss"].values()), row["loss"]) for row in rows if row.get("val_loss") and "loss" in row]

    def rising(end: int) -> bool:
        val, train = zip(*looks[end - 4 : end], strict=True)
        return val[0] < val[1] < val[2] < val[3] and train[3] < train[0]

    if len(looks) < 4 or not rising(len(looks)) or any(rising(end) for end in range(4, len(looks))):
        return None
    return (
        f"validation loss has risen three times ({looks[-4][0]:.4f} to {looks[-1][0]:.4f}) while training loss fell: "
        "the stage begins to learn its images by heart. More data, --flip or a smaller budget help."
    )


def duration(seconds: float) -> str:
    """A length of time for people: ``40 s``, ``3 min 20 s``, ``2 h 05 min``."""
    s = max(0, round(seconds))
    if s < 60:
        return f"{s} s"
    return f"{s // 60} min {s % 60:02d} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60:02d} min"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """``1 image``, ``2 images``."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


class Rate:
    """Images per second over the last ``window_s`` seconds."""

    def __init__(self, window_s: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._window_s = window_s
        self._clock = clock
        self._points: deque[tuple[float, int]] = deque()

    def update(self, images_seen: int) -> float | None:
        """Takes in a count and returns the rate; None until there are two counts. A fall (roll-back) starts anew."""
        now = self._clock()
        if self._points and images_seen < self._points[-1][1]:
            self._points.clear()
        self._points.append((now, images_seen))
        while len(self._points) > 2 and self._points[1][0] <= now - self._window_s:
            self._points.popleft()
        (t0, n0), (t1, n1) = self._points[0], self._points[-1]
        return (n1 - n0) / (t1 - t0) if t1 > t0 else None


class _Field(ProgressColumn):
    """A text that the owner of the bar sets."""

    def render(self, task: Task) -> Text:
        return Text(task.fields.get("info", ""), style="cyan")


class TrainProgress:
    """Progress of one stage: a bar on a terminal, a plain line every ``every_s`` seconds elsewhere.

    Use it as a context manager. ``say`` prints a sentence without breaking the bar.
    """

    def __init__(
        self,
        label: str,
        total: int,
        *,
        console: Console | None = None,
        every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or Console()
        self._label = label
        self._total = total
        self._every_s = every_s
        self._clock = clock
        self._rate = Rate(clock=clock)
        self._last_line: float | None = None
        self.loss: float | None = None  # shown; set it when it is known
        # one line, however narrow: the end of the text, which matters least, gives way
        line = Column(no_wrap=True, overflow="ellipsis")
        fixed = Column(no_wrap=True, min_width=BAR_WIDTH)
        columns = (
            TextColumn("{task.description}", table_column=fixed),
            BarColumn(BAR_WIDTH, table_column=fixed),
            _Field(table_column=line),
        )
        self._bar = Progress(*columns, console=self.console) if self.console.is_terminal else None
        self._task = self._bar.add_task(label, total=total) if self._bar else None

    def __enter__(self) -> TrainProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, sentence: str) -> None:
        self.console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def update(self, images_seen: int, total: int | None = None) -> float | None:
        """Shows the state; call it as often as you like. ``total``: when the budget has changed. Returns images/s."""
        self._total = total or self._total
        rate = self._rate.update(images_seen)
        info = self._describe(images_seen, rate, self.loss)
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=images_seen, total=self._total, info=info)
            return rate
        now = self._clock()
        if self._last_line is None or now - self._last_line >= self._every_s or images_seen >= self._total:
            self._last_line = now
            self.say(f"{self._label}: {info}")
        return rate

    def _describe(self, images_seen: int, rate: float | None, loss: float | None) -> str:
        parts = [f"{images_seen:,} of {self._total:,} images"]
        if rate:
            parts += [f"{duration((self._total - images_seen) / rate)} left", f"{rate:.0f} images/s"]
        if loss is not None:
            parts.append(f"loss {loss:.4f}")
        return ", ".join(parts)
