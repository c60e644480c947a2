"""``cdm sample`` and ``cdm upscale``: images from a run folder into files that tell how they were made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from cdm.artifacts import make_folder, write_atomic
from cdm.cascade import Cascade, Progress, Samples, image_seed
from cdm.config import SamplingConfig, from_dict, to_dict
from cdm.data.decode import area_down, centre_crop_square, decode, to_bit_depth
from cdm.data.pixels import to_float, to_images
from cdm.data.save import read_png_info, save_png
from cdm.errors import UserError
from cdm.evaluate.pictures import class_grid, png_bytes
from cdm.pipeline.asks import Asks, class_of, file_name, suffix_of
from cdm.pipeline.request import check_seed
from cdm.runtime import precision_name
from cdm.train.log import counted
from cdm.types import Image

Say = Callable[[str], None]
GRID_LIMIT = 400
"""Images that still make a sheet worth looking at."""
WRITERS = 16
"""Files written at once: each waits until the disk has it, one after another 6 times as long."""
BATCHES_A_TURN = 8
"""Batches that go through a stage before the next where each turn moves weights."""
Watch = Callable[[int], AbstractContextManager[Progress]]
"""Shows how the making of so many images goes on."""


@dataclass(frozen=True)
class _Files:
    """Where each image asked for goes, and what its file tells of its making."""

    cascade: Cascade
    asks: Asks
    out: Path
    seed: int
    told: dict[str, Any]

    def path(self, i: int) -> Path:
        return self.out / file_name(self.cascade, self.asks[i], self.seed)

    def info(self, i: int) -> dict[str, Any]:
        ask = self.asks[i]
        return self.told | {"class": class_of(self.cascade, ask), "index": ask.index}

    def save(self, i: int, image: Tensor) -> None:
        save_png(self.path(i), image, self.info(i))

    def kept(self) -> bytearray:
        """A byte for each image, 1 where its file holds just what would be made: weights, settings, class and number
        are the same. Refuses any other file that stands in the way."""
        kept, others = bytearray(len(self.asks)), []
        for i in range(len(self.asks)):
            path = self.path(i)
            if path.exists():
                kept[i] = self._is_made(i, path)
                if not kept[i]:
                    others.append(path)
        _refuse(others, "--out or --seed")
        return kept

    def _is_made(self, i: int, path: Path) -> bool:
        try:
            known = read_png_info(path)
        except UserError:
            return False
        return {**known, "run": self.told["run"]} == self.info(i)  # the same run may be called by another path


def sample_to_files(
    cascade: Cascade, asks: Asks, *, run: str, seed: int, settings: SamplingConfig, stop_after: int, out: Path,
    force: bool, batch_size: int | None, weights: str, watch: Watch, say: Say,
) -> Path:  # fmt: skip
    """Sample ``asks`` and write one PNG each, batch by batch, and a sheet of all. Files that an earlier call with the
    same weights and settings left are kept and not made again; any other file is refused without ``force``.
    ``batch_size`` None: as the memory has room for. Returns the first image's path."""
    check_seed(seed)
    told = {
        "made_by": "cdm sample",
        "run": run,
        "seed": seed,
        "stage": stop_after,
        "settings": to_dict(settings),
        "weights": weights,
        "weights_hash": cascade.hash,
        "precision": precision_name(cascade.stages[0].denoiser.dtype),
    }
    files = _Files(cascade, asks, out, seed, told)
    kept = bytearray(len(asks)) if force else files.kept()
    if any(kept) and not all(kept):
        say(f"{sum(kept):,} of {counted(len(asks), 'image')} are there from an earlier call; going on with the rest")
    make_folder(out)
    for label in asks.labels:
        make_folder(files.path(asks.labels.index(label) * asks.count).parent)
    sampled, shown = _make(files, kept, settings, stop_after, batch_size, watch, say)
    if sampled is None:
        told = f"nothing to do: {counted(len(asks), 'image')} in {out}"
        if len(asks) <= GRID_LIMIT and not (out / "grid.png").exists():  # lost, or not made before a stop
            sheet = _save_sheet(cascade, asks, _read_back(files), out, force)
            told = f"all images are there; their sheet is now in {sheet}"
        say(told)
        return files.path(0)
    saved = sum(sampled.saved_evaluations)
    sheet = ""
    if len(asks) <= GRID_LIMIT:
        stages = _read_back(files) if any(kept) else [torch.cat(parts) for parts in zip(*shown, strict=True)]
        sheet = f", all on one sheet in {_save_sheet(cascade, asks, stages, out, force)}"
    say(
        f"{counted(len(asks), 'image')} in {out}{sheet}; {'+'.join(map(str, sampled.evaluations))} network "
        "evaluations each" + (f", {saved} spared by stopping early" if saved else "")
    )
    return files.path(0)


def _make(
    files: _Files, kept: bytearray, settings: SamplingConfig, stop_after: int, batch_size: int | None, watch: Watch,
    say: Say,
) -> tuple[Samples | None, list[list[Tensor]]]:  # fmt: skip
    """Make and write what is not ``kept``. Returns the last samples, and the images of all stages if a sheet can show
    them."""
    cascade, asks = files.cascade, files.asks
    size = cascade.auto_batch_size(stop_after) if batch_size is None else batch_size
    at_once = BATCHES_A_TURN if cascade.offload else 1
    sampled, shown, begin = None, [], 0
    with watch(sum(map(len, _batches(kept, size)))) as progress, ThreadPoolExecutor(WRITERS) as pool:
        while batches := list(islice(_batches(kept, size, begin), at_once)):
            rows = [i for batch in batches for i in batch]
            labels = [label for i in rows if (label := asks[i].label) is not None]
            seeds = [image_seed(files.seed, asks[i].index) for i in rows]
            sampled = cascade.sample(
                labels or None, seeds, settings=settings, stop_after=stop_after, batch_size=size, progress=progress,
                say=say,
            )  # fmt: skip
            size, begin = sampled.batch_size, rows[-1] + 1
            images = to_images(sampled.images[-1], cascade.config.data.window)
            new = [k for k, i in enumerate(rows) if not kept[i]]
            list(pool.map(files.save, [rows[k] for k in new], [images[k] for k in new]))
            if len(asks) <= GRID_LIMIT:
                shown.append([*(to_images(x, cascade.config.data.window) for x in sampled.images[:-1]), images])
    return sampled, shown


def _batches(kept: bytearray, size: int, begin: int = 0) -> Iterator[range]:
    """The numbers of the images in each batch that is not wholly kept, from ``begin`` on. A batch is made as a whole:
    in part, rounding would differ."""
    for start in range(begin, len(kept), size):
        end = min(start + size, len(kept))
        if kept.find(0, start, end) >= 0:
            yield range(start, end)


def _read_back(files: _Files) -> list[Tensor]:
    """The last stage's images from their files: the lower stages of kept ones are not stored."""
    paths, channels = map(files.path, range(len(files.asks))), files.cascade.config.data.channels
    pixels = [decode(path.read_bytes(), channels).transpose(2, 0, 1) for path in paths]
    return [torch.from_numpy(np.stack(pixels))]


def _save_sheet(cascade: Cascade, asks: Asks, stages: list[Tensor], out: Path, force: bool) -> Path:
    """All images of this call on one sheet, low-res beside high-res: ``grid.png``, or the next free name."""
    path, number = out / "grid.png", 1
    while path.exists() and (not force or path.is_dir()):  # a class may be called grid.png
        number += 1
        path = out / f"grid-{number}.png"
    labels = torch.tensor([-1 if ask.label is None else ask.label for ask in map(asks.__getitem__, range(len(asks)))])
    sheet = class_grid(
        stages, None if asks[0].label is None else labels, cascade.class_names, cascade.config.data.window
    )
    write_atomic(path, png_bytes(sheet))
    return path


def check_free(paths: Sequence[Path], others: str = "--out or --seed") -> None:
    """Refuse to overwrite; ``others``: options that lead to other paths."""
    _refuse([path for path in paths if path.exists()], others)


def _refuse(there: Sequence[Path], others: str) -> None:
    if there:
        more = f" (and {len(there) - 1} more of these)" if len(there) > 1 else ""
        raise UserError(f"{there[0]} exists already{more}; use --force to overwrite, or another {others}.")


@dataclass(frozen=True)
class Made:
    """How an image was made, read back from its file."""

    run: str
    ask_class: str | None
    seed: int
    index: int
    stage: int
    settings: SamplingConfig
    weights: str
    weights_hash: str
    precision: str


def read_made(path: str) -> Made:
    """What ``cdm sample --again`` needs. Raises ``UserError`` for a file that ``cdm sample`` did not write."""
    info = read_png_info(path)
    if info.get("made_by") != "cdm sample":
        raise UserError(
            f"{path} was made by {info.get('made_by', 'something else')!r}; expected an image that `cdm sample` made: "
            "give the command that made it once more."
        )
    try:
        settings = from_dict(SamplingConfig, info["settings"], f"settings in {path}")
        return Made(
            info["run"], info["class"], info["seed"], info["index"], info["stage"], settings, info["weights"],
            info["weights_hash"], info["precision"],
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not tell its {error}; expected an image as `cdm sample` saved it: use the original file."
        ) from error


def difference(path: str, image: Tensor) -> int:
    """Largest difference of stored intensities between the file and ``image``, uint8 or uint16 ``[C, H, W]``."""
    pixels = decode(Path(path).read_bytes(), len(image)).transpose(2, 0, 1).astype(np.int64)
    return int(np.abs(pixels - image.numpy().astype(np.int64)).max())


def read_small_images(cascade: Cascade, paths: Sequence[str], say: Say) -> Image:
    """Images for ``cdm upscale`` at the base's size, float32 ``[N, C, s, s]``; what is cropped or resized is said."""
    config, size = cascade.config, cascade.config.sizes[0]
    if not paths:
        raise UserError("no image given; expected cdm upscale RUN IMAGE, with one image or more.")
    out = []
    for name in paths:
        try:
            pixels = decode(Path(name).read_bytes(), config.data.channels)
        except OSError as error:
            raise UserError(f"cannot read {name}: {error.strerror}; expected an image file.") from error
        except UserError as error:
            raise UserError(f"{name} cannot be used: {error}; expected an image file.") from error
        height, width = pixels.shape[:2]
        pixels = to_bit_depth(centre_crop_square(pixels), config.data.bit_depth)
        side = pixels.shape[0]
        x = to_float(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None], config.data.window)
        if side > size:
            x = to_float(torch.from_numpy(area_down(pixels, size).copy()).permute(2, 0, 1)[None], config.data.window)
        elif side < size:
            x = torch.nn.functional.interpolate(x, size=(size, size), mode="bicubic", antialias=True).clamp(-1, 1)
        if (height, width) != (size, size):
            how = "resized" if height == width else "cropped" if side == size else "cropped and resized"
            say(f"{name}: {width}x{height} pixels, {how} to {size}x{size}, where this cascade's SR stages begin")
        out.append(x)
    return torch.cat(out)


def seeds_for(count: int, seed: int) -> Int64[Tensor, " b"]:
    return torch.tensor([image_seed(seed, index) for index in range(count)])


def upscale_to_files(
    cascade: Cascade, paths: Sequence[str], *, label: int | None, seed: int, settings: SamplingConfig, out: Path,
    force: bool, progress: Progress | None, say: Say,
) -> None:  # fmt: skip
    """Run the SR stages on ``paths`` and write ``NAME-upscaled.png`` for each."""
    targets = [out / f"{Path(name).stem}-upscaled{suffix_of(cascade)}" for name in paths]
    if len(set(targets)) < len(targets):
        raise UserError(
            "two of the images have the same name; expected different ones: upscale them into two --out folders."
        )
    if not force:
        check_free(targets, "--out")
    check_seed(seed)
    low_res = read_small_images(cascade, paths, say)
    make_folder(out)
    labels = None if label is None else [label] * len(paths)
    sampled = cascade.sample(
        labels, seeds_for(len(paths), seed), settings=settings, low_res=low_res, progress=progress, say=say
    )
    for index, (path, image) in enumerate(
        zip(targets, to_images(sampled.images[-1], cascade.config.data.window), strict=True)
    ):
        info = {
            "made_by": "cdm upscale",
            "seed": seed,
            "index": index,
            "class": None if label is None else cascade.class_names[label],
            "settings": asdict(settings),
            "weights_hash": cascade.hash,
        }
        save_png(path, image, info)
    say(f"{counted(len(paths), 'image')} at {cascade.config.sizes[-1]} pixels in {out}")
