"""The benchmark of scoring at toy size: real features are made once, and limits are kept."""

import json
from pathlib import Path

import pytest
from tests.e2e.command import environment
from tests.e2e.conftest import EXTRACTOR, write_images

from benchmarks import scoring


def test_real_features_are_made_before_the_clock_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timed evaluation changes nothing in the cache that the one before has filled."""
    write_images(tmp_path / "real", 40)
    (tmp_path / "own.py").write_text(EXTRACTOR)
    for name, value in {"SIDE": 16, "WARM_UP": 40, "DATA": str(tmp_path / "real")}.items():
        monkeypatch.setattr(scoring, name, value)
    monkeypatch.setattr(scoring, "EXTRACTOR", f"custom:{tmp_path / 'own.py'}:blocks")
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    kept: list[dict[str, int]] = []
    score = scoring.score

    def watched(images: Path, out: Path, cache: Path) -> tuple[float, int]:
        measured = score(images, out, cache)
        kept.append({str(file): file.stat().st_mtime_ns for file in cache.rglob("*") if file.is_file()})
        assert json.loads((out / "report.json").read_text())
        return measured

    monkeypatch.setattr(scoring, "score", watched)
    assert scoring.main(tmp_path / "results" / "scoring.json", (48,)) == 0
    assert kept[0] == kept[1] and kept[0]
    result = json.loads((tmp_path / "results" / "scoring.json").read_text())
    (row,) = result["runs"]
    assert result["side"] == 16 and row["images"] == 48 and row["seconds"] > 0 and 0.1 < row["peak_gb"] < 2


@pytest.mark.parametrize(
    ("count", "seconds", "peak", "over"),
    [(100, 119.0, 1.9e9, 0), (100, 121.0, 1e9, 1), (10_001, 121.0, 1e9, 0), (10_001, 1.0, 2.1e9, 1)],
)
def test_it_returns_1_above_its_limits(
    count: int, seconds: float, peak: float, over: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "write_letters", lambda *_: None)
    monkeypatch.setattr(scoring, "score", lambda *_: (seconds, peak))
    assert scoring.main(tmp_path / "scoring.json", (count,)) == over


def test_letters_are_an_adm_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "SIDE", 16)
    scoring.write_letters(tmp_path / "some.npz", 30)
    with scoring.np.load(tmp_path / "some.npz") as batch:
        assert batch["arr_0"].shape == (30, 16, 16, 3) and batch["arr_0"].std() > 10
        assert list(batch["arr_1"]) == [*range(26), *range(4)]
    assert [path.name for path in tmp_path.iterdir()] == ["some.npz"]
