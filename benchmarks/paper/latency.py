"""Seconds of both hand-overs at equal levels, in turns in one run."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from cdm.artifacts import make_folder, save_json
from cdm.cascade import Cascade
from paper.cells import GENERATED, Cell, settings_of
from paper.plan import PLAN

ROUNDS, IMAGES = 7, 64
HAND_OVERS = ("non_truncated", "truncated")


def latency_path(work: Path) -> Path:
    return work / "latency.json"


def measure_latency(cascade: Cascade, arm: str, work: Path) -> None:
    """At each of the few levels: seconds of ``IMAGES`` images, median of ``ROUNDS``, and the ratio with its spread."""
    labels = [i % len(cascade.class_names) for i in range(IMAGES)]

    def seconds(level: float, way: str) -> tuple[float, tuple[int, ...]]:
        settings = settings_of(cascade, Cell(arm, GENERATED, level, way, 0))
        began = time.perf_counter()
        made = cascade.sample(labels, range(IMAGES), settings=settings, batch_size=IMAGES)
        return time.perf_counter() - began, made.evaluations

    rows = list[dict[str, Any]]()
    for level in [level for level in PLAN["few_levels"] if level]:
        warm = {way: seconds(level, way)[1] for way in HAND_OVERS}
        turns = [{way: seconds(level, way)[0] for way in HAND_OVERS} for _ in range(ROUNDS)]
        ratios = sorted(turn["truncated"] / turn["non_truncated"] for turn in turns)
        rows.append({
            "level": level, "evaluations": {way: list(each) for way, each in warm.items()},
            "seconds": {way: median(turn[way] for turn in turns) for way in HAND_OVERS},
            "truncated / non_truncated": {"min": ratios[0], "median": median(ratios), "max": ratios[-1]},
        })  # fmt: skip
        print(f"level {level:g}: {rows[-1]['truncated / non_truncated']}", flush=True)
    save_json(latency_path(make_folder(work)), {
        "arm": arm, "weights": cascade.hash, "images": IMAGES, "rounds": ROUNDS, "rows": rows,
        "machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__,
        "device": str(cascade.device),
    })  # fmt: skip
