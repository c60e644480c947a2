"""Decisions of a run that hang on the clock, on chance or on the machine: recorded before they take effect, replayed
on resume, so that a killed run ends as one never stopped."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from cdm.artifacts import append_event, read_events
from cdm.errors import CorruptError


class Events:
    """``events.jsonl`` of a run folder. An event is a dict: ``kind``, ``time`` (information only), and its fields.

    Args:
        path: of the file; it need not exist, its folder must.

    Raises:
        CorruptError: a line other than a torn last one is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._events = read_events(self.path)
        for number, event in enumerate(self._events, start=1):
            if not isinstance(event.get("kind"), str):
                raise CorruptError(
                    f"{self.path} is damaged: event {number} has no kind; expected lines that cdm train wrote. "
                    "Take the line out, or train into a new --out."
                )

    def append(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Records a decision; it is on the disk when this returns. ``stage`` is the number of a stage, if of one."""
        event = {"kind": kind, **fields, "time": datetime.now().astimezone().isoformat(timespec="seconds")}
        append_event(self.path, event)
        self._events.append(event)
        return event

    def all(self, kind: str | None = None, stage: int | None = None) -> list[dict[str, Any]]:
        """Events in order, all of them or those of a kind, of a stage."""
        return [
            event
            for event in self._events
            if kind in (None, event["kind"]) and (stage is None or event.get("stage") == stage)
        ]

    def last(self, kind: str, stage: int | None = None) -> dict[str, Any] | None:
        """The last event of a kind (of a stage), or None."""
        return next(reversed(self.all(kind, stage)), None)
