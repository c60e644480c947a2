"""Recorded decisions: on the disk before they take effect, found again on resume."""

import json
import os
from datetime import datetime
from pathlib import Path

import pytest

from cdm.errors import CorruptError
from cdm.train.events import Events


def test_events_are_found_again(tmp_path: Path) -> None:
    events = Events(tmp_path / "events.jsonl")
    assert events.all() == [] and events.last("budget") is None
    events.append("budget", stage=0, images=1000)
    events.append("machine", threads=2)
    events.append("budget", stage=1, images=2000)
    events.append("budget", stage=0, images=500)
    for seen in (events, Events(tmp_path / "events.jsonl")):
        assert [e["kind"] for e in seen.all()] == ["budget", "machine", "budget", "budget"]
        assert [e["images"] for e in seen.all("budget", 0)] == [1000, 500]
        assert (seen.last("budget") or {})["images"] == 500
        assert (seen.last("budget", 1) or {})["images"] == 2000
        assert seen.last("machine", 0) is None and seen.last("budget", 2) is None
    assert events.all() == Events(tmp_path / "events.jsonl").all()


def test_event_is_flushed_when_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    on_disk: list[bytes] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (on_disk.append(path.read_bytes()), real(fd))[1])
    events = Events(path)
    for n in range(3):
        events.append("skip", n=n)
        assert json.loads(on_disk[-1].splitlines()[-1])["n"] == n


def test_time_is_told_with_its_zone(tmp_path: Path) -> None:
    event = Events(tmp_path / "events.jsonl").append("start")
    assert datetime.fromisoformat(event["time"]).tzinfo is not None


def test_torn_event_did_not_take_effect(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    Events(path).append("rollback", attempt=1)
    with open(path, "ab") as file:
        file.write(b'{"kind": "rollback", "attem')
    events = Events(path)
    assert (events.last("rollback") or {})["attempt"] == 1
    events.append("rollback", attempt=2)
    assert [e["attempt"] for e in Events(path).all("rollback")] == [1, 2]


def test_damaged_events_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"kind": "a"\n{"kind": "b"}\n')
    with pytest.raises(CorruptError, match="line 1"):
        Events(path)
    path.write_bytes(b'{"kind": "a"}\n{}\n')
    with pytest.raises(CorruptError, match="event 2 has no kind"):
        Events(path)
