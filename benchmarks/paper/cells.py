"""The cells of the experiments: images of one arm at one level from one seed, as features on the disk.

A cell is a file, and beside it stands all that it hangs on: a run that was stopped goes on, and a cell of other weights
or settings is made anew. All cells of a seed share noise and classes, and what their last stage stands on: finished
low-res images are made once.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cdm.artifacts import make_folder, save_json, write_atomic
from cdm.cascade import Cascade, image_seed, load_config
from cdm.conditioning import make_low_res, upsample
from cdm.config import CascadeConfig, SamplingConfig, to_dict
from cdm.data.pixels import FULL_8, to_float
from cdm.evaluate.extractors.base import Extractor
from cdm.pipeline.generate import carry_up, to_bytes
from cdm.pipeline.image_source import key_of
from cdm.pipeline.reference import RealImages
from cdm.runtime import choose_device, choose_dtype
from cdm.stage import Stage, build_stage, check_config, load_weights
from paper.plan import PLAN

BLOCK = 128
GENERATED, REAL, HELD_OUT = "generated", "real", "held-out"


def load_stage(run: Path, k: int, device: torch.device) -> tuple[Stage, CascadeConfig]:
    config = load_config(run)
    stage = build_stage(config.stages[k], k, num_classes=config.num_classes, levels=config.data.levels)
    check_config(stage.config, run / stage.name)
    load_weights(stage, run / stage.name)
    return stage.to(device, choose_dtype("auto", device)).for_sampling(), config


def join(stages: list[tuple[Path, int]], device: torch.device | None = None) -> Cascade:
    """A cascade of stages of several runs: the k-th of each folder, which must be the next in place."""
    device = device or choose_device()
    loaded = [load_stage(run, k, device) for run, k in stages]
    made = [stage for stage, _ in loaded]
    for place, stage in enumerate(made):
        stage.index = place
        assert place == 0 or stage.config.low_res_size == made[place - 1].config.size, (place, stages)
    last = loaded[-1][1]
    own = CascadeConfig(
        recipe=last.recipe, seed=last.seed, class_names=last.class_names, data=last.data,
        stages=tuple(stage.config for stage in made),
    )  # fmt: skip
    return Cascade(own, made, device)


@dataclass(frozen=True)
class Cell:
    """level: None where no stage takes one. source: of the low-res images. base: a name in the plan's ``bases``, where
    it is not the testbed's own."""

    arm: str
    source: str
    level: float | None
    hand_over: str
    seed: int
    base: str = ""

    @property
    def name(self) -> str:
        level = "none" if self.level is None else f"{self.level:g}"
        return f"{self.arm}-{self.base and self.base + '-'}{self.source}-{level}-{self.hand_over}-{self.seed}"


@dataclass(frozen=True)
class Lab:
    """val, held_out: real images at the top size, whose low-res versions are put in: of other sets, and those that
    training held out."""

    work: Path
    val: RealImages
    held_out: RealImages
    extractor: Extractor
    count: int

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """Classes in turn, of generated and of real low-res images."""
        return indices % len(self.val.class_names)

    def picked(self, source: str, indices: np.ndarray) -> np.ndarray:
        """The real image below each: those of its class in turn, from the first again when all have come."""
        labels, asked = self.real(source).labels, self.labels(indices)
        assert labels is not None
        members = [np.flatnonzero(labels == k) for k in range(len(self.val.class_names))]
        turn = indices // len(members)
        return np.array([members[k][t % len(members[k])] for k, t in zip(asked, turn, strict=True)])

    def real(self, source: str) -> RealImages:
        """Whose low-res versions are put in; of generated ones: whose classes they have."""
        return self.held_out if source == HELD_OUT else self.val

    def path(self, cell: Cell, ending: str) -> Path:
        return make_folder(self.work / "cells") / f"{cell.name}{ending}"

    def rows(self, cell: Cell) -> np.ndarray:
        return np.load(self.path(cell, ".npy"))

    def told(self, cell: Cell) -> dict[str, Any]:
        return json.loads(self.path(cell, ".json").read_text())

    def key(self, cell: Cell, cascade: Cascade, settings: SamplingConfig) -> str:
        """Names all that the cell hangs on; of real low-res images also which ones they are."""
        real = self.real(cell.source)
        of = [cascade.hash, to_dict(settings), self.extractor.hash, real.fingerprint, self.count]
        if cell.source != GENERATED:
            of.append(self.picked(cell.source, np.arange(self.count)).tolist())
        return key_of(*of)

    def measure(self, cell: Cell, cascade: Cascade) -> None:
        """Make the cell, unless it is there with the same key."""
        settings = settings_of(cascade, cell)
        key = self.key(cell, cascade, settings)
        if self.path(cell, ".npy").exists() and self.told(cell)["key"] == key:
            return
        rows, kept, evaluations, began = [], [], (0,), time.perf_counter()
        for start in range(0, self.count, BLOCK):
            indices = np.arange(start, min(start + BLOCK, self.count))
            images, evaluations = self._images(cell, cascade, settings, indices)
            rows.append(self.extractor(images).by_name()["main"].numpy())
            kept.append(images[:52].numpy() if not start else images[:0].numpy())
            print(f"{cell.name}: {indices[-1] + 1} of {self.count}", flush=True)
        np.savez_compressed(self.path(cell, "-pictures.npz"), images=np.concatenate(kept))
        self.path(cell, ".npy").unlink(missing_ok=True)  # of another key
        save_json(self.path(cell, ".json"), {
            "key": key, "images": self.count, "evaluations": list(evaluations), "weights": cascade.hash,
            "seconds": round(time.perf_counter() - began, 2),
        })  # fmt: skip
        part = self.path(cell, ".part")
        with open(part, "wb") as file:
            np.save(file, np.concatenate(rows))
        part.rename(self.path(cell, ".npy"))

    def _images(
        self, cell: Cell, cascade: Cascade, settings: SamplingConfig, indices: np.ndarray
    ) -> tuple[torch.Tensor, tuple[int, ...]]:
        """uint8 at the size of the extractor's images."""
        seeds = torch.tensor([image_seed(cell.seed, int(i)) for i in indices])
        labels, below = torch.from_numpy(self.labels(indices)), len(cascade.stages) - 2
        if below < 0 or cell.hand_over == "truncated":
            sampled = cascade.sample(labels, seeds, settings=settings, batch_size=len(seeds))
            made, evaluations = sampled.images[-1], sampled.evaluations
        else:
            if cell.source == GENERATED:
                low_res, spent = self._below(cell, cascade, settings, labels, seeds)
            else:
                real, spent = self.real(cell.source), (0,) * (below + 1)
                picked = real.pick(self.picked(cell.source, indices))
                low_res = make_low_res(to_float(picked, FULL_8), cascade.config.sizes[below])
            made = carry_up(cascade, below, low_res.to(cascade.device), labels, seeds, settings)[-1]
            evaluations = (*spent, settings.steps[-1])
        size = self.val.shape[-1]
        shown = made if made.shape[-1] == size else upsample(made, size)
        return to_bytes(shown, cell.name), evaluations

    def _below(
        self, cell: Cell, cascade: Cascade, settings: SamplingConfig, labels: torch.Tensor, seeds: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[int, ...]]:
        """Images that the last stage stands on, and their evaluations: the same for all its levels and all arms that
        share what is below it, so they are made once."""
        below = len(cascade.stages) - 2
        own = replace(settings, steps=settings.steps[: below + 1], aug_level=settings.aug_level[:below])
        hashes = [stage.hash for stage in cascade.stages[: below + 1]]
        key = key_of(hashes, to_dict(own), labels.tolist(), seeds.tolist())
        path = make_folder(self.work / "low-res") / f"{key}.npz"
        if not path.exists():
            sampled = cascade.sample(labels, seeds, settings=settings, stop_after=below, batch_size=len(seeds))
            stored = to_bytes(sampled.images[-1], cell.name)
            arrays = {"images": stored.numpy(), "evaluations": np.array(sampled.evaluations)}
            write_atomic(path, lambda file: np.savez(file, **arrays))
        with np.load(path) as kept:
            return to_float(kept["images"], FULL_8), tuple(kept["evaluations"].tolist())


def settings_of(cascade: Cascade, cell: Cell) -> SamplingConfig:
    """The plan's samplers; a level is that of the last stage, those below it have 0.1."""
    sampling, count = dict(PLAN["sampling"]), len(cascade.stages)
    if cell.base:
        other = PLAN["bases"][cell.base]
        sampling |= {"base": other.get("sampling", sampling["base"]), "sr": other.get("sr", sampling["sr"])}
    kinds = ["direct"] if cell.arm.startswith("direct") else ["base", *["sr"] * (count - 1)]
    chosen: dict[str, Any] = {
        "sampler": ",".join(sampling[kind][0] for kind in kinds),
        "steps": tuple(sampling[kind][1] for kind in kinds),
        "grid": "logsnr",
    }
    if count > 1:
        chosen["hand_over"] = cell.hand_over
    noisy = [stage.config.augmentation.has_noise for stage in cascade.stages[1:]]
    if any(noisy):
        below = [0.1] * (count - 2)
        chosen["aug_level"] = (*below, 0.0 if cell.level is None else cell.level)
    return cascade.settings(**chosen)
