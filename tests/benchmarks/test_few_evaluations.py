"""The benchmark of few evaluations at toy size: equal settings give equal figures, and what was made is kept."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import CLASSES, write_images
from tests.fakes import random_cascade, save_run, stage_config

from benchmarks import few_evaluations
from cdm.artifacts import save_json
from cdm.evaluate import frechet_ratio
from cdm.evaluate.extractors import domain

SAME = {"sampler": "ddpm", "grid": "logsnr", "evaluations": 2}


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Calls the benchmark on a run with random weights; returns the figures."""
    monkeypatch.setattr(few_evaluations, "BLOCK", 32)
    monkeypatch.setattr(few_evaluations, "TIMED", 2)
    monkeypatch.setattr(frechet_ratio, "DRAWS", 20)
    monkeypatch.setattr(domain, "EFFORT", 30)  # the extractor sees about 100 images
    monkeypatch.setenv("CDM_CACHE", str(tmp_path / "cache"))
    stages = stage_config(8, channels=3, num_labels=2), stage_config(16, 8, channels=3, num_labels=2)
    run = save_run(tmp_path / "run", random_cascade(*stages, classes=CLASSES))
    for part, count in (("train", 20), ("val", 16)):
        for seed, name in enumerate(CLASSES):
            write_images(tmp_path / part / name, count, seed=seed + 2 * (part == "val"))

    def call(*options: str) -> dict[str, Any]:
        data = (
            "--data",
            str(tmp_path / "val"),
            "--train-data",
            str(tmp_path / "train"),
            "--work",
            str(tmp_path / "work"),
        )
        own = ("-n", "64", "--reference", "2", "--long", "3", "--device", "cpu", "--out", str(tmp_path / "out.json"))
        few_evaluations.main([str(run), *data, *own, *options])
        return json.loads((tmp_path / "out.json").read_text())

    return call


def test_numbers_below_a_block_are_one_sentence(measure: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (("-n", "31"), ("--long-images", "96"), ("--long-images", "8")):
        with pytest.raises(SystemExit) as ended:
            measure(*options)
        assert ended.value.code == 2 and "blocks of 32" in capsys.readouterr().err


def test_equal_settings_are_one_and_a_second_call_makes_no_image_again(
    measure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_json(tmp_path / "fronts.json", {"stages": [{"front": [SAME]}, {"front": [SAME]}]})
    options = ("--fronts", str(tmp_path / "fronts.json"))
    result = measure(*options)
    assert result["settings"]["fast"] == result["settings"]["reference"] != result["settings"]["base, long"]
    figures = result["figures"]
    assert figures["base"].keys() == {"fast", "reference", "base, long"}
    assert figures["cascade"].keys() == {"fast", "reference"}
    for arms in figures.values():
        assert arms["fast"]["ratio_to_reference"] == {"value": 1.0, "low": 1.0, "high": 1.0}
        assert arms["fast"]["distance"] == arms["reference"]["distance"]
    base = figures["base"]
    quotient = base["base, long"]["distance"]["value"] / base["reference"]["distance"]["value"]
    assert base["base, long"]["ratio_to_reference"]["value"] == pytest.approx(quotient, rel=1e-6) != 1
    assert result["wall_clock"]["images"] == 2 and len(result["wall_clock"]["fast_s"]) == 5

    monkeypatch.setattr(few_evaluations.Features, "make", lambda *_: pytest.fail("made again"))
    again = measure(*options, "--no-timing")
    assert again["figures"] == figures and "wall_clock" not in again


def test_without_data_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    few_evaluations.main([])
    assert "skipped: no --data" in capsys.readouterr().out
