"""The benchmark beside a busy process at toy size: its figures are those of its rounds, and a limit is kept."""

import json
from pathlib import Path

import pytest

from benchmarks import contention


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stated ones: alone 12, 20 and 30 images/s, beside another process 4, 10 and 6."""
    given = {False: [12.0, 20.0, 30.0] * 2, True: [4.0, 10.0, 6.0] * 2}
    monkeypatch.setattr(contention, "ROUNDS", 3)
    monkeypatch.setattr(contention, "speed", lambda busy, spins: given[busy].pop(0))


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
    for name in ("as cdm sets it", "as it is by default"):
        told = json.loads(out.read_text())[name]
        assert told == {"alone": 20, "beside": 6, "slower": {"min": 2, "median": 3, "max": 5}}


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
    assert contention.speed(True, "7") == 7.5
    busy = [each for each in others if each.args[-1] == "while True: pass"]
    assert len(busy) == 1 and busy[0].returncode is not None
    others.clear()
    assert contention.speed(False, "7") == 7.5
    assert not [each for each in others if each.args[-1] == "while True: pass"]


def test_its_training_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contention, "SECONDS", 0.1)
    monkeypatch.setattr(contention, "BATCH", 2)
    assert contention.speed(False, "1000") > 0
