"""Images of a run for evaluation: made block by block, looked at once, not stored unless somebody needs them again.

Image ``i`` has the seed ``image_seed(seed, i)`` and the class that is its turn, so it is the same in every process,
after every resume and for every number of images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from cdm.artifacts import make_folder, told_by_path
from cdm.cascade import Cascade, StageImage, image_seed, run_stage
from cdm.config import SamplingConfig, to_dict
from cdm.data.batches import StageImages
from cdm.data.pixels import FULL_8, Window, to_float, to_images
from cdm.errors import CorruptError, UserError
from cdm.evaluate.checked_rows import damaged, marks_of, read_marks, write_marks, write_rows
from cdm.evaluate.extractors.base import Extractor
from cdm.evaluate.feature_store import FeatureStore
from cdm.pipeline.image_source import ClassIndex, Images, ImageSource, key_of
from cdm.pipeline.processes import Processes
from cdm.rng import Rng
from cdm.runtime import precision_name

Progress = Callable[[str, int, int], None]
"""``progress(what, done, total)`` in images."""


def no_progress(what: str, done: int, total: int) -> None:
    """Where nobody looks."""


# ---- sources ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunImages:
    """Samples of a cascade, at its last stage's size; 16 bits are scaled to 8."""

    cascade: Cascade
    settings: SamplingConfig
    seed: int
    labels: ClassIndex | None
    count: int
    what: str

    @property
    def key(self) -> str:
        cascade = self.cascade
        turn = None if self.labels is None else hashlib.sha256(self.labels.tobytes()).hexdigest()
        dtype = precision_name(cascade.stages[0].denoiser.dtype)
        return key_of("run", cascade.hash, to_dict(self.settings), self.seed, turn, dtype, cascade.device.type)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.cascade.class_names

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.cascade.stages[-1].shape

    def stages(self, start: int, stop: int) -> tuple[Images, ...]:
        labels = None if self.labels is None else self.labels[start:stop].tolist()
        seeds = [image_seed(self.seed, i) for i in range(start, stop)]
        sampled = self.cascade.sample(labels, seeds, settings=self.settings, batch_size=stop - start)
        return tuple(to_bytes(x, self.what) for x in sampled.images)


@dataclass(frozen=True)
class OracleImages:
    """Real images put in after stage ``after``, carried up by the stages above it: a stage without fault."""

    cascade: Cascade
    settings: SamplingConfig
    seed: int
    after: int
    low_res: StageImages
    window: Window
    labels: ClassIndex | None
    data: str  # fingerprint of the images put in
    called: str = ""
    numbers: ClassIndex | None = None  # of the run's images whose noise is used; None: 0, 1, 2, ...

    @property
    def what(self) -> str:
        return self.called or f"real images put in after stage {self.after}"

    @property
    def key(self) -> str:
        return key_of("oracle", self.cascade.hash, to_dict(self.settings), self.seed, self.after, self.data,
                      precision_name(self.cascade.stages[0].denoiser.dtype), self.cascade.device.type)  # fmt: skip

    @property
    def count(self) -> int:
        return len(self.low_res)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.cascade.class_names

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.cascade.stages[-1].shape

    def stages(self, start: int, stop: int) -> tuple[Images, ...]:
        numbers = range(start, stop) if self.numbers is None else self.numbers[start:stop].tolist()
        seeds = torch.tensor([image_seed(self.seed, i) for i in numbers])
        labels = None if self.labels is None else torch.from_numpy(self.labels[start:stop])
        x = to_float(np.array(self.low_res[start:stop]), self.window).to(self.cascade.device)
        made = carry_up(self.cascade, self.after, x, labels, seeds, self.settings)
        return tuple(to_bytes(images, self.what) for images in made)


@torch.no_grad()
def carry_up(
    cascade: Cascade,
    after: int,
    low_res: StageImage,
    labels: Int64[Tensor, " b"] | None,
    seeds: Int64[Tensor, " b"],
    settings: SamplingConfig,
) -> tuple[StageImage, ...]:
    """Clean images of stage ``after`` ``[B, C, s, s]`` in [-1, 1] through the stages above it: what each of them makes,
    non-truncated, for there is no x_t of a stored image."""
    x, made = low_res, []
    for stage in cascade.stages[after + 1 :]:
        own = stage.check_labels(labels if cascade.config.num_classes else None, len(x))
        own = None if own is None else own.to(x.device)
        aug_logsnr = stage.aug_logsnr(settings.aug_level[stage.index - 1])
        cond, _ = stage.condition(x, own, aug_logsnr, Rng(0, stage.index), seeds)
        x = run_stage(stage, cond, seeds, settings, settings.steps[stage.index]).image
        made.append(x)
    return tuple(made)


def to_bytes(x: Float[Tensor, "b c h w"], what: str) -> Images:
    """[-1, 1] to uint8 on the CPU. Raises ``UserError`` for NaN, which no image can hold."""
    bad = int((~torch.isfinite(x).flatten(1).all(dim=1)).sum())
    if bad:
        raise UserError(
            f"{bad} of {len(x)} images of {what} have pixels that are no numbers (NaN); expected finite ones: the "
            "weights have diverged, or try --precision fp32."
        )
    return to_images(x, FULL_8)


# ---- sinks -----------------------------------------------------------------------------------------------------------


@runtime_checkable
class Sink(Protocol):
    """Takes images of one stage by number and remembers which it has, also after a kill. ``stage``: place in what the
    source makes; -1: the last. ``count``: it wants as many, from the first on."""

    @property
    def stage(self) -> int: ...
    @property
    def count(self) -> int: ...
    def missing(self) -> Int64[np.ndarray, " m"]: ...
    def write(self, indices: Int64[np.ndarray, " b"], images: Images) -> None: ...


@dataclass(frozen=True)
class FeatureSink:
    """Features of the first ``store.count`` images."""

    extractor: Extractor
    store: FeatureStore
    stage: int = -1

    @property
    def count(self) -> int:
        return self.store.count

    def missing(self) -> Int64[np.ndarray, " m"]:
        return self.store.missing()

    def write(self, indices: Int64[np.ndarray, " b"], images: Images) -> None:
        self.store.write(indices, self.extractor(images))


class ImageStore:
    """The first ``count`` images as raw bytes on the disk, and a mark for each that is whole, which also checks it.

    Raises:
        CorruptError: an image is not what was written.
    """

    def __init__(self, folder: Path, key: str, count: int, shape: tuple[int, int, int], stage: int = -1) -> None:
        self.count, self.shape, self.stage = count, shape, stage
        self._size = int(np.prod(shape))
        stem = make_folder(folder) / f"images-{key}"
        self._pixels, self._marks = stem.with_suffix(".u8"), stem.with_suffix(".marks")
        for path in (self._pixels, self._marks):
            with told_by_path(path):
                path.touch()
        if bad := damaged(read_marks(self._marks, count), [(self._pixels, self._size)]):
            raise CorruptError(
                f"{len(bad)} of the images in {self._pixels} are not what was written; expected them whole: delete "
                f"{self._marks}, and they are made again."
            )

    def missing(self) -> Int64[np.ndarray, " m"]:
        return np.flatnonzero(read_marks(self._marks, self.count) == 0)

    def write(self, indices: Int64[np.ndarray, " b"], images: Images) -> None:
        """Pixels first, flushed; the marks after them."""
        rows = images.numpy().reshape(len(images), -1)
        write_rows(self._pixels, indices, rows)
        write_marks(self._marks, indices, marks_of([rows]))

    def images(self) -> UInt8[np.ndarray, "n c h w"]:
        """All of them, mapped from the disk; copy on write, so torch may wrap them."""
        return np.memmap(self._pixels, np.uint8, mode="c", shape=(self.count, *self.shape))


# ---- one pass --------------------------------------------------------------------------------------------------------


def fill(
    source: ImageSource, sinks: Sequence[Sink], processes: Processes, batch_size: int, progress: Progress,
    say: Callable[[str], None] | None = None,
) -> int:  # fmt: skip
    """Give every sink the images it misses, each block made once. Returns how many images this process made.

    Blocks begin at multiples of ``batch_size`` and are made whole, so a resume and several processes make the same
    batches as one process that is never stopped.
    """
    processes.wait()
    missing = [sink.missing() for sink in sinks]
    processes.wait()  # nobody writes before everybody has looked
    wanted = max((sink.count for sink in sinks), default=0)
    left = np.unique(np.concatenate([*missing, np.empty(0, dtype=np.int64)]))
    if say is not None and 0 < len(left) < wanted:
        say(f"going on: {wanted - len(left):,} of {wanted:,} images are done already")
    blocks = np.unique(left // batch_size)
    mine = [int(block) for block in blocks if processes.owns(int(block))]
    total = int(np.minimum((blocks + 1) * batch_size, source.count).sum() - (blocks * batch_size).sum())
    made = 0
    for done, block in enumerate(mine):
        progress(source.what, min(done * batch_size * processes.count, total), total)
        start, stop = block * batch_size, min((block + 1) * batch_size, source.count)
        images = source.stages(start, stop)
        for sink, own in zip(sinks, missing, strict=True):
            rows = own[(own >= start) & (own < stop)]
            if len(rows):
                sink.write(rows, images[sink.stage][torch.from_numpy(rows - start)])
        made += stop - start
    processes.wait()
    return made
