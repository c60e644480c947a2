"""Checks a short demo run: the files are there, the loss fell, and the samples are pictures rather than noise.

    python .ci/check_demo.py RUN SAMPLES

RUN is the run folder, SAMPLES a folder of what ``cdm sample`` made of it. Exits 1 and names what is wrong.
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cdm.data import letters


def check(good: bool, wrong: str) -> None:
    if not good:
        sys.exit(f"check_demo: {wrong}")


def check_files(run: Path) -> list[Path]:
    for name in ("cascade.json", "samples.png", "report.html", "events.jsonl"):
        check((run / name).is_file() and (run / name).stat().st_size > 0, f"{run / name} is missing or empty")
    report = (run / "report.html").read_text()
    check(not re.search(r"""(src|href)=["']?(https?:)?//""", report), "report.html loads something from the network")
    check("data:image/png;base64," in report, "report.html holds no picture")
    stages = [run / "0-16", run / "1-32"]
    for stage in stages:
        for name in ("config.json", "model.safetensors", "log.jsonl"):
            check((stage / name).is_file(), f"{stage / name} is missing")
    return stages


def check_loss(stage: Path) -> None:
    """The last quarter of the logged losses lies clearly under the first one."""
    lines = [json.loads(line) for line in (stage / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line.get("loss") is not None]
    check(len(losses) >= 4, f"{stage} logged only {len(losses)} losses")
    check(bool(np.isfinite(losses).all()), f"{stage} logged a loss that is not finite")
    last = float(np.mean(losses[-(len(losses) // 4) :]))
    print(f"{stage.name}: loss {losses[0]:.4f} -> {last:.4f} over {lines[-1]['images_seen']} images")
    check(last < 0.9 * losses[0], f"the loss of {stage} did not fall: {losses[0]:.4f} at first, {last:.4f} at last")


def neighbour_correlation(pixels: np.ndarray) -> float:
    """Correlation of horizontally neighbouring pixels: 0 for white noise, near 1 for pictures."""
    return float(np.corrcoef(pixels[:, :-1].ravel(), pixels[:, 1:].ravel())[0, 1])


def mean_correlation(tiles: Sequence[np.ndarray]) -> float:
    return float(np.mean([neighbour_correlation(tile) for tile in tiles if tile.std() > 0]))


def real_letters() -> list[np.ndarray]:
    """Ten of each letter as the demo was trained on, 32x32, grey levels."""
    drawn = letters.draw(letters.index_of(np.arange(0, len(letters.default_names()), 40)), 32, channels=1)
    return [np.asarray(image, dtype=np.float64)[0] for image in drawn]


def check_samples(folder: Path) -> None:
    files = sorted(folder.rglob("*.png"))
    images = [np.asarray(Image.open(path).convert("L"), dtype=np.float64) for path in files]
    tiles = [image for image in images if image.shape == (32, 32)]
    check(len(tiles) >= 26, f"{folder} holds {len(tiles)} images of 32x32; expected one of each of 26 letters")
    found, real = mean_correlation(tiles), mean_correlation(real_letters())
    print(f"samples: correlation of neighbouring pixels {found:.2f}, of real letters {real:.2f}, of noise 0")
    wrong = f"the samples look like noise: neighbouring pixels correlate at {found:.2f}, expected over {real / 2:.2f}"
    check(found >= real / 2, wrong)  # half of what real letters have; a minute is a short training
    contrast = float(np.median([tile.std() for tile in tiles]))
    check(contrast > 5, f"the samples are flat: median standard deviation {contrast:.1f} grey levels, expected over 5")
    check(len({tile.tobytes() for tile in tiles}) == len(tiles), "two samples are the same picture")


def main() -> None:
    run, samples = map(Path, sys.argv[1:])
    for stage in check_files(run):
        check_loss(stage)
    check_samples(samples)


if __name__ == "__main__":
    main()
