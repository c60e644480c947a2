"""``report.json`` and what is put side by side."""

import json
import math
from dataclasses import replace

import pytest

from cdm.artifacts import load_json, save_json
from cdm.errors import UserError
from cdm.evaluate.results import METRICS, REPORT_VERSION, Figure, Report, compare, load_report, save_report


def figure(metric="fd", value=3.0, **changes):
    given = {
        "extractor": "domain",
        "hash": "a" * 12,
        "generated": 2048,
        "real": 2000,
        "reference": "val",
        "data": "b" * 12,
    }
    return Figure(**({"metric": metric, "value": value} | given | changes))


def report(*figures, **changes):
    given = {"summary": "Good.", "subject": {"name": "run", "count": 2048}, "data": {"val": {"count": 2000}}}
    return Report(**(given | {"figures": figures} | changes))


def test_a_report_survives_a_round_trip(tmp_path):
    made = report(figure(low=2.5, high=3.5, interval="jackknife"), figure("kid", None, reason="failed"),
                  warnings=("mind",), cas={"generated": [0.5]}, diagnosis=None)  # fmt: skip
    path = save_report(tmp_path / "report.json", made)
    assert load_report(path) == load_report(tmp_path) == made
    assert load_json(path)["report_version"] == REPORT_VERSION


def test_what_is_not_finite_becomes_null(tmp_path):
    """JSON has no NaN; a browser would refuse the whole file."""
    path = save_report(tmp_path / "report.json", report(figure(value=math.nan), cas={"generated": [math.inf, 0.5]}))
    json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))
    assert load_report(path).figures[0].value is None and load_report(path).cas == {"generated": [None, 0.5]}


def no_report(folder):
    return folder / "report.json", "no report at"


def another_file(folder):
    save_json(folder / "report.json", {"config": {}})
    return folder / "report.json", "no evaluation"


def a_newer_one(folder):
    save_json(folder / "report.json", {"kind": "evaluation", "report_version": REPORT_VERSION + 1})
    return folder / "report.json", "newer"


def damaged(folder):
    save_report(folder / "report.json", report(figure()))
    text = (folder / "report.json").read_text()
    (folder / "report.json").write_text(text.replace("3.0", "2.0"))
    return folder / "report.json", "checksum"


@pytest.mark.parametrize("make", [no_report, another_file, a_newer_one, damaged], ids=lambda make: make.__name__)
def test_other_files_are_refused(make, tmp_path):
    path, words = make(tmp_path)
    with pytest.raises(UserError, match=words):
        load_report(path)


@pytest.mark.parametrize(
    "change", [{"hash": "c" * 12}, {"extractor": "inception"}, {"reference": "train"}, {"data": "d"}]
)
def test_figures_of_other_weights_or_data_share_no_row(change):
    """A domain network trained on other images, or another reference, gives numbers of another kind."""
    table = compare(["one", "two"], [report(figure()), report(figure(**change))])
    assert len(table.rows) == 2
    assert all(sum(cell is not None for cell in row) == 1 for row in table.rows)


@pytest.mark.parametrize("metric", ["fd", "sfid", "is", "cas_top1", "precision"])
@pytest.mark.parametrize("change", [{"generated": 5000}, {"real": 900}])
def test_figures_of_other_counts_share_no_row(metric, change):
    """Fewer images are farther, whatever their quality: no row may look as if they could be compared."""
    table = compare(["one", "two"], [report(figure(metric)), report(figure(metric, **change))])
    assert [sum(cell is not None for cell in row) for row in table.rows] == [1, 1]
    assert len({table.head(row) for row in table.rows}) == 2


def test_kid_of_any_counts_shares_a_row():
    table = compare(["one", "two"], [report(figure("kid")), report(figure("kid", generated=5000))])
    assert len(table.rows) == 1 and "images" not in table.head(table.rows[0])[1]


def test_unknown_keys_are_left_out(tmp_path):
    """A later writer of the same version may add keys."""
    made = report(figure())
    body = load_json(save_report(tmp_path / "report.json", made))
    body["figures"][0]["colour"], body["weather"] = "blue", {"sun": 1}
    save_json(tmp_path / "report.json", body)
    assert load_report(tmp_path) == made


def test_the_best_is_named_only_where_intervals_tell_it():
    sure = [report(figure(value=1.0, low=0.9, high=1.1)), report(figure(value=2.0, low=1.9, high=2.1))]
    unsure = [report(figure(value=1.0, low=0.5, high=1.6)), report(figure(value=1.5, low=1.0, high=2.0))]
    higher = [report(figure("recall", 0.2, low=0.1, high=0.3)), report(figure("recall", 0.6, low=0.5, high=0.7))]
    for reports, best in ((sure, 0), (unsure, None), (higher, 1)):
        table = compare(["one", "two"], reports)
        assert table.best(table.rows[0]) == best


def test_a_missing_figure_leaves_its_place_empty():
    table = compare(["one", "two"], [report(figure(), figure("kid", 0.001)), report(figure())])
    assert [[cell is not None for cell in row] for row in table.rows] == [[True, True], [True, False]]


def test_every_figure_shows_its_marks_and_name():
    assert figure(extractor="inception").label == "FID"
    assert figure().label == "FD-domain"
    assert figure(extractor="custom:own.module:pixels").label == "FD-pixels"
    assert figure(forced=True, verified=False).shown == "3.00 ! ?"
    assert figure("kid", 0.00123).shown == "1.23"
    assert figure("cas_top1", 0.5, extractor="").shown == "50.0 %"
    assert replace(figure(), value=None).shown == "not computed"
    assert all(Figure(metric=metric, value=0.1234).shown for metric in METRICS)
