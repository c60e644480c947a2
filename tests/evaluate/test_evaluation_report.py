"""The page of ``cdm evaluate``, and as a browser shows it."""

import re

import numpy as np
import pytest
from PIL import Image as PILImage
from tests.browser import look

from cdm.evaluate.evaluation_report import comparison_report, evaluation_report
from cdm.evaluate.pictures import png_bytes
from cdm.evaluate.results import Figure, Report, compare

NAMES = [f"class with a rather long name {i}" for i in range(12)]


def figures():
    domain = {"extractor": "domain", "hash": "0123456789ab", "generated": 2048, "real": 2548, "data": "fedcba987654"}
    other = domain | {"hash": "ba9876543210"}
    inception = domain | {"extractor": "inception", "hash": "6726825d0000"}
    return (
        Figure(metric="fd", value=12.25, low=11.5, high=13.0, interval="jackknife over 20 groups", reference="train",
               floor=1.5, seconds=1.2, **domain),
        Figure(metric="fd", value=99.5, reference="train", interval="none", **other),
        Figure(metric="fd", value=7.5, reference="val", interval="none", verified=False, **inception),
        Figure(metric="kid", value=0.0021, low=0.001, high=0.003, reference="val", **domain),
        Figure(metric="precision", value=0.81, reference="val", forced=True, **domain),
        Figure(metric="cas_top1", value=0.71, low=0.69, high=0.73, generated=2048, reference="val", data="fedcba98",
               extractor="small ResNet", hash="33aa"),
        Figure(metric="is", value=None, reason="weights-inception.pth is not there: put it into ~/.cache/cdm/weights"),
    )  # fmt: skip


def whole_report():
    rng = np.random.default_rng(0)
    return Report(
        summary="The base <loses> most & should train further.",
        subject={"name": "letters", "where": "runs/" + "a-very-long-name-" * 6, "count": 2048, "hash": "aa-bb"},
        data={"val": {"where": "val.zip", "count": 2548, "fingerprint": "fedcba987654"}},
        figures=figures(),
        verdict={"sentence": "FID and the others agree.", "by_heart": "No sign of training images learnt by heart.",
                 "rows": [{"label": "FID", "ratio": 1.2, "imagenet": True},
                          {"label": "FD-domain", "ratio": 8.1, "imagenet": False}]},
        diagnosis={"sentence": "Stage 0 is to blame.", "findings": ["Stage 0 is to blame."], "distance": "FD-domain",
                   "losses": [{"label": "stage 0", "value": 9.0}, {"label": "stage 1", "value": -0.5}],
                   "table": {"columns": ["generated", "oracle"], "rows": [["PSNR", "31.2", "33.0"]]}},
        memorisation={"sentence": "No copies.", "samples": [8.0, 9.0, 10.0], "val": [8.1, 8.9, 10.2],
                      "by_features": {"threshold": 4.5}},
        cas={"sentence": "Worse than real.", "class_names": NAMES, "generated": rng.random(12).tolist(),
             "real": rng.random(12).tolist(), "network": "small ResNet", "side": 64, "why": "images of 64 pixels",
             "intervals": {arm: [[0.125, 0.25]] * 12 for arm in ("generated", "real", "difference")},
             "top5": {"generated": [0.9375] * 12, "real": [0.96875] * 12}},
        costs=[{"stage": "0-16", "evaluations": 32, "flops": 8_000_000_000, "seconds": 0.0123, "share": 0.25},
               {"stage": "1-64", "evaluations": 16, "flops": 9_000_000_000, "seconds": 0.0369, "share": 0.75}],
        warnings=("validation images are few",),
        made={"command": "cdm evaluate runs/letters --data val.zip --out report", "written": "2026-11-24 12:00"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    sheet = png_bytes(PILImage.effect_noise((1400, 300), 80).convert("RGB"))
    pictures = {
        "samples": [(sheet, "Samples")],
        "panels": [(sheet, "low-res, SR, oracle")],
        "neighbours": [(sheet, "pairs")],
    }
    path = tmp_path_factory.mktemp("page") / "report.html"
    return evaluation_report(path, whole_report(), pictures, [("cdm sample runs/letters", "More:")])


def test_the_summary_stands_before_everything(page):
    text = page.read_text()
    assert text.index("should train further") < text.index("<table>")
    assert "&lt;loses&gt; most &amp; should" in text


def test_nothing_is_fetched(page):
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page.read_text())
    assert "<script" not in page.read_text()


def test_every_figure_is_traced(page):
    """Value, interval, extractor, hash, reference and counts, and what is missing with its reason."""
    text = page.read_text()
    for word in ("12.25", "11.50 to 13.00", "jackknife over 20 groups", "domain 0123456789ab", "train fedcba987654",
                 "2,048 / 2,548", "Inception Score: weights-inception.pth is not there"):  # fmt: skip
        assert word in text, word


def test_costs_stand_with_their_shares(page):
    text = page.read_text()
    for word in ("What an image costs", "<td>8.00</td>", "<td>12.30</td>", "<td>25 %</td>", "<td>75 %</td>"):
        assert word in text, word


def test_classes_stand_with_intervals_and_what_chance_gives(page):
    text = page.read_text()
    for word in (
        "small ResNet at 64 pixels (images of 64 pixels)",
        "% (12.5 to 25.0)",
        "(+12.5 to +25.0)",
        "93.8 %",
        "about one class in 40",
        "No sign of training images learnt by heart",
        "small ResNet 33aa",
    ):
        assert word in text, word


def test_figures_of_two_hashes_stand_in_two_columns(page):
    table = page.read_text().split("Against the training images")[1].split("</table>")[0]
    heads = re.findall(r'<th scope="col">([^<]*)</th>', table)
    cells = re.findall(r"<td>([^<]*)</td>", table)
    assert heads == ["", "domain 0123456789ab", "domain ba9876543210"]
    assert cells[0].startswith("12.25") and cells[1].startswith("99.50")


@pytest.mark.parametrize("width", [400, 1200])
def test_in_a_browser(page, width, tmp_path):
    """A screenshot, nothing on the console, every picture decoded, no sideways scrolling of the page, no tiny print."""
    seen = look(page, tmp_path, width)
    assert seen.console == []
    assert seen.found["images"] == 7 and seen.found["broken"] == 0
    assert seen.found["tables"] >= 5 and "12.25" in seen.found["text"]
    assert seen.found["width"] <= width
    assert seen.found["font"] >= 12
    with PILImage.open(seen.screenshot) as shot:
        assert len(set(shot.convert("L").resize((64, 64)).tobytes())) > 8


def test_compared_reports_fit_a_telephone(tmp_path):
    reports = [whole_report()] * 3
    path = comparison_report(tmp_path / "compare.html", compare(["a", "b", "c"], reports), reports, "cdm compare a b c")
    seen = look(path, tmp_path, 400)
    assert seen.console == [] and seen.found["width"] <= 400
    assert "99.50" in seen.found["text"] and "FID" in seen.found["text"]
