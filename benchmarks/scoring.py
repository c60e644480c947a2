"""Time and memory of scoring: FD, KID, precision, recall, density and coverage on domain features.

    python benchmarks/scoring.py [--out benchmarks/results/scoring.json]

Built-in letters at 64x64 stand for generated images, others for real ones. The domain extractor and the reference's
features are made beforehand by an evaluation of 2,048 images, as after any first evaluation on the same data; timed
is one `cdm evaluate` process, its start included. Exits 1 above 120 s for 10,000 images, or above 2 GB.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import tyro
from record import check_out, made, one_sentence, save

from cdm.data.letters import draw
from cdm.errors import UserError

SCRIPT = "scoring.py"
SIDE, SEED, WARM_UP = 64, 5, 2048
DATA, EXTRACTOR = "builtin:letters", "domain"
MOST_SECONDS, MOST_BYTES = 120.0, 2e9


def write_letters(path: Path, count: int) -> None:
    """An ADM batch of ``count`` letters that no evaluation has as real ones."""
    images = np.lib.format.open_memmap(path.with_suffix(".npy"), "w+", np.uint8, (count, SIDE, SIDE, 3))
    for start in range(0, count, 500):
        rows = np.arange(start, min(start + 500, count))
        images[rows[0] : rows[-1] + 1] = draw(rows, SIDE, SEED).transpose(0, 2, 3, 1)
    np.savez(path, arr_0=images, arr_1=np.arange(count) % 26)
    path.with_suffix(".npy").unlink()


def score(images: Path, out: Path, cache: Path) -> tuple[float, int]:
    """Seconds and peak bytes of one evaluation."""
    command = [sys.executable, "-m", "cdm.cli.main", "evaluate", str(images), "--data", DATA]
    command += ["--metrics", "fd,kid,prdc", "--extractors", EXTRACTOR, "--out", str(out)]
    began = time.perf_counter()
    child = subprocess.Popen(command, env=os.environ | {"CDM_CACHE": str(cache)})
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"the evaluation failed with {child.returncode}")
    return time.perf_counter() - began, usage.ru_maxrss * 1024


def main(out: Path = Path("benchmarks/results/scoring.json"), counts: tuple[int, ...] = (10_000, 50_000)) -> int:
    """Time evaluations of so many images. Returns 1 where one is over its limit."""
    with one_sentence(SCRIPT):
        check_out(out)
        if not counts or min(counts) < 1:
            raise UserError(f"--counts is {' '.join(map(str, counts)) or 'empty'}; expected numbers of at least 1.")
    how = made(SCRIPT, None)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        write_letters(here / "warm.npz", WARM_UP)
        score(here / "warm.npz", here / "warm", here / "cache")
        for count in counts:
            write_letters(here / "images.npz", count)
            seconds, peak = score(here / "images.npz", here / f"report-{count}", here / "cache")
            rows.append({"images": count, "seconds": round(seconds, 1), "peak_gb": round(peak / 1e9, 2)})
            print(rows[-1])
    save(out, {"side": SIDE, "cores": os.cpu_count(), "torch": torch.__version__, "runs": rows}, how)
    slow = any(row["images"] <= 10_000 and row["seconds"] > MOST_SECONDS for row in rows)
    return int(slow or any(row["peak_gb"] > MOST_BYTES / 1e9 for row in rows))


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
