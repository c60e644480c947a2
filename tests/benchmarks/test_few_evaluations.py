"""The benchmark of few evaluations at toy size: equal settings give equal figures, and what was made is kept."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.e2e.conftest import CLASSES, write_images
from tests.fakes import random_cascade, save_run, stage_config

from benchmarks import few_evaluations
from cdm.artifacts import save_json
from cdm.evaluate import frechet_ratio
from cdm.evaluate.extractors import domain
from cdm.noise.process import posterior_coefficients

TOO_MANY = {"sampler": "dpmpp", "steps": [17, 2]}
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
    for options in (
        ("-n", "31"), ("--long-images", "96"), ("--long-images", "8"), ("--batch", "8"), ("--skip", "48"),
        ("--skip", "16"), ("--skip", "-32"), ("--skip", "32", "--long-images", "64"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            measure(*options)
        assert ended.value.code == 2 and re.search("blocks of 32|at least 32", capsys.readouterr().err)


@pytest.mark.parametrize("asked", ["2/2", "-1/2", "1", "a/b"])
def test_parts_that_are_none(asked: str, measure: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        measure(f"--part={asked}")
    assert ended.value.code == 2 and f"invalid part value: '{asked}'" in capsys.readouterr().err


def test_parts_are_the_whole(measure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes make what one does, and measure nothing."""
    made = []
    make = few_evaluations.Features.make
    monkeypatch.setattr(
        few_evaluations.Features,
        "make",
        lambda self, blocks, progress: made.extend(blocks) or make(self, blocks, progress),
    )
    for asked, blocks in (("1/2", {1}), ("0/2", {0})):
        made.clear()
        with pytest.raises(FileNotFoundError):  # no result
            measure("--part", asked)
        assert set(made) == blocks and len(made) == 4  # of each arm
    made.clear()
    assert measure("--no-timing")["images"] == 64 and made == []


def test_a_larger_batch_makes_the_same_blocks(measure: Any, tmp_path: Path) -> None:
    one = measure("--no-timing", "-n", "96", "--long-images", "32")
    kept = {path.relative_to(tmp_path / "work"): np.load(path) for path in (tmp_path / "work").glob("*/*.npy")}
    for path in kept:
        (tmp_path / "work" / path).unlink()
    two = measure("--no-timing", "-n", "96", "--long-images", "32", "--batch", "64")  # the last one is short
    for path, rows in kept.items():
        np.testing.assert_allclose(np.load(tmp_path / "work" / path), rows, atol=0.1)
    assert two["figures"]["cascade"]["fast"]["distance"]["value"] == pytest.approx(
        one["figures"]["cascade"]["fast"]["distance"]["value"], rel=0.05
    )


def test_settings_of_a_file_and_the_images_that_they_were_chosen_on_left_out(measure: Any, tmp_path: Path) -> None:
    whole = measure("--no-timing", "--long-images", "0")
    assert "of_the_base_alone" not in whole
    for path in (tmp_path / "work").glob("*/0000.npy"):
        path.unlink()
    (tmp_path / "out.json").rename(tmp_path / "first.json")
    options = ("--no-timing", "--long-images", "0", "--fast", str(tmp_path / "first.json"), "--skip", "32")
    rest = measure(*options)
    assert (rest["images"], rest["skipped"], whole["skipped"]) == (32, 32, 0)
    assert rest["settings"]["fast"] == whole["settings"]["fast"]
    assert rest["figures"]["cascade"]["fast"] != whole["figures"]["cascade"]["fast"]
    assert not list((tmp_path / "work").glob("*/0000.npy"))  # neither made nor looked at
    for content, said in (
        ({}, "no settings.fast stands"), ({"settings": None}, "no settings.fast stands"),
        ({"settings": {"fast": TOO_MANY}}, "of 17+2 evaluations"),
        ({"settings": {"fast": TOO_MANY | {"sampler": "dpmpp,gone"}}}, "names the sampler 'gone', which is not here"),
        ({"settings": {"fast": whole["settings"]["fast"] | {"aug_level": [0.3]}}}, "whose aug_level is (0.3,)"),
    ):  # fmt: skip
        save_json(tmp_path / "first.json", content)
        with pytest.raises(SystemExit, match=re.escape(said)):
            measure(*options)


def test_equal_settings_are_one_and_a_second_call_makes_no_image_again(
    measure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_json(tmp_path / "fronts.json", {"stages": [{"front": [SAME]}, {"front": [SAME]}]})
    options = ("--fronts", str(tmp_path / "fronts.json"))
    result = measure(*options)
    fast, reference, long = (result["settings"][name] for name in ("fast", "reference", "base, long"))
    assert (
        all(fast[name] == reference[name] for name in ("sampler", "steps", "aug_level", "clip")) and long != reference
    )
    assert [len(levels) for levels in fast["levels"]] == reference["steps"]  # the reference's own
    figures = result["figures"]
    assert figures["base"].keys() == figures["cascade"].keys() == {"fast", "reference"}
    for arms in figures.values():
        assert arms["fast"]["ratio to reference"] == {"value": 1.0, "low": 1.0, "high": 1.0}
        assert arms["fast"]["distance"] == arms["reference"]["distance"]
    base = result["of_the_base_alone"]
    quotient = base["base, on its path"]["distance"]["value"] / base["base, long"]["distance"]["value"]
    assert base["base, on its path"]["ratio to base, long"]["value"] == pytest.approx(quotient, rel=1e-6) != 1
    assert result["wall_clock"]["images"] == 2 and len(result["wall_clock"]["fast_s"]) == 5

    monkeypatch.setattr(few_evaluations.Features, "make", lambda *_: pytest.fail("made again"))
    again = measure(*options, "--no-timing")
    assert again["figures"] == figures and "wall_clock" not in again


def test_small_steps_along_a_path_are_one_long_step_with_its_noise_put_together() -> None:
    """With x0_hat held, in closed form: every level of the coarse grid is reached at the same point."""
    fine = torch.linspace(-9, 11, 41, dtype=torch.float64)
    coarse = torch.cat([fine[[0, 1, 7, 8, 30, 40]], torch.tensor([torch.inf], dtype=torch.float64)])
    parts, (x, x0, *normals) = few_evaluations.shares(fine, coarse), torch.randn(42, 50, dtype=torch.float64)
    assert parts[-1] == {} and parts[0] == {0: 1.0}
    path = [x]
    for k, z in enumerate(normals):
        path.append(step(path[-1], x0, z, fine[k], fine[k + 1]))
    for i, part in enumerate(parts[:-1]):
        assert sum(share**2 for share in part.values()) == pytest.approx(1)
        noise = sum(share * normals[k] for k, share in part.items())
        x = step(x, x0, torch.as_tensor(noise), coarse[i], coarse[i + 1])
        torch.testing.assert_close(x, path[int((fine == coarse[i + 1]).nonzero())], atol=1e-9, rtol=1e-9)


def step(x: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor, at: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
    from_x_t, from_x0, small, _ = posterior_coefficients(at, to)
    return from_x_t * x + from_x0 * x0 + (small / 2).exp() * noise


@pytest.mark.parametrize(
    "fast", ["dpmpp:edm:4", "dpmpp:edm:17,dpmpp:edm:8", "dpm:edm:4,dpmpp:edm:8", "dpmpp:4,dpmpp:2"]
)
def test_a_fast_arm_that_cannot_be_is_one_sentence(fast: str, measure: Any) -> None:
    with pytest.raises(SystemExit, match="expected SAMPLER:GRID:EVALUATIONS for each of the 2 stages, at most 16"):
        measure("--fast", fast)


def test_a_fast_arm_by_name(measure: Any) -> None:
    settings = measure("--fast", "dpmpp:profile:3,heun:edm:3", "--no-timing")["settings"]["fast"]
    assert settings["sampler"] == "dpmpp,heun" and [len(levels) for levels in settings["levels"]] == [2, 2]


def told(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def test_ratios_put_together() -> None:
    """One alone stays as it is; equal ones are known better by the root of their number; the surer one weighs more."""
    one = told(1.161, 1.051, 1.346)  # from a basic bootstrap: its middle is not the value
    assert few_evaluations.together([one]) == pytest.approx(one)
    found = few_evaluations.together([one] * 4)
    middle, reach = math.log(1.051 * 1.346) / 2, math.log(1.346 / 1.051) / 2
    assert found == pytest.approx(told(1.161, math.exp(middle - reach / 2), math.exp(middle + reach / 2)))
    sure, unsure = told(1.0, 0.9, 1 / 0.9), told(2.0, 2 * 0.9**3, 2 / 0.9**3)  # three times as wide: a ninth
    assert few_evaluations.together([sure, unsure])["value"] == pytest.approx(2**0.1)


def test_an_earlier_result_counts_as_well(measure: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = measure("--fast", "dpmpp:edm:3,dpmpp:edm:2", "--no-timing")
    first = {name: value for name, value in first.items() if name not in ("sha256", "format_version")}
    kept = tmp_path / "first.json"
    kept.write_bytes((tmp_path / "out.json").read_bytes())
    second = measure("--also", str(kept), "--seed", "12", "--no-timing")
    assert second["settings"]["fast"] == first["settings"]["fast"]
    for place in ("base", "cascade"):
        both = [each["figures"][place]["fast"]["ratio to reference"] for each in (first, second)]
        assert both[0] != both[1]
        pooled = second["figures"][place]["fast"]["ratio, with earlier results"]
        assert pooled == pytest.approx(few_evaluations.together(both))

    def refused(change: dict[str, Any], words: str, *options: str) -> None:
        save_json(tmp_path / "changed.json", first | change)
        with pytest.raises(SystemExit, match=words):
            measure("--also", str(tmp_path / "changed.json"), *(options or ("--seed", "12")), "--no-timing")

    settings, figures = first["settings"], first["figures"]
    refused({}, r"of the seed 11 again: the same images; expected another\.", "--seed", "11")
    refused({}, "of the seed 11 again", "--seed", "12", "--also", str(kept))
    refused({"weights": "other"}, "of the weights other; expected")
    refused({"val": "other"}, "with another real images")
    refused({"settings": settings | {"reference": settings["fast"]}}, "with another reference")
    short = settings["fast"] | {"steps": [3], "levels": settings["fast"]["levels"][:1]}
    refused({"settings": settings | {"fast": short}}, "with another number of stages")
    gone = settings | {"fast": settings["fast"] | {"sampler": "gone"}}
    refused({"settings": gone}, "^(?!.*no result).*names the sampler 'gone', which is not here")
    refused({"settings": []}, "which is no result of few_evaluations.py")
    refused({"figures": {}}, "which is no result of few_evaluations.py")
    for ratio, words in ((told(1, 1, 1), "have no interval"), ([], "no result"), (told(1, 0.9, None), "no result")):  # type: ignore[arg-type]
        fast = figures["base"]["fast"] | {"ratio to reference": ratio}
        refused({"figures": figures | {"base": {"fast": fast}}}, words)
    capsys.readouterr()
    save_json(tmp_path / "changed.json", first | {"extractor": "other"})
    measure("--also", str(tmp_path / "changed.json"), "--seed", "12", "--no-timing")
    assert "was measured with the extractor other, this is" in capsys.readouterr().out
    for options in (("--fast", "dpmpp:edm:3,dpmpp:edm:2"), ("--fronts", str(kept))):
        with pytest.raises(SystemExit) as ended:
            measure("--also", str(kept), *options)
        assert ended.value.code == 2 and "--fast and --fronts name what --also has" in capsys.readouterr().err


def test_without_data_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    few_evaluations.main([])
    assert "skipped: no --data" in capsys.readouterr().out
