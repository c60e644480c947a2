"""The search of ``cdm tune --axis level`` beside all 11 levels in full: which level each finds, and at what cost.

    python benchmarks/level_search.py examples/letters --data VAL.zip --train-data TRAIN.zip --work DIR

The run is copied, and stays as it is. For each hand-over the search of its first SR stage comes first, as the command
makes it: the same seeds, half of the real images, features and rule. Then the levels that it left out get as many
images as its finalists had. The search's images are among all those, so its cost is a share of the whole; seconds are
told where nothing was there before. Features are kept in DIR, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from record import check_out, made, one_sentence, save, told, told_ratio

from cdm.cli.progress import counting_progress
from cdm.config import to_dict
from cdm.pipeline.image_source import key_of
from cdm.pipeline.judge import open_judge
from cdm.pipeline.tune_level_bench import LevelBench, halves, searched_stages
from cdm.pipeline.tune_level_trials import LevelTrials
from cdm.pipeline.tune_levels import GRID, level_grid, search_levels
from cdm.pipeline.tune_request import HAND_OVERS, LEAST_IMAGES, TuneRequest
from cdm.pipeline.tune_search import Budget
from cdm.runtime import set_threads

SCRIPT = "level_search.py"


def compare(trials: LevelTrials, low: float, high: float, images: int) -> dict[str, Any]:
    """The search, then all levels in full, which begin with what the search has made."""
    began = time.perf_counter()
    found = search_levels(trials, low, high, images)
    searched_s, made = time.perf_counter() - began, trials.made
    assert found.best is not None, "the time is not limited"
    spent = sum(count for count, _ in found.values.values())
    grid = [level for level in level_grid(low, high) if trials.allows(level)]
    values = {level: trials.estimate(level, images) for level in grid}
    all_s, all_made = time.perf_counter() - began, trials.made
    best = min(grid, key=lambda level: values[level].value)
    anew = (made, all_made) == (spent, images * len(grid))
    return {
        "best": {"search": found.best, "in full": best}, "steps_apart": abs(grid.index(found.best) - grid.index(best)),
        "images": {"search": spent, "in full": images * len(grid), "share": spent / (images * len(grid))},
        "seconds": {"search": round(searched_s, 1), "in full": round(all_s, 1)} if anew else None,
        "ratio": told_ratio(trials.worse(found.best, best, images)), "rejected": list(found.rejected),
        "in_full": {f"{level:g}": told(value) for level, value in values.items()},
        "by_search": {f"{level:g}": {"images": n, "value": value} for level, (n, value) in found.values.items()},
    }  # fmt: skip


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("run", type=Path, nargs="?", default=Path("examples/letters"))
    parser.add_argument("--data", help="real images kept from training; without, nothing is measured")
    parser.add_argument("--train-data", help="those trained on: for the domain extractor")
    parser.add_argument("-n", type=int, default=1024, help=f"images of a level, at least {LEAST_IMAGES}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--steps",
        type=lambda text: tuple(map(int, text.split(","))),
        help="of each stage, as 16,8 (default: the run's)",
    )
    parser.add_argument("--hand-over", choices=HAND_OVERS, help="this one alone (default: both)")
    parser.add_argument("--work", type=Path, default=Path("runs/level-search"), help="features are kept here")
    parser.add_argument("--device")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/level-search.json"))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    if options.data is None:
        print("level_search is skipped: no --data names the real images that its distances are measured to.")
        return
    with one_sentence(SCRIPT):
        run(options, made(SCRIPT, argv))


def run(options: argparse.Namespace, how: dict[str, Any]) -> None:
    check_out(options.out)
    set_threads(None)
    copy = options.work / f"run-{key_of(str(options.run.resolve()))[:8]}"
    if options.run.exists():  # in each call: it may have been trained further, or a copy been cut short
        shutil.copytree(options.run, copy, dirs_exist_ok=True)
    request = TuneRequest(
        run=copy, data=options.data, train_data=options.train_data, images=options.n, axes=("level",),
        seed=options.seed, device=options.device,
    )  # fmt: skip
    request.check_run()
    with counting_progress() as progress:
        judge = open_judge(request.judged(), progress, print)
        half, unused = halves(judge, request)
        budget = Budget(math.inf, time.monotonic())
        bench = LevelBench(request, judge, half, unused, budget, progress, print)
        stage = searched_stages(judge.cascade.config, request)[0]
        low, high = bench.range_of(stage)
        result: dict[str, Any] = {
            "run": str(options.run), "weights": judge.cascade.hash, "stage": judge.cascade.stages[stage].name,
            "extractor": judge.extractor.hash, "real_images": half.count, "seed": options.seed, "levels": GRID,
            "cores": os.cpu_count(), "device": str(judge.cascade.device),
        }  # fmt: skip
        for way in HAND_OVERS if options.hand_over is None else (options.hand_over,):
            settings = judge.cascade.settings(
                hand_over=way, **({} if options.steps is None else {"steps": options.steps})
            )
            trials = bench.trials(stage, settings)
            found = compare(replace(trials, folder=bench.work / way), low, high, options.n)
            result[way] = {"settings": to_dict(settings), **found}
            save(options.out, result, how)
            images, apart = found["images"], found["steps_apart"]
            print(f"{way}: the search says {found['best']['search']:g} by {images['search']:,} images, all in full say "
                  f"{found['best']['in full']:g} by {images['in full']:,}: {apart} steps apart, "
                  f"{images['share']:.2f} of the cost")  # fmt: skip


if __name__ == "__main__":
    main()
