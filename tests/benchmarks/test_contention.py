"""The benchmark beside a busy process at toy size: its figures are those of its rounds, and a limit is kept."""

import json
from pathlib import Path

import pytest

from benchmarks import contention


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stated ones, of three rounds."""
    given = {
        (0, None, "1000"): [12.0, 20.0, 30.0], (1, None, "1000"): [4.0, 10.0, 6.0], (1, 3, "1000"): [6.0, 5.0, 10.0],
        (4, None, "1000"): [1.0, 2.0, 6.0], (4, 1, "1000"): [3.0, 5.0, 5.0],
        (0, None, None): [8.0, 8.0, 8.0], (1, None, None): [1.0, 2.0, 4.0],
    }  # fmt: skip
    monkeypatch.setattr(contention, "ROUNDS", 3)
    monkeypatch.setattr(contention, "usable_cores", lambda: 4)
    monkeypatch.setattr(contention, "speed", lambda *arm: given[arm].pop(0))


@pytest.mark.usefixtures("speeds")
@pytest.mark.parametrize("limit", [3.0, 2.9])
def test_ratios_are_of_one_round(limit: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contention, "LIMIT", limit)
    out = tmp_path / "results" / "contention.json"
    if limit < 3:
        with pytest.raises(SystemExit, match=r"3\.0 times slower beside a busy process; expected at most 2\.9"):
            contention.main(["--out", str(out)])
    else:
        contention.main(["--out", str(out)])
    told = json.loads(out.read_text())
    assert told["beside one"] == {"images_per_s": 6, "slower": {"min": 2, "median": 3, "max": 5}}
    for name, slower in (
        ("beside one, a thread for each free core", (2, 3, 4)),
        ("beside one on each core", (5, 10, 12)),
        ("beside one on each core, one thread", (4, 4, 6)),
        ("beside one, threads as they are by default", (2, 4, 8)),
    ):
        assert told[name]["slower"] == dict(zip(("min", "median", "max"), slower, strict=True))


def test_speed_is_measured_in_a_process_beside_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that says what it was given instead of training; the other process is ended."""
    others = []
    popen = contention.subprocess.Popen

    class Other(popen):
        def __init__(self, *arguments, **options) -> None:
            super().__init__(*arguments, **options)
            others.append(self)

    monkeypatch.setattr(contention, "SECONDS", 0.5)
    monkeypatch.setattr(
        contention, "CHILD", "import os; print(float(os.environ['S']) + float(os.environ['GOMP_SPINCOUNT']))"
    )
    monkeypatch.setattr(contention.subprocess, "Popen", Other)
    assert contention.speed(2, None, "7") == 7.5
    busy = [each for each in others if each.args[-1] == "while True: pass"]
    assert len(busy) == 2 and all(each.returncode is not None for each in busy)
    others.clear()
    assert contention.speed(0, None, "7") == 7.5
    assert not [each for each in others if each.args[-1] == "while True: pass"]


def test_its_training_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contention, "SECONDS", 0.1)
    monkeypatch.setattr(contention, "BATCH", 2)
    assert contention.speed(0, 1, "1000") > 0
