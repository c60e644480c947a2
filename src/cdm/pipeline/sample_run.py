"""``cdm sample`` and ``cdm upscale``: images from a run folder into files that tell how they were made."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
from cdm.types import Image

Say = Callable[[str], None]
GRID_LIMIT = 400
"""Images that still make a sheet worth looking at."""


@dataclass(frozen=True)
class Ask:
    """One image to make: its class (None: no class), and its number among those of its class."""

    label: int | None
    index: int


def find_class(name: str, class_names: Sequence[str]) -> int:
    """Index of a class by name; the nearest name is suggested where there is none."""
    if name in class_names:
        return class_names.index(name)
    if not class_names:
        raise UserError(f"got class {name!r}, but this cascade was trained without classes: leave --class out.")
    near = difflib.get_close_matches(name, class_names, n=1, cutoff=0.0)
    shown = ", ".join(class_names[:12]) + (", ..." if len(class_names) > 12 else "")
    raise UserError(f"unknown class {name!r}; did you mean {near[0]!r}? Expected one of: {shown}.")


def parse_numbers(text: str | None, kind: type, flag: str) -> list[Any] | None:
    """``"32,16"`` to numbers."""
    if text is None:
        return None
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--{flag} is {text!r}; expected numbers separated by commas, as 32,16.") from error


def plan_asks(cascade: Cascade, class_names: Sequence[str], count: int) -> list[Ask]:
    """``count`` images of each named class, or of every class. Images are numbered within their class, so neither the
    class nor what else is asked for changes an image's noise."""
    if count < 1:
        raise UserError(f"-n is {count}; expected at least 1.")
    if class_names:
        labels: list[int | None] = [find_class(name, cascade.class_names) for name in class_names]
    else:
        labels = list(range(len(cascade.class_names))) or [None]
    return [Ask(label, index) for label in labels for index in range(count)]


def file_name(cascade: Cascade, ask: Ask, seed: int) -> str:
    """``A/A-seed0-00003.png``: class folders that ``cdm train`` could read again."""
    name = "image" if ask.label is None else cascade.class_names[ask.label]
    file = f"{name}-seed{seed}-{ask.index:05d}.png"
    return file if ask.label is None else f"{name}/{file}"


def sample_to_files(
    cascade: Cascade, asks: Sequence[Ask], *, run: str, seed: int, settings: SamplingConfig, stop_after: int | None,
    out: Path, force: bool, batch_size: int, weights: str, progress: Progress | None, say: Say,
) -> Samples:  # fmt: skip
    """Sample ``asks`` and write one PNG each, and ``grid.png``. Nothing that is there is overwritten without ``force``."""
    paths = [out / file_name(cascade, ask, seed) for ask in asks]
    if not force:
        check_free([*paths, out / "grid.png"])
    make_folder(out)
    labels = None if asks[0].label is None else torch.tensor([ask.label for ask in asks])
    seeds = torch.tensor([image_seed(seed, ask.index) for ask in asks])
    sampled = cascade.sample(
        labels, seeds, settings=settings, stop_after=stop_after, batch_size=batch_size, progress=progress
    )
    window = cascade.config.data.window
    images = to_images(sampled.images[-1], window)
    last = len(cascade.stages) - 1 if stop_after is None else stop_after
    for path, image, ask in zip(paths, images, asks, strict=True):
        info = {
            "made_by": "cdm sample",
            "run": run,
            "class": None if ask.label is None else cascade.class_names[ask.label],
            "seed": seed,
            "index": ask.index,
            "stage": last,
            "settings": to_dict(settings),
            "weights": weights,
            "weights_hash": cascade.hash,
        }
        make_folder(path.parent)
        save_png(path, image, info)
    if len(asks) <= GRID_LIMIT:
        shown = [to_images(stage_images, window) for stage_images in sampled.images]
        write_atomic(out / "grid.png", png_bytes(class_grid(shown, labels, cascade.class_names, window)))
    saved = sum(sampled.saved_evaluations)
    say(
        f"{len(asks)} images in {out}"
        + (f", all on one sheet in {out / 'grid.png'}" if len(asks) <= GRID_LIMIT else "")
        + f"; {'+'.join(map(str, sampled.evaluations))} network evaluations each"
        + (f", {saved} spared by stopping early" if saved else "")
    )
    return sampled


def check_free(paths: Sequence[Path]) -> None:
    there = [path for path in paths if path.exists()]
    if there:
        raise UserError(f"{there[0]} exists already ({len(there)} such files); use --force to overwrite, or another --out or --seed.")


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


def read_made(path: str) -> Made:
    """What ``cdm sample --again`` needs. Raises ``UserError`` for a file that ``cdm sample`` did not write."""
    info = read_png_info(path)
    try:
        settings = from_dict(SamplingConfig, info["settings"], f"settings in {path}")
        return Made(
            info["run"], info["class"], info["seed"], info["index"], info["stage"], settings, info["weights"],
            info["weights_hash"],
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} does not tell how it was made ({error}); expected a file written by `cdm sample`.") from error


def read_small_images(cascade: Cascade, paths: Sequence[str], say: Say) -> Image:
    """Images for ``cdm upscale`` at the base's size, float32 ``[N, C, s, s]``; a size that differs is resized and said."""
    config, size = cascade.config, cascade.config.sizes[0]
    out = []
    for name in paths:
        try:
            pixels = decode(Path(name).read_bytes(), config.data.channels)
        except OSError as error:
            raise UserError(f"cannot read {name}: {error.strerror}; expected an image file.") from error
        except UserError as error:
            raise UserError(f"{name} cannot be used: {error}; expected an image file.") from error
        pixels = to_bit_depth(centre_crop_square(pixels), config.data.bit_depth)
        height = pixels.shape[0]
        x = to_float(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None], config.data.window)
        if height > size:
            x = to_float(torch.from_numpy(area_down(pixels, size).copy()).permute(2, 0, 1)[None], config.data.window)
        elif height < size:
            x = torch.nn.functional.interpolate(x, size=(size, size), mode="bicubic", antialias=True).clamp(-1, 1)
        if height != size:
            say(f"{name}: {height} pixels, resized to {size}, where this cascade's SR stages begin")
        out.append(x)
    return torch.cat(out)


def seeds_for(count: int, seed: int) -> Int64[Tensor, " b"]:
    return torch.tensor([image_seed(seed, index) for index in range(count)])


def upscale_to_files(
    cascade: Cascade, paths: Sequence[str], *, label: int | None, seed: int, settings: SamplingConfig, out: Path,
    force: bool, progress: Progress | None, say: Say,
) -> None:  # fmt: skip
    """Run the SR stages on ``paths`` and write ``NAME-upscaled.png`` for each."""
    targets = [out / f"{Path(name).stem}-upscaled.png" for name in paths]
    if len(set(targets)) < len(targets):
        raise UserError("two of the images have the same name; expected different ones: upscale them into two --out folders.")
    if not force:
        check_free(targets)
    low_res = read_small_images(cascade, paths, say)
    labels = None
    if cascade.class_names:
        labels = torch.full((len(paths),), cascade.config.num_classes if label is None else label)
    sampled = cascade.sample(labels, seeds_for(len(paths), seed), settings=settings, low_res=low_res, progress=progress)
    make_folder(out)
    for index, (path, image) in enumerate(zip(targets, to_images(sampled.images[-1], cascade.config.data.window), strict=True)):
        info = {
            "made_by": "cdm upscale",
            "seed": seed,
            "index": index,
            "class": None if label is None else cascade.class_names[label],
            "settings": asdict(settings),
            "weights_hash": cascade.hash,
        }
        save_png(path, image, info)
    say(f"{len(paths)} images at {cascade.config.sizes[-1]} pixels in {out}")
