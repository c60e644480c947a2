"""The paper's experiments at toy size: arms train as planned, cells are made once, and verdicts follow the rows."""

import json
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from paper import cells, judged, latency, run, tables
from paper.plan import PLAN, arm_config, arm_images
from PIL import Image as PILImage
from tests.e2e.conftest import CLASSES, write_images
from tests.fakes import random_cascade, save_run, stage_config

from cdm.cascade import load_config
from cdm.config import AugmentationConfig, DataConfig
from cdm.evaluate.extractors import domain
from cdm.nn.flops import count_flops
from cdm.pipeline.held_out import write_held_out

LEVELS = [0.0, 0.3, 1.0]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Calls a command on arms of 8 to 16 pixels, whose weights are random where they are not trained."""
    toy = {
        "images": 48, "seeds": [21, 22], "levels": LEVELS, "few_levels": LEVELS,
        "sampling": {"base": ["ddpm", 2], "sr": ["dpmpp", 2], "direct": ["ddpm", 2]},
        "remedy_levels": [0.0, 1.0], "bases": {
            "few": {"sampling": ["dpmpp", 1], "called": "generated in one"},
            "many": {"sampling": ["ddpm", 4], "called": "generated in four"},
            "equal": {"sr": ["dpmpp", 3], "called": "generated; three of the SR stage"},
        },
        "arms": {
            "base-8": {"sizes": [8, 16], "stage": 0, "images": 64},
            "amortised": {"sizes": [8, 16], "stage": 1, "images": 64},
            "naive": {"sizes": [8, 16], "stage": 1, "images": 64, "kind": "none"},
            "no-class": {"sizes": [8, 16], "stage": 1, "images": 320, "classes": False},
            "direct-32": {"sizes": [16], "stage": 0, "images": 64},
        },
    }  # fmt: skip
    for name, value in toy.items():
        monkeypatch.setitem(PLAN, name, value)
    monkeypatch.setitem(PLAN["experiments"]["b-many"], "levels", [0.3])
    for name, arms in {"a": ["naive", "amortised"], "b": ["amortised"], "c": ["amortised"], "e": ["no-class"]}.items():
        monkeypatch.setitem(PLAN["experiments"], name, PLAN["experiments"][name] | {"arms": ["amortised", *arms]})
        PLAN["experiments"][name]["arms"] = list(dict.fromkeys(PLAN["experiments"][name]["arms"]))
    monkeypatch.setattr(cells, "BLOCK", 32)
    monkeypatch.setattr(domain, "EFFORT", 30)
    monkeypatch.setenv("CDM_CACHE", str(tmp_path / "cache"))
    for part, count in (("train", 70), ("val", 30)):
        for seed, name in enumerate(CLASSES):
            write_images(tmp_path / part / name, count, seed=seed + 2 * (part == "val"))
    held_out = [path.relative_to(tmp_path / "train").as_posix() for path in sorted((tmp_path / "train").rglob("*.png"))]
    options = {"channels": 3, "num_labels": 2}
    low, sr = stage_config(8, **options), stage_config(16, 8, **options)
    bare = stage_config(16, 8, **options, augmentation=AugmentationConfig(kind="none"))
    for name, top in (("base-8", sr), ("amortised", sr), ("naive", bare)):
        save_run(tmp_path / "work" / "arms" / name, random_cascade(low, top, classes=CLASSES))
    save_run(tmp_path / "work" / "arms" / "direct-32", random_cascade(stage_config(16, **options), classes=CLASSES))
    write_held_out(tmp_path / "work" / "arms" / "amortised", held_out[::4])

    def call(what: str, *more: str) -> None:
        data = ("--data", str(tmp_path / "train"), "--val", str(tmp_path / "val"), "--work", str(tmp_path / "work"))
        run.main([what, *data, "--out", str(tmp_path / "out"), *more])

    return call


def test_cells_are_made_once_and_tables_tell_what_they_hold(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench("measure", "--experiments", "a,b,c")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "cells").glob("*.npy")}
    bench("measure", "--experiments", "a,b,c")
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "cells").glob("*.npy")}
    other = tmp_path / "work" / "cells" / "naive-generated-none-non_truncated-21.json"
    other.write_text(json.dumps(json.loads(other.read_text()) | {"key": "of other weights"}))
    bench("measure", "--experiments", "a")
    changed = [path.stem for path, time in made.items() if path.stat().st_mtime_ns != time]
    assert changed == [other.stem]
    assert len(made) == 2 * (1 + 3 + 3 + 2)  # seeds; naive, generated, real, truncated but for level 0
    monkeypatch.setattr(latency, "IMAGES", 4)
    bench("time")
    monkeypatch.setattr(judged, "EPOCHS", 1)
    monkeypatch.setattr(judged, "BLOCK", 20)  # the last one is smaller
    bench("judge")
    bench("tables", "--experiments", "a,b,c")
    told = {name: json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in "abc"}
    rows = {(r["source"], r["level"]): r["distance"] for r in told["c"]["rows"]}
    generated = {level: rows["generated", level] for level in LEVELS}
    verdict = told["c"]["verdict"]
    assert verdict["generated_best_level"] == min(generated, key=generated.__getitem__)
    assert verdict["real_highest_over_0"]["value"] == pytest.approx(rows["real", 1.0] / rows["real", 0.0], rel=1e-6)
    slope = np.polyfit(LEVELS, np.log([rows["real", level] for level in LEVELS]), 1)[0]
    assert verdict["real_slope"]["value"] == pytest.approx(slope, rel=1e-4)
    saved = {r["level"]: r["evaluations"] for r in told["b"]["rows"] if r["hand_over"] == "truncated"}
    assert saved.keys() == {0.3, 1.0} and all(counts[0] <= 2 for counts in saved.values())
    timed = told["b"]["timed"]["rows"]
    assert {row["level"]: row["evaluations"]["truncated"] for row in timed} == saved
    assert all(sum(row["evaluations"]["non_truncated"]) == 4 and row["seconds"]["truncated"] > 0 for row in timed)
    alike = told["b"]["verdict"]["alike"]
    assert len(alike) == 2 == len(told["b"]["pairs"])
    for pair in told["b"]["pairs"]:
        assert alike[pair["what"][0]] == (pair["ratio"]["low"] <= 1 <= pair["ratio"]["high"])
    assert told["a"]["verdict"]["best_level"] in LEVELS
    read = told["a"]["judged"]
    assert read["size"] == 8 and read["generated"]["low"] <= read["generated"]["value"] <= read["generated"]["high"]
    assert "8 pixels, read as the class asked for" in (tmp_path / "out" / "a.md").read_text()
    best, (naive,) = told["a"]["verdict"], [r for r in told["a"]["rows"] if r["arm"] == "naive"]
    chosen = next(r for r in told["a"]["rows"] if r["arm"] == "amortised" and r["level"] == best["best_level"])
    assert chosen["of_seeds"][0] == min(r["of_seeds"][0] for r in told["a"]["rows"] if r["arm"] == "amortised")
    assert best["naive_at_least_1.5"] == (best["naive_over_augmented"]["value"] >= 1.5)
    assert best["naive_over_augmented"]["value"] == pytest.approx(
        naive["of_seeds"][1] / chosen["of_seeds"][1], rel=1e-6
    )
    assert (tmp_path / "out" / "c.png").exists() and "FD-domain" in (tmp_path / "out" / "c.md").read_text()


def test_remedies_stand_beside_the_plan(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other real low-res images, and other images of the base, at some of the levels."""
    bench("measure", "--experiments", "c,c-held,c-few")
    lines: list[list[str]] = []
    monkeypatch.setattr(tables, "levels_plot", lambda shown, what: lines.append(list(shown)) or b"")
    bench("tables", "--experiments", "c-held,c-few")
    assert lines == [["generated", "real low-res images"], ["generated", "generated in one", "real low-res images"]]
    held, few = (json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in ("c-held", "c-few"))
    assert {(row["arm"], row["base"], row["source"], row["level"]) for row in few["rows"]} == {
        ("naive", "few", "generated", None)} | {("amortised", base, source, level) for base, source in
        (("few", "generated"), ("", "generated"), ("", "held-out")) for level in (0.0, 1.0)}  # fmt: skip
    rows = {(row["arm"], row["source"], row["level"]): row for row in few["rows"]
            if row["base"] == "few" or row["source"] == "held-out"}  # fmt: skip
    assert rows["amortised", "generated", 0.0]["evaluations"] == [1, 2]
    of_held = {(row["source"], row["level"]): row for row in held["rows"]}
    assert of_held["held-out", 1.0] == rows["amortised", "held-out", 1.0]
    assert of_held["generated", 0.0]["evaluations"] == [2, 2]
    ratio = few["verdict"]["real_highest_over_0"]["value"]
    distances = [rows["amortised", "held-out", level]["distance"] for level in (1.0, 0.0)]
    assert ratio == pytest.approx(distances[0] / distances[1], rel=1e-6)
    assert few["pairs"][0]["what"] == ["naive, no level, non_truncated", "amortised, level 0, non_truncated"]
    with PILImage.open(tmp_path / "out" / "c-few-pictures.png") as sheet:
        assert sheet.height == 2 + (1 + 2) * (2 * 16 + 2)  # naive, and both levels, of which one is the best
    assert (tmp_path / "out" / "c-few.png").exists() and "naive_over_augmented" in few["verdict"]


def test_no_cascade_is_judged_by_the_seeds_that_did_not_choose(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a remedy: its own, or else the plan's."""
    monkeypatch.setitem(PLAN["experiments"]["a"], "arms", ["direct-32", "amortised"])
    own = {"of": "a", "levels": LEVELS, "sources": ["generated"], "base": "equal"}
    monkeypatch.setitem(PLAN["experiments"], "a-equal", own | {"arms": ["amortised"]})
    monkeypatch.setitem(PLAN["experiments"], "a-long", own | {"arms": ["direct-32", "amortised"]})
    bench("measure", "--experiments", "a,a-equal,a-long")
    bench("tables", "--experiments", "a,a-equal,a-long")
    found = {}
    for name, base in (("a", ""), ("a-equal", "equal"), ("a-long", "equal")):
        told = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        rows = [row for row in told["rows"] if row["arm"] == "amortised" and row["base"] == base]
        best = min(rows, key=lambda row: row["of_seeds"][0])
        direct = [row for row in told["rows"] if row["arm"] == "direct-32"]
        assert {row["base"] for row in direct} == ({"", "equal"} if name == "a-long" else {""})
        assert best["evaluations"] == [2, 3 if base else 2] and told["verdict"]["best_level"] == best["level"]
        found[name] = told["verdict"]["direct_over_augmented"]["value"]
        assert found[name] == pytest.approx(direct[-1]["of_seeds"][1] / best["of_seeds"][1], rel=1e-6)
        assert len(told["pairs"]) == (0 if name == "a-equal" else len(LEVELS))
    assert found["a-equal"] == pytest.approx(found["a-long"], rel=1e-6)  # the same net, the same images


def test_nets_of_their_own_level_are_one_line_that_begins_with_naive(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best of them is chosen as among levels, and its minimum has naive as the lower end."""
    levels = {"fixed-0.3": 0.3, "fixed-1": 1.0}
    for name, level in levels.items():
        monkeypatch.setitem(PLAN["arms"], name, PLAN["arms"]["amortised"] | {"level": level})
        copytree(tmp_path / "work" / "arms" / "amortised", tmp_path / "work" / "arms" / name)
    own = {"of": "a", "arms": ["direct-32", "naive", *levels], "sources": ["generated"]}
    monkeypatch.setitem(PLAN["experiments"], "a-own", own)
    monkeypatch.delitem(PLAN["experiments"], "a-range")
    bench("measure", "--experiments", "a,a-own")
    lines: list[dict[str, Any]] = []
    monkeypatch.setattr(tables, "levels_plot", lambda shown, what: lines.append(shown) or b"")
    bench("tables", "--experiments", "a-own")
    assert {name: [point["level"] for point in points] for name, points in lines[0].items()} == {
        "one net for levels 0 to 1": LEVELS, "a net for each level (0: naive)": [0.0, 0.3, 1.0]}  # fmt: skip
    told = json.loads((tmp_path / "out" / "a-own.json").read_text())
    rows = {row["arm"]: row for row in told["rows"] if row["arm"] != "amortised"}
    line, verdict = ["naive", *levels], told["verdict"]
    assert {name: rows[name]["level"] for name in line} == {"naive": None} | levels
    best = min(levels, key=lambda name: rows[name]["of_seeds"][0])
    assert verdict["best_level"] == levels[best]
    for name, what in (("naive", "naive_over_augmented"), ("direct-32", "direct_over_augmented")):
        assert verdict[what]["value"] == pytest.approx(rows[name]["of_seeds"][1] / rows[best]["of_seeds"][1], rel=1e-6)
    lowest = min(line, key=lambda name: rows[name]["distance"])
    assert verdict["generated_best_level"] == rows[lowest]["level"]
    over = [rows[name]["distance"] / rows[lowest]["distance"] for name in (line[0], line[-1]) if name != lowest]
    assert [each["value"] for each in verdict["generated_ends_over_best"]] == pytest.approx(over, rel=1e-6)
    assert [pair["what"] for pair in told["pairs"]] == [
        [f"{plain}, no level, non_truncated", f"{name}, level {level:g}, non_truncated"]
        for plain in ("direct-32", "naive") for name, level in levels.items()
    ]  # fmt: skip


def test_more_evaluations_of_the_base_stand_beside_the_planned_hand_overs(bench: Any, tmp_path: Path) -> None:
    bench("measure", "--experiments", "b,b-many")
    bench("tables", "--experiments", "b-many")
    told = json.loads((tmp_path / "out" / "b-many.json").read_text())
    many = {row["hand_over"]: row["evaluations"] for row in told["rows"] if row["base"] == "many"}
    planned = {(row["hand_over"], row["level"]): row["evaluations"] for row in told["rows"] if not row["base"]}
    assert many["non_truncated"] == [4, 2] and many["truncated"][0] < 4
    assert planned["non_truncated", 0.3] == [2, 2]
    (pair,) = told["pairs"]
    rows = {row["hand_over"]: row["distance"] for row in told["rows"] if row["base"] == "many"}
    assert pair["ratio"]["value"] == pytest.approx(rows["truncated"] / rows["non_truncated"], rel=1e-6)
    assert told["verdict"]["alike"].keys() == {pair["what"][0]}


def test_real_low_res_images_have_their_classes_in_turn_and_repeats_share_a_group(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """18 and 17 held out of two classes, in the order of the classes; 48 images of a cell."""
    bench("measure", "--experiments", "c-held")
    options = run.parse(["tables", *(f"--{name}={tmp_path / where}" for name, where in (
        ("data", "train"), ("val", "val"), ("work", "work")))])  # fmt: skip
    opened = run.open_bench(options, 16)
    lab, places = opened.lab, np.arange(48)
    picked = lab.picked(cells.HELD_OUT, places)
    assert lab.held_out.labels[picked].tolist() == [0, 1] * 24 == lab.labels(places).tolist()
    counts = np.bincount(picked, minlength=35)
    assert (counts[:18].sum(), counts[18:].sum()) == (24, 24) and counts.min() == 1 and counts.max() == 2
    cascade, cell = run.cascade_of("amortised", tmp_path / "work"), run.cells_of("c-held")[0]

    def keys() -> list[str]:
        both = (cell, replace(cell, source=cells.GENERATED))
        return [lab.key(each, cascade, cells.settings_of(cascade, each)) for each in both]

    before = keys()
    assert json.loads(lab.path(cell, ".json").read_text())["key"] == before[0]
    with monkeypatch.context() as other:
        other.setattr(cells.Lab, "picked", lambda *_: picked[::-1])
        assert keys()[0] != before[0] and keys()[1] == before[1]  # of other real images: made anew
    results = tables.Results(opened, run.cells_of("c-held"))
    first, *_ = kinds = results.of("amortised", cells.HELD_OUT)
    place = results.groups(first).reshape(2, 48)
    assert np.array_equal(place[0], place[1])
    for image in range(35):
        assert len(set(place[0, picked == image])) == 1
    whole, gap = results.distance(first), results.gap(kinds[1], first)
    assert whole.low < whole.value < whole.high and gap.low < gap.value < gap.high


@pytest.mark.parametrize("stages", [2, 3])
def test_images_are_those_of_the_cascade_and_what_is_below_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: int
) -> None:
    options = {"channels": 3, "num_labels": 2}
    sizes = [stage_config(8, **options), stage_config(16, 8, **options), stage_config(32, 16, **options)][:stages]
    cascade = random_cascade(*sizes, classes=CLASSES)
    for stage in cascade.stages:
        stage.hash = f"weights {stage.index}"
    real = SimpleNamespace(class_names=CLASSES, shape=(3, sizes[-1].size, sizes[-1].size))
    lab = cells.Lab(tmp_path, real, real, None, 8)
    monkeypatch.setitem(PLAN, "sampling", {"base": ["ddpm", 3], "sr": ["dpmpp", 2]})
    indices = np.arange(8)
    expected = {}
    for level in (0.0, 0.4):
        cell = cells.Cell("amortised", cells.GENERATED, level, "non_truncated", 5)
        settings = cells.settings_of(cascade, cell)
        seeds = [cells.image_seed(5, i) for i in range(8)]
        made = cascade.sample((indices % 2).tolist(), seeds, settings=settings, batch_size=8)
        expected[level] = cells.to_bytes(made.images[-1], ""), made.evaluations
    for level, (images, evaluations) in expected.items():
        cell = cells.Cell("amortised", cells.GENERATED, level, "non_truncated", 5)
        found, spent = lab._images(cell, cascade, cells.settings_of(cascade, cell), indices)
        assert torch.equal(found, images) and spent == evaluations
        monkeypatch.setattr(cascade, "sample", lambda *_, **__: pytest.fail("made again"))
    assert not torch.equal(expected[0.0][0], expected[0.4][0])


def test_an_arm_trains_its_own_stage_alone(bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An SR stage without classes, on the base of the others; an arm that is not trained is named and left out."""
    bench("measure", "--experiments", "e")
    assert "arm no-class is not trained yet" in capsys.readouterr().out
    bench("train", "--arms", "no-class")
    folder = tmp_path / "work" / "arms" / "no-class"
    assert load_config(folder).stages[1].net.num_labels == 0
    assert not (folder / "0-8" / "model.safetensors").exists()
    bench("measure", "--experiments", "e")
    bench("tables", "--experiments", "e")
    told = json.loads((tmp_path / "out" / "e.json").read_text())
    assert [pair["what"][0].split(",")[0] for pair in told["pairs"]] == ["no-class"] * 4  # and the best of each
    assert told["pairs"][3]["what"][0] in {pair["what"][0] for pair in told["pairs"][:3]}


@pytest.mark.parametrize(
    "arms", [("direct-32", "base-8", "amortised"), ("direct-32-long", "base-8-long", "amortised"),
             ("direct-64", "base-16", "amortised-64")],
)  # fmt: skip
def test_no_cascade_gets_the_training_flops_of_the_cascade(arms: tuple[str, str, str]) -> None:
    names, data = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), DataConfig()

    def spent(arm: str) -> float:
        config = arm_config(arm, tuple(PLAN["arms"][arm]["sizes"]), names, data, 1000)
        stage = config.stages[PLAN["arms"][arm].get("stage", 0)]
        return count_flops(stage.net, stage.size) * arm_images(arm, data, names)

    direct, base, sr = map(spent, arms)
    assert direct == pytest.approx(base + sr, rel=2e-3)


def test_an_arm_changes_nothing_but_what_the_plan_says() -> None:
    names = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    made = {arm: arm_config(arm, (8, 32), names, DataConfig(), 1000).stages[1] for arm in ("amortised", "naive",
            "fixed-0.2", "amortised-0.6", "no-class")}  # fmt: skip
    own, narrow = made["amortised"], made["amortised-0.6"]
    assert replace(narrow, augmentation=replace(narrow.augmentation, level_max=1.0)) == own
    assert narrow.augmentation.level_max == 0.6
    fixed = made["fixed-0.2"].augmentation
    assert (fixed.level_min, fixed.level_max, fixed.clean_fraction) == (0.2, 0.2, 0.0)
    assert replace(made["fixed-0.2"], augmentation=own.augmentation) == own
    assert made["naive"].augmentation.kind == "none" and made["naive"].optim == own.optim
    bare = made["no-class"]
    assert replace(bare, net=replace(bare.net, num_labels=27), label_dropout=own.label_dropout) == own


@pytest.mark.parametrize(("options", "words"), [(("--arms", "x"), "--arms has 'x'"), (("--experiments", "z"), "'z'")])
def test_unknown_names_are_one_sentence(
    options: tuple[str, str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(["train", "--data", "x", "--work", "y", *options])
    assert ended.value.code == 2 and words in capsys.readouterr().err


def test_what_is_missing_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for what, words in (("train", "train needs --data"), ("measure", "measure needs --data")):
        with pytest.raises(SystemExit):
            run.main([what, "--work", str(tmp_path)])
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit, match="arm amortised is not trained yet"):
        run.main(["time", "--work", str(tmp_path)])
    with pytest.raises(SystemExit, match="arm base-8 is not trained yet"):
        run.main(["judge", "--work", str(tmp_path), "--data", "x", "--val", "y"])
