"""The page of ``cdm tune --axis level``: both curves of each SR stage, what was measured, and what was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cdm.evaluate.evaluation_plots import levels_plot
from cdm.evaluate.level_curves import LevelCurves
from cdm.evaluate.report import Commands, Picture, Section, Table, Text, write_report


def level_report(path: Path, told: Mapping[str, Any], curves: Sequence[LevelCurves], command: str) -> Path:
    """Write the page. ``told``: what ``levels.json`` holds."""
    again = Commands([(command, "The same again goes on, with more --minutes further:")])
    summary = Section(
        "What cdm sample does from now on",
        [
            Text(f"{told['words'].capitalize()}."),
            Text(f"Why: {told['why']}."),
            Text(f"Measured again: {told['again']['words']}."),
            Text("What was the default before stands in cascade.json (sampling_history)."),
            *([again] if command else []),
        ],
    )
    sections = [summary, *map(_curves, curves), *map(_search, told["searches"])]
    return write_report(path, "Tuning of the augmentation level", sections, told["made"])


def _curves(found: LevelCurves) -> Section:
    told = found.told()
    lines = {f"generated low-res images, {how}": points for how, points in told["generated"].items() if points}
    if told["real"]:
        lines["real low-res images"] = told["real"]
    blocks: list[Text | Picture] = []
    if lines:
        caption = (
            f"Distance to real images against the level, {found.images:,} images a point. Thick bars: 95 % intervals "
            "against the best level of the same line, on the same seeds. Thin ones: of the distance alone."
        )
        blocks.append(Picture(levels_plot(lines, "distance to real images"), caption))
    left = [Text(f"{found.missing} points are left out for lack of time.")] if found.missing else []
    return Section(f"Stage {found.stage}: both curves", [*blocks, *map(Text, found.words), *left])


def _search(found: Mapping[str, Any]) -> Section:
    rows = [
        (
            f"{p['level']:g}",
            f"{p['noise_ratio']:.3g}",
            f"{p['logsnr']:.2f}",
            f"{p['images']:,}",
            _interval(p),
            p["told"],
            _note(p, found),
        )
        for p in found["levels"]
    ]
    seeds = ", ".join(f"{value:.3g}" for value in found["by_seed"])
    return Section(
        f"Stage {found['stage']}, {found['hand_over']}",
        [
            Table(
                ("s", "σ/α", "log-SNR λ", "images", "distance (95 %)", "against the best, on the same seeds", ""), rows
            ),
            Text("A distance alone is known badly; most of its chance is in the seeds and cancels against the best."),
            Text("Distances of different numbers of images do not compare: fewer make a Fréchet distance larger."),
            Text(
                f"The best level by each sampling seed alone, a third of its images each: {seeds}; their mean is known "
                f"to {found['by_seed_error']:.2g}, either way (95 %)."
            ),
            Text(
                f"{found['images_in_all']:,} images in all; every level in full would take "
                f"{found['exhaustive_images']:,}." + ("" if found["finished"] else " Stopped by --minutes.")
            ),
        ],
    )


def _interval(point: Mapping[str, Any]) -> str:
    ends = "" if point["low"] is None else f" ({point['low']:.3g} to {point['high']:.3g})"
    return f"{point['distance']:.3g}{ends}"


def _note(point: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    if point["level"] == found["best"]:
        return "best"
    return "worse for sure" if point["rejected"] else ""
