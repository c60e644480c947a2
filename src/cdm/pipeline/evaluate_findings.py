"""What the figures come to: copies, classes, the stage at fault, and whether FID tells the same as the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cdm.evaluate.results import Figure

IMAGENET = ("inception", "resnet50")
"""Extractors that are classifiers of ImageNet: what guidance by such a classifier can please without better images."""
APART = 2.0
"""Ratios further apart than this tell different stories."""


def verdict(figures: Sequence[Figure]) -> dict[str, Any]:
    """FID's verdict beside those that guidance cannot cheat: how many times as far from the data as real images each
    distance puts the samples."""
    rows = []
    for figure in figures:
        if figure.metric == "fd" and figure.value is not None and figure.floor is not None and figure.floor > 0:
            rows.append({"label": f"{figure.label} {figure.hash}", "ratio": figure.value / figure.floor,
                         "imagenet": figure.extractor in IMAGENET})  # fmt: skip
    return {"sentence": _agreement(rows), "rows": rows}


def _agreement(rows: Sequence[dict[str, Any]]) -> str:
    imagenet = [row for row in rows if row["imagenet"]]
    others = [row for row in rows if not row["imagenet"]]
    told = [f"{row['label'].split(' ')[0]} puts the samples {row['ratio']:.1f} times as far from the data as real ones"
            for row in rows]  # fmt: skip
    if not rows:
        return "No distance has real images' own beside it, so nothing can be said of FID's verdict and the others'."
    if not imagenet:
        return f"{'; '.join(told)}. FID was not computed, so there is nothing that it could be at odds with."
    if not others:
        return f"{'; '.join(told)}. Nothing that guidance cannot cheat was computed: add --extractors domain."
    low, high = min(row["ratio"] for row in imagenet), max(row["ratio"] for row in others)
    if high > APART * low:
        end = "They disagree: FID is the kinder, and guidance by an ImageNet classifier can please it; trust the others"
    elif low > APART * high:
        end = "They disagree: FID is the harsher, which guidance does not explain; look at the samples"
    else:
        end = "They agree"
    return f"{'; '.join(told)}. {end}."


def summary(figures: Sequence[Figure], compared: dict[str, Any], diagnosis: dict[str, Any] | None) -> str:
    """The first sentences of the report: the most trusted distance, and what to do."""
    parts = []
    first = next((f for metric in ("fd", "kid") for f in figures if f.metric == metric and f.value is not None), None)
    if first is not None:
        floor = f", that of real validation images {first.shown_floor}" if first.floor is not None else ""
        parts.append(f"{first.label} against the {ROLES[first.reference]} images is {first.shown}{floor}.")
    if "disagree" in compared["sentence"]:
        parts.append(compared["sentence"])
    if diagnosis is not None:
        parts.append(diagnosis["sentence"])
    return " ".join(parts) or "No distance could be computed; the reasons stand below."


ROLES = {"val": "validation", "train": "training", "": "real"}


def find_copies(bench, judged):
    return None


def score_classes(bench, images):
    return None


def take_apart(bench, judged, chains, memory):
    return None, []
