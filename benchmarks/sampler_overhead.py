"""Time of sampling outside the network, against the network's own time.

    python benchmarks/sampler_overhead.py [--net-ms 40] [--out benchmarks/results/sampler_overhead.json]

The 64x64 SR stage of the recipe ``small`` (16 to 64 pixels, 26 classes), batch 16, its default numbers of steps. Once
with the real network timed alone, once with a network that returns a ready tensor: what remains is everything else,
from the denoiser's conversions and the sampler's arithmetic to clipping and fresh noise. Each figure is the fastest of
several interleaved runs, which other load on the machine disturbs least. ``--net-ms`` states a network time instead.
Exits 1 if a sampler takes more than its limit.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import check_out, made, one_sentence, save
from torch import Tensor

from cdm.config import DataConfig, StageConfig
from cdm.denoiser import NetDenoiser
from cdm.nn.unet import UNet
from cdm.recipes import make_config
from cdm.recipes.facts import Facts
from cdm.rng import Purpose, Rng
from cdm.runtime import choose_device, choose_dtype, precision_name
from cdm.samplers import SAMPLERS, drain, make_grid, num_steps
from cdm.types import Cond

SCRIPT = "sampler_overhead.py"
BATCH, STEPS, REPEATS = 16, 16, 9
LIMITS = {"dpmpp": 0.03, "ddim": 0.03, "heun": 0.03}
NOISY_LIMIT = 0.08  # of all others, which draw fresh noise in each step
SIZES = (16, 64)
CLASSES = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


class NoNet(UNet):
    """Answers at once, with a tensor of the shape, precision and memory order of the real answer."""

    def __init__(self, answer: Tensor) -> None:
        torch.nn.Module.__init__(self)
        self.answer = answer

    def forward(self, *_: object) -> Tensor:  # type: ignore[override]
        return self.answer


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def sampling(name: str, stage: StageConfig, answer: Tensor, dtype: torch.dtype, cond: Cond) -> Callable[[], Tensor]:
    """One whole sampler run around a network that costs nothing, as a cascade runs it."""
    denoiser = NetDenoiser(NoNet(answer), stage, dtype)
    device, shape, index, rng = answer.device, (stage.channels, stage.size, stage.size), torch.arange(BATCH), Rng(0, 1)
    grid = make_grid(*denoiser.logsnr_range, num_steps(name, STEPS))

    def noise(i: int) -> Tensor:
        return rng.normal(Purpose.SAMPLER_NOISE, index, shape, step=i).to(device)

    def run() -> Tensor:
        x = rng.normal(Purpose.START_NOISE, index, shape).to(device)
        return drain(SAMPLERS[name](denoiser, x, grid, cond, clip=lambda x0: x0.clamp(-1, 1), noise=noise))

    return run


def measure(net_ms: float | None) -> dict[str, Any]:
    device = choose_device()
    dtype = choose_dtype("auto", device)
    stage = make_config("small", Facts(sizes=SIZES, data=DataConfig(), class_names=CLASSES, num_images=10000)).stages[1]
    net = UNet(stage.net).to(device=device, memory_format=torch.channels_last).eval()
    labels = torch.arange(BATCH, device=device)
    low_res = torch.zeros(BATCH, stage.channels, stage.size, stage.size, device=device)
    level = torch.full((BATCH,), 2.0, device=device)
    cond = Cond(labels, low_res, level)
    x = torch.cat([torch.randn_like(low_res), low_res], 1).contiguous(memory_format=torch.channels_last)

    def forward() -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return net(x, level, labels, level)

    with torch.inference_mode():
        answer = forward()
        runs = {name: sampling(name, stage, answer, dtype, cond) for name in SAMPLERS}
        times: dict[str, list[float]] = {name: [] for name in ["net", *runs]}
        for _ in range(REPEATS):
            times["net"].append(seconds(forward))
            for name, run in runs.items():
                times[name].append(seconds(run) / (2 * num_steps(name, STEPS) - 1 if "heun" in name else STEPS))
    measured = min(times.pop("net"))
    net_seconds = measured if net_ms is None else net_ms / 1000
    return {
        "stage": f"{stage.size}x{stage.size}, batch {BATCH}, {STEPS} steps",
        "machine": f"{device.type}, {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "precision": precision_name(dtype),
        "net_ms": round(net_seconds * 1000, 3),
        "net_time_is": "measured" if net_ms is None else "stated",
        "samplers": {
            name: {
                "outside_ms_per_evaluation": round(min(values) * 1000, 3),
                "overhead": round(min(values) / net_seconds, 4),
                "limit": LIMITS.get(name, NOISY_LIMIT),
            }
            for name, values in times.items()
        },
    }


def positive(text: str) -> float:
    if not 0 < (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no time; expected a number above 0")
    return value


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--net-ms", type=positive, help="time of one evaluation; left out, it is measured")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sampler_overhead.json")
    options = parser.parse_args(argv)
    with one_sentence(SCRIPT):
        check_out(options.out)
    how = made(SCRIPT, argv, choose_device())
    result = measure(options.net_ms)
    print(json.dumps(result, indent=2))
    save(options.out, result, how)
    over = [name for name, row in result["samplers"].items() if row["overhead"] > row["limit"]]
    if over:
        sys.exit(f"sampler_overhead: over its limit: {', '.join(over)}")


if __name__ == "__main__":
    main()
