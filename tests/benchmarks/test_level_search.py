"""The search of levels beside all of them, at toy size: what it says of cost and of the best level follows the rows."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import CLASSES, write_images
from tests.fakes import random_cascade, save_run, stage_config

from benchmarks import level_search
from cdm.config import AugmentationConfig
from cdm.evaluate.extractors import domain


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Calls the benchmark on a run with random weights; returns what it wrote."""
    monkeypatch.setattr(domain, "EFFORT", 30)
    monkeypatch.setenv("CDM_CACHE", str(tmp_path / "cache"))
    noise = AugmentationConfig(level_min=0.0, level_max=0.5)
    stages = (
        stage_config(8, channels=3, num_labels=2),
        stage_config(16, 8, channels=3, num_labels=2, augmentation=noise),
    )
    run = save_run(tmp_path / "letters", random_cascade(*stages, classes=CLASSES))
    for part, count in (("train", 20), ("val", 150)):
        for seed, name in enumerate(CLASSES):
            write_images(tmp_path / part / name, count, seed=seed + 2 * (part == "val"))

    def call(*options: str) -> dict[str, Any]:
        data = ("--data", str(tmp_path / "val"), "--train-data", str(tmp_path / "train"))
        own = ("--work", str(tmp_path / "work"), "--steps", "2,1", "--device", "cpu", "--out", str(tmp_path / "o.json"))
        level_search.main([str(run), *data, *own, "-n", "256", *options])
        return json.loads((tmp_path / "o.json").read_text())

    return call


def test_the_search_is_a_share_of_all_levels_and_a_second_call_makes_nothing(measure: Any, tmp_path: Path) -> None:
    before = (tmp_path / "letters" / "cascade.json").read_bytes()
    told = measure("--hand-over", "non_truncated")["non_truncated"]
    values = {float(level): row["value"] for level, row in told["in_full"].items()}
    assert sorted(values) == pytest.approx([0.05 * k for k in range(11)])
    best = min(values, key=values.__getitem__)
    assert told["best"]["in full"] == best
    assert told["steps_apart"] == round(abs(told["best"]["search"] - best) / 0.05)
    searched = {float(level): row for level, row in told["by_search"].items()}
    assert told["images"]["search"] == sum(row["images"] for row in searched.values()) < told["images"]["in full"]
    assert told["images"]["in full"] == 11 * 256
    full = [level for level, row in searched.items() if row["images"] == 256]
    assert full and all(searched[level]["value"] == pytest.approx(values[level]) for level in full)
    assert told["ratio"]["value"] == pytest.approx(values[told["best"]["search"]] / values[best], rel=1e-6)
    assert told["seconds"]["search"] <= told["seconds"]["in full"]
    again = measure("--hand-over", "non_truncated")["non_truncated"]
    assert again["seconds"] is None  # nothing was made
    assert {**again, "seconds": None} == {**told, "seconds": None}
    assert (tmp_path / "letters" / "cascade.json").read_bytes() == before


def test_bad_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    level_search.main([])
    assert "skipped: no --data" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"level_search: .*not a run folder"):
        level_search.main([str(tmp_path / "none"), "--data", str(tmp_path), "--work", str(tmp_path / "work")])
    with pytest.raises(SystemExit, match="at least 256 images"):
        level_search.main(["--data", str(tmp_path), "--work", str(tmp_path / "work"), "-n", "10"])
