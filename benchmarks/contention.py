"""How much slower training gets when another process keeps a core busy.

    python benchmarks/contention.py [--out benchmarks/results/contention.json]

The base of the recipe ``small`` on letters-like images, batch 64, all cores. Alone and beside one process that only
counts, in turns. Threads that spin while they wait for each other make this 6 to 170 times slower; ``cdm`` lets them
sleep (GOMP_SPINCOUNT). Exits 1 if the median is over 3.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from record import check_out, made, one_sentence, save

SCRIPT = "contention.py"
LIMIT, ROUNDS, SECONDS, BATCH = 3.0, 5, 4.0, 64  # images per update
CHILD = """
import os
from dataclasses import replace
import torch
from cdm.config import DataConfig
from cdm.heap import keep_memory
from cdm.recipes import make_config
from cdm.recipes.facts import Facts
from cdm.rng import Rng
from cdm.runtime import choose_dtype
from cdm.stage import build_stage
from cdm.train.plan import measure_speed
from cdm.train.step import Trainee
from cdm.types import Batch
keep_memory()
config = make_config("small", Facts((16, 64), tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), DataConfig(), 1000)).stages[0]
batch = int(os.environ["B"])
config = replace(config, optim=replace(config.optim, batch_size=batch))
stage = build_stage(config, 0, num_classes=26, seed=0).to("cpu", choose_dtype("auto", torch.device("cpu")))
x0 = torch.rand(batch, 3, 16, 16) * 2 - 1
labels = torch.arange(batch) % 26
batches = lambda rng, index: Batch(x0, labels, index)
print(measure_speed(Trainee(stage), batches, Rng(0), seconds=float(os.environ["S"])))
"""


def speed(busy: bool, spins: str | None) -> float:
    """Images per second of a fresh process. ``spins``: GOMP_SPINCOUNT; None: as the library has it."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
        env |= {"S": str(SECONDS), "B": str(BATCH)} | ({"GOMP_SPINCOUNT": spins} if spins else {})
        made = subprocess.run([sys.executable, "-c", CHILD], env=env, stdout=subprocess.PIPE, text=True, check=True)
    finally:
        if other is not None:
            other.kill()
            other.wait()
    return float(made.stdout)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/contention.json"))
    options = parser.parse_args(argv)
    with one_sentence(SCRIPT):
        check_out(options.out)
    how = made(SCRIPT, argv)
    results: dict[str, Any] = {"cores": os.cpu_count(), "rounds": ROUNDS, "limit": LIMIT}
    for name, spins in (("as cdm sets it", "1000"), ("as it is by default", None)):
        pairs = [(speed(False, spins), speed(True, spins)) for _ in range(ROUNDS)]
        ratios = [alone / beside for alone, beside in pairs]
        results[name] = {
            "alone": statistics.median(alone for alone, _ in pairs),
            "beside": statistics.median(beside for _, beside in pairs),
            "slower": {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)},
        }
        print(
            f"{name}: {statistics.median(ratios):.1f} times slower ({min(ratios):.1f} to {max(ratios):.1f})", flush=True
        )
    save(options.out, results, how)
    slower = results["as cdm sets it"]["slower"]["median"]
    if slower > LIMIT:
        raise SystemExit(f"{slower:.1f} times slower beside a busy process; expected at most {LIMIT:g}")


if __name__ == "__main__":
    main()
