"""Memory told from shapes, against updates that really run: by the tensors alive, and by the operating system."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.e2e.command import environment

from cdm.config import DataConfig, StageConfig, from_dict, to_dict
from cdm.recipes import make_config
from cdm.recipes.facts import Facts
from cdm.rng import Rng
from cdm.stage import Stage, build_stage
from cdm.train.memory import LiveBytes, training_memory
from cdm.train.step import Trainee
from cdm.types import Batch, Cond

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CLASSES = 10
LOOK = 64
GB = 10**9

KINDS: dict[str, tuple[str, int, torch.dtype, dict[str, Any]]] = {
    "base, Muon, bf16": ("small", 0, torch.bfloat16, {"batch_size": 224}),
    "base, AdamW, float32, in parts": (
        "small", 0, torch.float32, {"optimizer": "adamw", "batch_size": 128, "micro_batch": 64},
    ),
    "SR, Muon, float32, checkpointing": ("small", 1, torch.float32, {"batch_size": 96, "checkpointing": True}),
    "SR, AdamW, bf16": ("demo", 1, torch.bfloat16, {"optimizer": "adamw", "batch_size": 96, "ema_sigma_rel": (0.05,)}),
}  # fmt: skip


def stage_of(recipe: str, k: int, classes: int = CLASSES, **optim: Any) -> StageConfig:
    sizes = (32, 64, 256) if recipe.startswith("cdm") else (16, 64)
    names = tuple(map(str, range(classes)))
    stage = make_config(recipe, Facts(sizes, names, DataConfig(channels=3), num_images=1000, seed=0)).stages[k]
    return replace(stage, optim=replace(stage.optim, **optim))


def train_and_look(config: StageConfig, dtype: torch.dtype, updates: int) -> list[Any]:
    """What a run does: updates of a stage, and held-out images through a copy of it. Returns what it holds."""
    index = 0 if config.is_base else 1
    stage, shadow = (build_stage(config, index, num_classes=CLASSES, seed=0).to("cpu", dtype) for _ in range(2))
    shadow.net.eval().requires_grad_(False)
    trainee = Trainee(stage)
    size, count = config.optim.crop_size or config.size, config.optim.batch_size
    for k in range(updates):
        batch = Batch(torch.zeros(count, 3, size, size), torch.zeros(count, dtype=torch.int64), torch.arange(count))
        trainee.step(batch, Rng(0, index), 1e-4)
        if k == 0:
            look(shadow)
    return [trainee, shadow]


@torch.no_grad()
def look(stage: Stage) -> None:
    size, level = stage.config.size, torch.zeros(LOOK)
    x = torch.zeros(LOOK, 3, size, size)
    cond = Cond(torch.zeros(LOOK, dtype=torch.int64))
    if not stage.config.is_base:
        cond = Cond(cond.labels, torch.zeros_like(x), level)
    stage.denoiser.raw(x, level, cond)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_that_of_the_tensors_of_real_updates(kind: str) -> None:
    """The noise of a batch is all that the estimate leaves out, and it is gone before the network runs."""
    recipe, k, dtype, optim = KINDS[kind]
    config = stage_of(recipe, k, **optim)
    with LiveBytes() as real:
        train_and_look(config, dtype, 2)
    assert training_memory(config, CPU, dtype, (LOOK,)) == pytest.approx(real.peak, rel=0.05)


CHILD = """
import json, sys
from pathlib import Path
import torch
from cdm.config import StageConfig, from_dict
from tests.train.test_memory import stage_of, train_and_look

def resident(name):
    return 1024 * int(Path("/proc/self/status").read_text().split(name)[1].split()[0])

dtype = getattr(torch, sys.argv[2])
for k in range(2):
    train_and_look(stage_of("small", k, batch_size=1), dtype, 1)  # the library's code and buffers are in memory now
base = resident("VmRSS:")
held = train_and_look(from_dict(StageConfig, json.loads(sys.argv[1])), dtype, 3)
print(resident("VmHWM:") - base)
"""
DIRECT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc gives each larger block back at once, so that the process holds what its tensors take and not a heap's gaps."""


def resident_bytes(config: StageConfig, dtype: torch.dtype, **env: str) -> int:
    """Growth of a process's peak resident memory by training ``config``."""
    line = [sys.executable, "-c", CHILD, json.dumps(to_dict(config)), str(dtype).removeprefix("torch.")]
    path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), environment()["PYTHONPATH"], os.getcwd()])
    done = subprocess.run(line, capture_output=True, text=True, env=environment(**env) | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_within_15_percent_of_a_process() -> None:
    """One configuration, another one each time; the operating system counts."""
    seed = random.SystemRandom().randrange(10**6)
    kind = random.Random(seed).choice(list(KINDS))
    recipe, k, dtype, optim = KINDS[kind]
    config = stage_of(recipe, k, **optim)
    told = training_memory(config, CPU, dtype, (LOOK,))
    measured = resident_bytes(config, dtype, **DIRECT)
    print(f"seed {seed}: {kind}: {told / GB:.3f} GB told, {measured / GB:.3f} measured")
    assert told == pytest.approx(measured, rel=0.15), f"seed {seed}: {kind}"


def test_the_256_stage_of_the_paper_fits_80_gb() -> None:
    """As the recipe has it, in bf16 with checkpointing, micro-batches of 4 to 64 fit one GPU of 80 GB, with the
    recordings of validation and previews; 128 do not."""
    fits = {}
    for count in (4, 64, 128):
        config = stage_of("cdm-imagenet-256", 2, classes=1000, micro_batch=count)
        assert config.size == 256 and config.optim.checkpointing and config.optim.batch_size == 1024
        fits[count] = training_memory(config, CUDA, torch.bfloat16, (64, 8)) < 80 * GB
    assert fits == {4: True, 64: True, 128: False}


def test_parts_of_the_memory() -> None:
    """Numbers of half the width take about half; checkpointing keeps fewer; more at once is more."""
    config = stage_of("small", 1, batch_size=64)
    wide = training_memory(config, CPU, torch.float32)
    state = training_memory(stage_of("small", 1, batch_size=1), CPU, torch.float32)
    assert 0.4 < (training_memory(config, CPU, torch.bfloat16) - state) / (wide - state) < 0.65
    kept = stage_of("small", 1, batch_size=64, checkpointing=True)
    assert training_memory(kept, CPU, torch.float32) < wide
    assert training_memory(config, CPU, torch.float32, (640,)) > wide
    assert from_dict(StageConfig, to_dict(config)) == config
