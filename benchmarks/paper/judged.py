"""How many images of the frozen base are read as the class asked for.

The reader is a small ResNet trained on real images that were reduced to the base's size and enlarged again, so it
knows what the base draws and nothing more. Its own score on real images that it has not seen is the ceiling.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdm.artifacts import make_folder, save_json
from cdm.cascade import Cascade, image_seed
from cdm.conditioning import make_low_res, upsample
from cdm.data.pixels import FULL_8, to_float
from cdm.evaluate.intervals import proportion
from cdm.nn.classifier import predict, train_classifier
from cdm.pipeline.generate import to_bytes
from cdm.pipeline.reference import RealImages
from paper.cells import GENERATED, Cell, settings_of
from paper.plan import PLAN

READ_AT, EPOCHS, SEED, BLOCK = 32, 12, 0, 256


def judged_path(work: Path) -> Path:
    return work / "judged.json"


def judge_base(base: Cascade, train: RealImages, val: RealImages, work: Path) -> dict[str, Any]:
    """Share of the base's images, and of real ones at its size, that are read rightly, with 95 % intervals."""
    size = base.config.sizes[0]
    reader = train_classifier(reduced(train, size), labels_of(train), epochs=EPOCHS, seed=SEED)
    labels = torch.arange(PLAN["images"]) % len(base.class_names)
    settings = settings_of(base, Cell("base", GENERATED, None, "non_truncated", PLAN["choose_seed"]))
    made = list[Tensor]()
    for rows in torch.arange(len(labels)).split(BLOCK):
        seeds = [image_seed(PLAN["choose_seed"], int(i)) for i in rows]
        sampled = base.sample(labels[rows], seeds, settings=settings, batch_size=len(rows))
        made.append(to_bytes(upsample(sampled.images[0].cpu(), READ_AT), "the base"))
    told = {
        what: asdict(proportion(int((predict(reader, images) == asked).sum()), len(asked), what))
        for what, images, asked in (
            ("generated", torch.cat(made), labels),
            ("real", reduced(val, size), labels_of(val)),
        )
    }
    told = {"size": size, "weights": base.hash, "chance": 1 / len(base.class_names)} | told
    save_json(judged_path(make_folder(work)), told)
    return told


def labels_of(real: RealImages) -> Tensor:
    assert real.labels is not None
    return torch.from_numpy(real.labels).long()


def reduced(real: RealImages, size: int) -> Tensor:
    """uint8 ``[N, C, 32, 32]``: what is left of the images at ``size``."""
    parts = torch.arange(real.count).split(1024)
    return torch.cat([
        to_bytes(upsample(make_low_res(to_float(real.pick(rows.numpy()), FULL_8), size), READ_AT), real.what)
        for rows in parts
    ])  # fmt: skip
