"""How much slower training gets when another process keeps a core busy.

    python benchmarks/contention.py [--out benchmarks/results/contention.json]

The base of the recipe ``small`` on letters-like images, batch 64. Alone, beside one process that only counts, and
beside one for every core, in turns. Threads that spin while they wait for each other make this 6 to 170 times slower;
``cdm`` lets them sleep (GOMP_SPINCOUNT). Beside others it is also measured with a thread for each core that is left, at
least one (``--threads``). Exits 1 if all threads beside one process are over 3 times slower, in the median.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from peers.timing import spread
from record import check_out, made, one_sentence, save

from cdm.runtime import usable_cores

SCRIPT = "contention.py"
LIMIT, ROUNDS, SECONDS, BATCH = 3.0, 5, 4.0, 64  # images per update
SPINS = "1000"  # as cdm.cli.main sets it
CHILD = """
import os
from dataclasses import replace
import torch
from cdm.config import DataConfig
from cdm.heap import keep_memory
from cdm.recipes import make_config
from cdm.recipes.facts import Facts
from cdm.rng import Rng
from cdm.runtime import choose_dtype, set_threads
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
set_threads(int(os.environ["T"]) if "T" in os.environ else None)
print(measure_speed(Trainee(stage), batches, Rng(0), seconds=float(os.environ["S"])))
"""


def speed(busy: int, threads: int | None, spins: str | None) -> float:
    """Images per second of a fresh process beside so many busy ones. ``threads``: None: all cores. ``spins``:
    GOMP_SPINCOUNT; None: as the library has it."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
        env |= {"S": str(SECONDS), "B": str(BATCH)} | ({"GOMP_SPINCOUNT": spins} if spins else {})
        env |= {"T": str(threads)} if threads else {}
        made = subprocess.run([sys.executable, "-c", CHILD], env=env, stdout=subprocess.PIPE, text=True, check=True)
    finally:
        for other in others:
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
    cores = usable_cores()
    arms: dict[str, tuple[int, int | None, str | None]] = {
        "alone": (0, None, SPINS),
        "beside one": (1, None, SPINS),
        "beside one, a thread for each free core": (1, max(1, cores - 1), SPINS),
        "beside one on each core": (cores, None, SPINS),
        "beside one on each core, one thread": (cores, 1, SPINS),
        "alone, threads as they are by default": (0, None, None),
        "beside one, threads as they are by default": (1, None, None),
    }
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(ROUNDS):
        for name, arm in arms.items():
            rates[name].append(speed(*arm))
    results: dict[str, Any] = {"cores": cores, "rounds": ROUNDS, "limit": LIMIT}
    for name, each in rates.items():
        alone = rates["alone, threads as they are by default" if arms[name][2] is None else "alone"]
        slower = [a / b for a, b in zip(alone, each, strict=True)]
        results[name] = {"images_per_s": statistics.median(each), "slower": spread(slower)}
        told = results[name]["slower"]
        print(
            f"{name}: {results[name]['images_per_s']:.0f} images/s, {told['median']:.1f} times slower "
            f"({told['min']:.1f} to {told['max']:.1f})"
        )
    save(options.out, results, how)
    slower = results["beside one"]["slower"]["median"]
    if slower > LIMIT:
        raise SystemExit(f"{slower:.1f} times slower beside a busy process; expected at most {LIMIT:g}")


if __name__ == "__main__":
    main()
