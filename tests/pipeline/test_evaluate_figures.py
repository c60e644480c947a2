"""Figures of an evaluation: what stands beside them, and of which images."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.pipeline.test_reference import Means

from cdm.errors import UserError
from cdm.evaluate.intervals import Estimate
from cdm.evaluate.stats import feature_stats
from cdm.pipeline import evaluate_apart
from cdm.pipeline.evaluate_bench import Bench
from cdm.pipeline.evaluate_figures import Desk, Judged, Ledger, Side, spread_rows
from cdm.pipeline.evaluate_request import EvaluateRequest


def classes(count, seed):
    """Features of two classes that lie far apart, one class after the other."""
    rows = np.random.default_rng(seed).normal(size=(count, 3))
    return (rows + 10 * (np.arange(count) >= count // 2)[:, None]).astype(np.float32)


def side(reference, rows):
    return Side(reference, reference, len(rows), lambda _: feature_stats(rows), rows)


def test_the_floor_is_of_both_classes(tmp_path):
    """Real images stand class by class. Their distance is near that of a mixture to itself, 0; one class is some 100
    away from both of them."""
    request = EvaluateRequest(subject="a", data="b", out=tmp_path, metrics=("fd", "kid"))
    desk = Desk(request, Ledger(tmp_path / "figures.jsonl"), print)
    judged = Judged("key", Means(), lambda _: classes(100, 3), 100)
    desk.distances(judged, side("train", classes(400, 1)), side("val", classes(300, 2)))
    desk.distances(judged, side("val", classes(300, 2)), side("train", classes(40, 1)))
    first, kid, few, _ = desk.figures
    assert first.floor is not None and first.floor < 5
    assert first.floor_images == 100 and "only" not in first.shown_floor
    assert kid.floor_images == 300
    assert few.floor_images == 40 and few.shown_floor.endswith(" (of only 40 images)")


def test_no_floor_of_images_against_themselves(tmp_path):
    """Read twice, as the features of a run's training images given as --data are: their distance is 0, which says that
    nothing can be nearer."""
    request = EvaluateRequest(subject="a", data="b", out=tmp_path, metrics=("fd", "kid"))
    desk = Desk(request, Ledger(tmp_path / "figures.jsonl"), print)
    judged = Judged("key", Means(), lambda _: classes(100, 3), 100)
    desk.distances(judged, side("train", classes(400, 1)), replace(side("val", classes(400, 1)), data="train"))
    assert [figure.metric for figure in desk.figures] == ["fd", "kid"]
    assert all(figure.value is not None and figure.floor is None for figure in desk.figures)


def test_rows_are_spread_from_the_first_to_the_last():
    rows = np.arange(10)[:, None]
    assert spread_rows(rows, 4)[:, 0].tolist() == [0, 3, 6, 9] and len(spread_rows(rows, 12)) == 10


def test_an_extractor_with_few_images_leaves_the_next_its_own(monkeypatch):
    """The first has 40 images, the second 60."""
    monkeypatch.setattr(Bench, "side", lambda self, role, extractor: side(role, classes(80, 1)))
    looked_at, estimate = [], evaluate_apart.frechet_estimate

    def looks(stats, rows, labels=None):
        looked_at.append(len(rows))
        return estimate(stats, rows, labels)

    monkeypatch.setattr(evaluate_apart, "frechet_estimate", looks)
    judged = [Judged("key", Means(), lambda _, n=n: classes(n, 2), n) for n in (40, 60)]
    evaluate_apart._views(object.__new__(Bench), judged, 60)
    assert looked_at == [40, 40, 60, 60]


PLACES = [
    ("images", "images/out", None),
    ("images", "images", None),
    ("images", "out", "images/more"),
    ("images", "out", "real"),
    ("images", "real/out", None),
    ("images", "out", "train/o.zip"),
    ("images.zip", "out", "images.zip"),
    ("images.zip", "out", "other/../images.zip"),
]


@pytest.mark.parametrize(("subject", "out", "save"), PLACES)
def test_nothing_is_written_among_images_that_are_read(subject, out, save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="expected a place outside"):
        EvaluateRequest(subject=subject, data="real", train_data="train", out=Path(out), save=save)


def test_beside_images_and_inside_a_run_is_fine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "cascade.json").touch()
    EvaluateRequest(subject="run", data="builtin:letters", out=Path("run/evaluation"), save="run/images")
    EvaluateRequest(subject="images", data="real", out=Path("images-out"), save="images.zip")


def test_a_line_that_has_lost_a_part_is_computed_again(tmp_path: Path) -> None:
    file = tmp_path / "figures.jsonl"
    request = EvaluateRequest(subject="images", data="val", out=tmp_path)
    computed = []

    def compute() -> dict[str, Estimate]:
        computed.append(1)
        return {"kid": Estimate(0.5, None, None, "none")}

    def measure() -> float | None:
        desk = Desk(request, Ledger(file), lambda _: None)
        return desk.measure(["kid"], ["images"], compute)[0].value

    assert measure() == measure() == 0.5 and len(computed) == 1
    whole = json.loads(file.read_text())
    lost = [{"key": whole["key"]}, {"body": 1}, {"key": [1], "body": 1}]
    damaged = [*lost, whole | {"body": None}, whole | {"body": [{"no": "figure"}]}, whole | {"body": ["no figure"]}]
    for number, line in enumerate(damaged, start=2):
        file.write_text(json.dumps(line) + "\n")
        assert measure() == 0.5 and len(computed) == number
        assert measure() == 0.5 and len(computed) == number
