"""``cdm tune --axis level`` as a user runs it: levels are searched, checked, drawn, stored, used; and again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from tests.e2e.command import refused, run_here, succeeded
from tests.e2e.conftest import CLASSES
from tests.fakes import random_cascade, save_run, stage_config

from cdm.cascade import Cascade, load_config
from cdm.config import AugmentationConfig, SamplingConfig, ScheduleConfig, StageConfig
from cdm.pipeline import tune_level_trials

STEPS = {8: 2, 16: 1, 32: 1}


@pytest.fixture(autouse=True)
def kept_extractor(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One domain extractor for all tests."""
    monkeypatch.setenv("CDM_CACHE", str(shared / "cache of levels"))


def new_run(
    folder: Path, *augmentations: AugmentationConfig, sizes: tuple[int, ...] = (8, 16), last: float = 12.0
) -> Path:
    """A run with random weights that samples quickly. last: log-SNR of the base's last step."""
    options = {"channels": 3, "num_labels": 2}
    kinds = augmentations or (AugmentationConfig(level_max=0.6),)
    stages: list[StageConfig] = [stage_config(sizes[0], **options, schedule=ScheduleConfig(logsnr_max=last))]
    for k, size in enumerate(sizes[1:]):
        stages.append(stage_config(size, sizes[k], **options, augmentation=kinds[min(k, len(kinds) - 1)]))
    cascade = random_cascade(*stages, classes=CLASSES)
    own = SamplingConfig(steps=tuple(STEPS[size] for size in sizes))
    cascade.config = replace(cascade.config, sampling=own)
    return save_run(folder, cascade)


def tune(run: Path, photos: Path, *options: object):
    given = ("--axis", "level", "--train-data", photos / "train", "-n", 256)
    data = () if "--data" in options else ("--data", photos / "val")
    return run_here("tune", run, *data, *given, *options)


def told(run: Path) -> dict:
    return json.loads((run / "tuning" / "levels.json").read_text())


def test_both_hand_overs_are_searched_and_the_winner_is_sampled_by(tmp_path: Path, photos: Path) -> None:
    run = new_run(tmp_path / "run")
    before = load_config(run).sampling
    succeeded(tune(run, photos), "levels are searched with", "non_truncated: level", "truncated: level", "hand-over",
              "on fresh seeds", "unused half", "from now on: augmentation level", "levels.html")  # fmt: skip
    found, config = told(run), load_config(run)
    assert config.sampling_history == (before,) and config.sampling.steps == before.steps
    assert [config.sampling.aug_level[0], config.sampling.hand_over] == [
        found["sampling"]["aug_level"][0], found["sampling"]["hand_over"],
    ]  # fmt: skip
    assert Cascade.load(run).settings() == config.sampling
    assert {search["hand_over"] for search in found["searches"]} == {"non_truncated", "truncated"}
    for search in found["searches"]:
        levels = {point["level"]: point for point in search["levels"]}
        assert {0.0, 0.12, 0.24, 0.36, 0.48, 0.6} <= levels.keys() and search["finished"]
        assert search["best"] in levels and levels[search["best"]]["images"] == 256
        assert len(search["by_seed"]) == 3 and search["by_seed_error"] > 0
        assert search["images_in_all"] < search["exhaustive_images"]
        assert levels[0.0]["noise_ratio"] == 0 and levels[0.48]["noise_ratio"] == pytest.approx(np.tan(0.24 * np.pi))
    again = found["again"]
    assert {"searched half", "unused half", "seeds"} <= again.keys() and again["seeds"] == [3, 4, 5]
    (curves,) = found["level_curves"]
    assert curves["words"] and set(curves["generated"]) == {"non_truncated", "truncated"} and not curves["missing"]
    shown = [point["level"] for point in curves["real"]]
    assert shown == [point["level"] for point in curves["generated"]["non_truncated"]] and len(shown) >= 6
    assert all(p["low"] <= p["distance"] <= p["high"] for p in curves["real"])
    page = (run / "tuning" / "levels.html").read_text()
    assert "both curves" in page and "data:image/png" in page and "σ/α" in page and curves["words"][0][:40] in page
    succeeded(run_here("sample", run, "-n", 1, "--out", tmp_path / "out"), "2 images")


def test_a_stopped_search_goes_on_and_nothing_is_made_twice(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path / "run")
    made: list[tuple[str, int, int]] = []
    original = tune_level_trials.LevelImages.stages

    def counted(self, start, stop):
        if len(made) == limit:
            raise KeyboardInterrupt
        made.append((self.key, start, stop))
        return original(self, start, stop)

    monkeypatch.setattr(tune_level_trials.LevelImages, "stages", counted)
    options, limit = ("--hand-over", "non_truncated"), 9
    stopped = tune(run, photos, *options)
    assert stopped.code == 130 and "what was measured is kept in" in stopped.err
    assert not load_config(run).sampling_history
    limit = 10**6
    succeeded(tune(run, photos, *options))
    assert len(set(made)) == len(made)
    first, count = told(run), len(made)
    succeeded(tune(run, photos, *options))
    second = told(run)
    remade = {key for key, *_ in made[count:]} & {key for key, *_ in made[:count]}
    assert not remade and first["searches"][0]["levels"] == second["searches"][0]["levels"]
    assert first["again"] == second["again"] and "against before" in first["again"]
    assert len(load_config(run).sampling_history) == 1


def test_low_res_images_are_made_once_for_all_levels(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base runs over every image of the search and of the check once, whatever the number of levels."""
    run, seen = new_run(tmp_path / "run"), []
    original = Cascade.sample

    def counted(self, labels, seeds, **options):
        seen.append(len(seeds))
        return original(self, labels, seeds, **options)

    monkeypatch.setattr(Cascade, "sample", counted)
    succeeded(tune(run, photos, "--hand-over", "non_truncated"))
    assert sum(seen) == 2 * 256 + sum(tune_level_trials.PROBE)


def test_every_sr_stage_from_the_lowest_up(tmp_path: Path, photos: Path) -> None:
    run = new_run(tmp_path / "run", sizes=(8, 16, 32))
    data = tmp_path / "val"
    for path in (photos / "val").glob("*/*.png"):
        with PILImage.open(path) as image:
            (data / path.parent.name).mkdir(parents=True, exist_ok=True)
            image.resize((32, 32)).save(data / path.parent.name / path.name)
    train = shutil.copytree(data, tmp_path / "train")
    ran = run_here("tune", run, "--data", data, "--axis", "level", "--train-data", train, "-n", 256, "--metric", "kid",
                   "--levels", "0:0.3")  # fmt: skip
    assert ran.code == 0, ran
    assert "the validation images are training images, every one" in ran.out  # the same files: warned
    found = told(run)
    order = [(search["hand_over"], search["stage"]) for search in found["searches"]]
    assert order == [(way, stage) for way in ("non_truncated", "truncated") for stage in ("1-16", "2-32")]
    assert all(point["level"] <= 0.3 for search in found["searches"] for point in search["levels"])
    assert [curves["stage"] for curves in found["level_curves"]] == ["1-16", "2-32"]
    assert len(load_config(run).sampling.aug_level) == 2
    succeeded(run_here("sample", run, "-n", 1, "--out", tmp_path / "out"), "2 images")


def test_steps_and_level_together(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cdm.pipeline import tune_search

    monkeypatch.setattr(tune_search, "LADDERS", ((1, 2), (1,)))
    monkeypatch.setattr(tune_search, "RACES", ((2,), (1,)))
    monkeypatch.setattr(tune_search, "SAMPLERS", ("dpmpp",))
    run = new_run(tmp_path / "run")
    options = ("--axis", "steps,level", "--hand-over", "truncated")
    succeeded(tune(run, photos, *options), "balanced:", "report.html and", "levels.html")
    config = load_config(run)
    assert len(config.qualities) == 3 and config.sampling.hand_over == "truncated"
    assert {(q.aug_level, q.hand_over) for q in config.qualities} == {(config.sampling.aug_level, "truncated")}
    assert config.sampling.steps == config.qualities[1].steps


# ---- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--axis", "width"), ("--axis has 'width'", "steps or level")),
        (("--hand-over", "half"), ("--hand-over is 'half'", "expected both")),
        (("--metric", "fid"), ("--metric is 'fid'", "fd or kid")),
        (("--axis", "steps", "--metric", "kid"), ("got --metric", "--axis level")),
        (("--levels", "0:0.8"), ("--levels is 0:0.8", "stage 1-16 was trained at 0 to 0.6", "a range within")),
        (("--levels", "0.3:0.1"), ("--levels is '0.3:0.1'", "a range that rises")),
        (("--levels", "0.2"), ("--levels is 0.2, which leaves nothing to choose", "cdm sample --aug-level")),
        (("--levels", "0.1:0.1001"), ("leaves nothing to choose", "a range of at least 0.01")),
        (
            ("--minutes", "1e-5"),
            (
                "leaves 0 s for stage 1-16, non_truncated, whose first round still takes about",
                "(6 levels, 128 images of each)",
                "expected --minutes",
            ),
        ),
        (("-n", "1000000000"), ("-n is 1,000,000,000", "at most 1,000,000")),
    ],
)
def test_bad_requests_are_one_sentence(
    tmp_path: Path, photos: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    run = new_run(tmp_path / "run")
    refused(tune(run, photos, *options), *words)
    assert not load_config(run).sampling_history


def test_levels_below_those_trained(tmp_path: Path, photos: Path) -> None:
    """Clean images were seen in training, the levels between them and the lowest one were not."""
    run = new_run(tmp_path / "run", AugmentationConfig(level_min=0.2, level_max=0.5))
    refused(tune(run, photos, "--levels", "0:0.3"), "--levels is 0:0.3", "trained at 0.2 to 0.5", "a range within")


def test_a_report_that_cannot_be_written_changes_nothing(tmp_path: Path, photos: Path) -> None:
    run = new_run(tmp_path / "run")
    (run / "tuning" / "levels.json").mkdir(parents=True)
    refused(tune(run, photos, "--hand-over", "non_truncated"), "levels.json")
    assert not load_config(run).sampling_history


def test_real_images_without_classes_have_no_curve(tmp_path: Path, photos: Path) -> None:
    """They would be drawn without class and compared with generated ones that have some."""
    run, flat = new_run(tmp_path / "run"), tmp_path / "flat"
    flat.mkdir()
    for k, path in enumerate((photos / "val").glob("*/*.png")):
        shutil.copy(path, flat / f"{k}.png")
    succeeded(tune(run, photos, "--data", flat, "--hand-over", "non_truncated"), "their classes are not known")
    (curves,) = told(run)["level_curves"]
    assert not curves["real"] and len(curves["generated"]["non_truncated"]) >= 6 and not curves["missing"]
    assert "real low-res images" not in " ".join(curves["words"])
    assert load_config(run).sampling_history


def test_a_cascade_without_anything_to_choose(tmp_path: Path, photos: Path) -> None:
    blur = new_run(tmp_path / "blur", AugmentationConfig(kind="blur"))
    refused(tune(blur, photos), "was trained without noise", "there is no level to choose", "--augmentation gaussian")
    fixed = AugmentationConfig(level_min=0.2, level_max=0.2, clean_fraction=0.0)
    refused(tune(new_run(tmp_path / "fixed", fixed), photos), "was trained at one level alone")
    refused(tune(new_run(tmp_path / "base", sizes=(8,)), photos), "has no SR stage", "expected a cascade")


def test_truncation_that_cannot_be(tmp_path: Path, photos: Path) -> None:
    """Before a stage without noise: refused, or left out where both were asked for."""
    run = new_run(
        tmp_path / "run", AugmentationConfig(level_max=0.6), AugmentationConfig(kind="blur"), sizes=(8, 16, 32)
    )
    refused(tune(run, photos, "--hand-over", "truncated"), "stage 2-32 has 'blur'", "--hand-over non_truncated")


def test_truncation_below_the_last_step(tmp_path: Path, photos: Path) -> None:
    """The base's cleanest level is noisier than any that the SR stage takes."""
    run = new_run(tmp_path / "run", AugmentationConfig(level_min=0.1, level_max=0.3), last=-3.0)
    refused(tune(run, photos, "--hand-over", "truncated"), "no level lies within", "--hand-over non_truncated")


def test_too_few_validation_images(tmp_path: Path, photos: Path, real: Path) -> None:
    run = new_run(tmp_path / "run")
    ran = tune(run, photos, "--data", real / "val")
    refused(ran, "has 32 images", "at least 129 in each for fd on 128 features", "give more images, or --metric kid")
