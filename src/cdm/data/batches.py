"""Training batches of every stage: index, crop, flip, convert. Each stage's images are made once, in advance."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8, UInt16
from torch import Tensor

from cdm.conditioning import make_low_res
from cdm.data.cache import FileRows, MemoryRows, map_rows
from cdm.data.image_array import ImageArray
from cdm.data.order import Order
from cdm.data.pixels import Window, num_levels, send, to_float, to_float_on, to_images
from cdm.errors import UserError
from cdm.rng import Purpose, Rng
from cdm.types import Batch, Image

_CHUNK = 256  # images downsampled at a time
_CPU = torch.device("cpu")

StageImages = UInt8[np.ndarray, "n c s s"] | UInt16[np.ndarray, "n c s s"]
Lower = UInt8[np.ndarray, "n c low low"] | UInt16[np.ndarray, "n c low low"]
Crops = UInt8[np.ndarray, "b c crop crop"] | UInt16[np.ndarray, "b c crop crop"]


class Gathered(NamedTuple):
    """A batch before it travels: images as they are stored, cropped and flipped."""

    images: Crops
    labels: Int64[Tensor, " b"] | None
    positions: Int64[Tensor, " b"]


class Pyramid:
    """The images of a data set at every stage's size, as stored integers; the lower ones are made when first asked for.

    Each size is made from the next higher one by ``make_low_res``, so a stage trains on exactly the images that the
    next stage gets as its clean low-res (DESIGN decision 5).
    """

    def __init__(self, array: ImageArray, sizes: tuple[int, ...]) -> None:
        """``sizes``: base first; the last is the array's own."""
        assert sizes[-1] == array.size, (sizes, array.size)
        self.sizes, self.window = sizes, array.window
        self._cache_file = array.cache_file
        self._levels: dict[int, StageImages] = {array.size: array.images}

    def at(self, stage: int) -> StageImages:
        """Images of ``stage`` (0: the base), ``[N, C, s, s]``."""
        size = self.sizes[stage]
        if size not in self._levels:
            self._levels[size] = self._shrink(self.at(stage + 1), size)
        return self._levels[size]

    def _shrink(self, images: StageImages, size: int) -> Lower:
        shape = (images.shape[1], size, size)
        store: MemoryRows | FileRows = MemoryRows(len(images), shape, images.dtype)
        if self._cache_file is not None:
            path = _level_path(self._cache_file, self.sizes, size, self.window)
            if (cached := map_rows(path, len(images), shape, images.dtype)) is not None:
                return cached
            store = FileRows(path, shape, images.dtype)
        with store:
            for start in range(0, len(images), _CHUNK):
                x = to_float(np.array(images[start : start + _CHUNK]), self.window)
                low_res = make_low_res(x, size, num_levels(self.window))
                store.append(to_images(low_res, self.window).numpy())
            return store.finish()


def _level_path(cache_file: Path, sizes: tuple[int, ...], size: int, window: Window) -> Path:
    """Name of a lower level beside the cached images: all that it depends on is in it."""
    chain = "-".join(str(s) for s in sizes[sizes.index(size) :])
    return cache_file.with_name(f"{cache_file.stem}-{chain}-{window[0]}-{window[1]}.pixels")


class TrainingImages:
    """Images to train or to validate on: rows of a ``Pyramid`` with their labels, in the order of the stream."""

    def __init__(
        self,
        array: ImageArray,
        sizes: tuple[int, ...],
        *,
        rows: Int64[np.ndarray, " n"] | None = None,
        pyramid: Pyramid | None = None,
        flip: bool = False,
        balanced: bool = False,
    ) -> None:
        """
        Args:
            sizes: of the stages, base first; the last is the array's own.
            rows: images of ``array`` to use; None: all.
            pyramid: shared with another part of the same array (training and validation).
            flip: mirror half of the images.
            balanced: every class equally often.
        """
        self.array = array
        self.sizes = sizes
        self.pyramid = pyramid or Pyramid(array, sizes)
        self.rows = np.arange(len(array)) if rows is None else rows
        self.labels = None if array.labels is None else array.labels[self.rows]
        self.flip = flip
        if balanced and self.labels is None:
            raise UserError("balanced sampling needs classes; got images without class folders: leave --balanced out.")
        self._order = Order(len(self.rows), self.labels, balanced=balanced)

    def __len__(self) -> int:
        return len(self.rows)

    def spread(self, count: int) -> Int64[Tensor, " b"]:
        """Indices of at most ``count`` images, evenly spread: images stand class by class, so the first are of one."""
        return torch.linspace(0, len(self) - 1, min(count, len(self)), dtype=torch.float64).round().long()

    def target(self, stage: int, indices: Int64[Tensor, " b"]) -> Image:
        """Clean images ``[B, C, s, s]`` of ``stage``, float32 in [-1, 1], neither cropped nor flipped."""
        return to_float(np.asarray(self.pyramid.at(stage)[self.rows[indices.numpy()]]), self.pyramid.window)

    def batch(
        self,
        stage: int,
        rng: Rng,
        positions: Int64[Tensor, " b"],
        *,
        crop_size: int = 0,
        device: torch.device = _CPU,
    ) -> Batch:
        """The images at ``positions`` of the training stream, flipped and cropped as drawn for those positions.

        Args:
            rng: of this stage (``rng.at_stage(stage)``).
            positions: on the CPU.
            device: where the batch is to be; it is the same to the last bit everywhere.
            crop_size: side of a random square crop at multiples of the stage's factor, so that its low-res image is
                the same crop of the low-res image; 0: the whole image.
        """
        return self.place(self.gather(stage, rng, positions, crop_size=crop_size), device)

    def gather(self, stage: int, rng: Rng, positions: Int64[Tensor, " b"], *, crop_size: int = 0) -> Gathered:
        """The part of ``batch`` that no device is needed for."""
        indices = self._order.position_to_index(rng, positions)
        images = self.pyramid.at(stage)
        rows = self.rows[indices.numpy()]
        if crop_size and crop_size < self.sizes[stage]:
            picked = self._crops(images, stage, rows, rng, positions, crop_size)
        else:
            picked = np.asarray(images[rows])
        if self.flip:
            mirrored = rng.below(Purpose.FLIP, positions, 2).numpy() == 1
            picked[mirrored] = picked[mirrored, :, :, ::-1]
        labels = None if self.labels is None else torch.from_numpy(self.labels)[indices]
        return Gathered(picked, labels, positions)

    def place(self, gathered: Gathered, device: torch.device = _CPU) -> Batch:
        """The rest of it."""
        labels = None if gathered.labels is None else send(gathered.labels, device)
        x0 = to_float_on(device, gathered.images, self.pyramid.window)
        return Batch(x0=x0, labels=labels, index=send(gathered.positions, device))

    def _crops(
        self,
        images: StageImages,
        stage: int,
        rows: Int64[np.ndarray, " b"],
        rng: Rng,
        positions: Int64[Tensor, " b"],
        size: int,
    ) -> Crops:
        factor = self.sizes[stage] // self.sizes[stage - 1] if stage else 1
        if size % factor:
            raise UserError(
                f"a crop must be a multiple of the factor {factor}; got {size}: use {size - size % factor}."
            )
        choices = (self.sizes[stage] - size) // factor + 1
        tops = (factor * rng.below(Purpose.CROP, positions, choices, step=0)).tolist()
        lefts = (factor * rng.below(Purpose.CROP, positions, choices, step=1)).tolist()
        cut = [images[row, :, y : y + size, x : x + size] for row, y, x in zip(rows, tops, lefts, strict=True)]
        return np.stack(cut)
