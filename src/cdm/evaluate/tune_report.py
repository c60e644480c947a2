"""The page of ``cdm tune``: the front of distance against evaluations of each stage, and what was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cdm.evaluate.evaluation_plots import front_plot
from cdm.evaluate.evaluation_report import costs_blocks
from cdm.evaluate.report import Commands, Picture, Section, Table, Text, write_report

Row = Mapping[str, Any]
"""``sampler``, ``grid``, ``evaluations``, ``distance``, ``low``, ``high``, ``seconds``."""


@dataclass(frozen=True)
class StageFront:
    """points: everything measured with all images. front: those that nothing beats. picked: by quality."""

    stage: str
    points: tuple[Row, ...]
    front: tuple[Row, ...]
    picked: Mapping[str, Row]

    def told(self) -> dict[str, Any]:
        return asdict(self)


def tune_report(
    path: Path,
    fronts: Sequence[StageFront],
    qualities: Mapping[str, str],
    header: Mapping[str, str],
    command: str,
    costs: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write the page.

    Args:
        qualities: name to settings in words.
        header: facts under the title. costs: of an image at each stage, by the new default.
    """
    summary = Section(
        "What cdm sample does from now on",
        [
            Table(("--quality", "settings"), [(name, words) for name, words in qualities.items()]),
            Text("balanced is the default. What was the default before stands in cascade.json (sampling_history)."),
            *([Commands([(command, "The same again goes on, with more --minutes further:")])] if command else []),
        ],
    )
    cost = [Section("What an image costs from now on", costs_blocks(costs))] if costs else []
    return write_report(path, "Tuning", [summary, *map(_section, fronts), *cost], header)


def _section(front: StageFront) -> Section:
    chosen = [
        (str(row["evaluations"]), f"{row['sampler']}, {row['grid']}", _interval(row), _chosen(row, front.picked))
        for row in front.front
    ]
    return Section(
        f"Stage {front.stage}",
        [
            Picture(
                front_plot(front.points, front.front),
                "Fréchet distance on domain features against network evaluations of this stage; the line joins what "
                "nothing beats, bars are 95 % intervals. All candidates have the same seeds.",
            ),
            Table(("evaluations", "sampler, grid", "distance (95 %)", "chosen as"), chosen),
        ],
    )


def _interval(row: Row) -> str:
    ends = "" if row["low"] is None else f" ({row['low']:.3g} to {row['high']:.3g})"
    return f"{row['distance']:.3g}{ends}"


def _chosen(row: Row, picked: Mapping[str, Row]) -> str:
    return ", ".join(name for name, own in picked.items() if own == row)
