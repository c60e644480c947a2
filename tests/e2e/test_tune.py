"""``cdm tune`` as a user runs it: a run's sampling default is searched, stored, and used; again after a stop."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.e2e.command import refused, run_here, succeeded

from cdm.cascade import Cascade, load_config
from cdm.pipeline import tune_search
from cdm.pipeline.tune_search import Candidate, Measured
from cdm.pipeline.tune_store import store_sampling


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of its own, and a search small enough for a test."""
    monkeypatch.setenv("CDM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tune_search, "LADDERS", ((1, 2, 4), (1, 3)))
    monkeypatch.setattr(tune_search, "RACES", ((2,), (1,)))
    monkeypatch.setattr(tune_search, "SAMPLERS", ("dpmpp", "heun_churn"))
    monkeypatch.setattr(tune_search, "KEPT", 2)
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def real(photos: Path) -> Path:
    """Enough to tell a distance from."""
    return photos


def tune(run: Path, real: Path, *options: object):
    return run_here("tune", run, "--data", real / "val", "--train-data", real / "train", "-n", 256, *options)


def test_the_winner_becomes_the_default_and_the_history_is_kept(run: Path, real: Path, tmp_path: Path) -> None:
    before = load_config(run).sampling
    succeeded(tune(run, real), "balanced:", "best:", "report.html", "cdm sample")
    config = load_config(run)
    assert config.sampling_history == (before,)
    assert len(config.qualities) == 3 and config.sampling == config.qualities[1]
    fronts = json.loads((run / "tuning" / "fronts.json").read_text())
    assert [stage["stage"] for stage in fronts["stages"]] == ["0-8", "1-16"]
    for k, stage in enumerate(fronts["stages"]):
        values = [point["distance"] for point in stage["front"]]
        assert values == sorted(values, reverse=True) and values[-1] == stage["picked"]["best"]["distance"]
        assert stage["picked"]["fast"]["evaluations"] <= stage["picked"]["best"]["evaluations"]
        for name, settings in zip(("fast", "balanced", "best"), config.qualities, strict=True):
            assert settings.steps[k] == stage["picked"][name]["evaluations"]
    page = (run / "tuning" / "report.html").read_text()
    assert "network evaluations" in page and "data:image/png" in page
    succeeded(run_here("info", run), "--quality fast: ", "hand-over non_truncated")
    for quality in ("fast", "balanced", "best"):
        succeeded(run_here("sample", run, "-n", 1, "--quality", quality, "--out", tmp_path / quality))
    assert Cascade.load(run).sample(seeds=[0], labels=[0]).evaluations == tuple(
        min(asked, 2 * ((asked + 1) // 2) - 1) if name == "heun_churn" else asked
        for asked, name in zip(config.sampling.steps, _samplers(config.sampling.sampler), strict=True)
    )


def _samplers(names: str) -> list[str]:
    each = names.split(",")
    return each if len(each) > 1 else each * 2


def test_a_stopped_search_goes_on_and_a_finished_one_is_done(run: Path, real: Path, monkeypatch) -> None:
    from cdm.pipeline import tune_trials

    measured: list[object] = []
    original = tune_trials.StageTrials.measure

    def measure(self, candidate, images):
        if len(measured) == 6:
            raise KeyboardInterrupt
        measured.append((self.stage, candidate, images))
        return original(self, candidate, images)

    monkeypatch.setattr(tune_trials.StageTrials, "measure", measure)
    stopped = tune(run, real)
    assert stopped.code == 130 and "what was measured is kept in" in stopped.err
    assert not load_config(run).qualities
    first, measured[:] = list(measured), []
    monkeypatch.setattr(tune_trials.StageTrials, "measure", original)
    succeeded(tune(run, real))
    lines = (run / "tuning" / "measured.jsonl").read_text().splitlines()
    keys = [json.loads(line)["key"] for line in lines]
    assert len(keys) == len(set(keys)) > len(first)
    succeeded(tune(run, real))
    assert (run / "tuning" / "measured.jsonl").read_text().splitlines() == lines
    assert len(load_config(run).sampling_history) == 1  # nothing changed the second time


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-n", 100), ("-n is 100", "at least 256")),
        (("--minutes", 0), ("--minutes is 0", "above 0")),
        (("--minutes", 1e-7), ("does not suffice: of stage 0-8 0 candidates could be measured", "raise --minutes")),
        (("--minutes", 0.1, "-n", 1_000_000), ("of stage 0-8 0 candidates could be measured with 1,000,000 images",)),
        (("--seed", -1), ("--seed is -1",)),
        (("--data", "nowhere"), ("nowhere",)),
    ],
)
def test_bad_requests_are_one_sentence(run: Path, real: Path, options: tuple[object, ...], words: tuple[str, ...]):
    refused(tune(run, real, *options), *words)
    assert not load_config(run).qualities


def test_nothing_takes_the_place_of_what_was_not_measured(run: Path, real: Path, monkeypatch) -> None:
    from cdm.pipeline import tune_run

    points = [Measured(Candidate("ddim", "edm", count), 1.0, 0.9, 1.1, 256, 1.0) for count in (2, 4, 8)]
    monkeypatch.setattr(tune_run, "search", lambda *_, **__: (points, []))
    refused(tune(run, real), "not how the run samples now (dpmpp, logsnr grid", "raise --minutes")
    assert not load_config(run).qualities


def test_a_grid_of_its_own_does_not_count_as_a_candidates_pace(monkeypatch) -> None:
    from cdm.pipeline import tune_trials

    def slow(_: object) -> None:
        time.sleep(0.5)

    features = SimpleNamespace(by_name=lambda: {"main": torch.zeros(1)})
    stub = SimpleNamespace(
        settings_for=slow, blocks=lambda *_: [0], extractor=lambda _: features, _enlarged=lambda made: made,
        reference=None, labels=None,
    )  # fmt: skip
    distance = SimpleNamespace(value=1.0, low=0.9, high=1.1)
    monkeypatch.setattr(tune_trials, "frechet_estimate", lambda *_: distance)
    measured = tune_trials.StageTrials.measure(stub, Candidate("dpmpp", "profile", 4), 256)  # type: ignore[arg-type]
    assert measured.seconds < 0.3


def test_a_grid_that_other_steps_lose_is_told(run: Path, real: Path, tmp_path: Path) -> None:
    levels = ((-5.0, 0.0, 5.0), (-6.0, 0.0, 6.0))
    store_sampling(run, replace(Cascade.load(run).settings(), steps=(3, 3), grid="tuned", levels=levels), ())
    told = "stage {} of {} pixels is sampled on the grid logsnr: its own was made for 3 evaluations of dpmpp"
    base, top = told.format(0, 8), told.format(1, 16)
    succeeded(run_here("sample", run, "-n", 1, "--steps", "2,2", "--out", tmp_path / "images"), base, top)
    image = next((tmp_path / "images").rglob("*.png"))
    ran = run_here("upscale", run, image, "--class", "cat", "--steps", 2, "--out", tmp_path / "up")
    succeeded(ran, top)
    assert base not in ran.out
    data = ("--data", real / "val", "-n", 36, "--metrics", "kid", "--device", "cpu", "--out", tmp_path / "report")
    succeeded(run_here("evaluate", run, *data, "--steps", "2,2"), base, top)


def test_no_run_and_no_quality(run: Path, real: Path, tmp_path: Path) -> None:
    refused(tune(tmp_path / "none", real), "is not a run folder")
    refused(run_here("sample", run, "--quality", "superb"), "unknown quality 'superb'; expected one of fast, balanced")
    succeeded(run_here("sample", run, "-n", 1, "--quality", "fast", "--out", tmp_path / "fast"), "8+4 network")


def test_too_few_real_images_are_refused_before_anything_is_searched(run: Path, photos: Path, tmp_path: Path) -> None:
    """The covariance of fewer images than features is singular."""
    few = tmp_path / "few"
    for name in ("cat", "dog"):
        shutil.copytree(photos / "val" / name, few / name)
        for path in sorted((few / name).iterdir())[50:]:
            path.unlink()
    ran = run_here("tune", run, "--data", few, "--train-data", photos / "train", "-n", 256)
    refused(ran, "has 100 real images to compare with; expected at least 129", "give more")
    assert not (run / "tuning" / "measured.jsonl").exists() and not load_config(run).qualities
