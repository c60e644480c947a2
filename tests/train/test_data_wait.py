"""Data is not the bottleneck: the real loader under the real loop, on the smallest nets that a recipe makes."""

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from cdm.artifacts import make_folder, read_log
from cdm.config import DataConfig
from cdm.data.arrays import load_images
from cdm.data.batches import TrainingImages
from cdm.data.source import open_source
from cdm.recipes import make_config
from cdm.recipes.facts import Facts
from cdm.stage import build_stage
from cdm.train import loop
from cdm.train.events import Events
from cdm.train.log import TrainLog, TrainProgress
from cdm.train.loop import StageJob, train_stage

SIZES, BATCH, STEPS = (16, 32), 64, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (320, 32, 32, 3), dtype=np.uint8)
    for k, image in enumerate(pixels):
        make_folder(root / "ab"[k % 2])
        Image.fromarray(image).save(root / "ab"[k % 2] / f"{k:03}.png")
    return root


@pytest.mark.parametrize("stage_index", [0, 1])
@pytest.mark.parametrize("limit", [None, 0], ids=["in memory", "mapped"])
def test_waiting_for_data_is_under_2_percent(
    stage_index: int, limit: int | None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In processor time, which other load on the machine does not lengthen."""
    array = load_images(open_source(folder), SIZES[-1], cache_dir=tmp_path / "cache", memory_limit=limit)
    assert isinstance(array.images, np.memmap) == (limit == 0)
    images = TrainingImages(array, SIZES, flip=True)
    images.pyramid.at(stage_index)  # made once in a run
    facts = Facts(SIZES, array.class_names, DataConfig(), len(images))
    config = make_config("demo", facts).stages[stage_index]
    assert config.optim.batch_size == BATCH
    stage, shadow = (build_stage(config, stage_index, num_classes=2, seed=0).to("cpu", torch.float32) for _ in "ab")
    events = Events(tmp_path / "events.jsonl")
    events.append("budget", stage=stage_index, at=0, images=STEPS * BATCH, checkpoint_images=STEPS * BATCH, seconds=0.0)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=time.process_time))
    job = StageJob(
        stage=stage,
        shadow=shadow,
        folder=make_folder(tmp_path / stage.name),
        batches=lambda rng, positions: images.batch(stage_index, rng, positions),
        seed=0,
    )
    with TrainProgress(stage.name, STEPS * BATCH, console=Console(quiet=True)) as progress:
        train_stage(job, events, TrainLog(job.folder, stage_index), progress)
    assert 0 < read_log(job.folder / "log.jsonl")[-1]["data_wait"] < loop.DATA_WAIT
