"""``cdm sample`` and ``cdm upscale``: images from a run folder into files that tell how they were made."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from cdm.artifacts import make_folder, write_atomic
from cdm.cascade import Cascade, Progress, image_seed
from cdm.config import SamplingConfig, from_dict, to_dict
from cdm.data.decode import area_down, centre_crop_square, decode, to_bit_depth
from cdm.data.pixels import to_float, to_images
from cdm.data.save import read_png_info, save_png, suffix_for
from cdm.errors import UserError
from cdm.evaluate.pictures import class_grid, png_bytes
from cdm.pipeline.request import check_seed
from cdm.runtime import precision_name
from cdm.train.log import counted
from cdm.types import Image

Say = Callable[[str], None]
GRID_LIMIT = 400
"""Images that still make a sheet worth looking at."""
MOST_PER_CLASS = 1_000_000


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
    raise UserError(f"unknown class {name!r}; expected one of {shown}: did you mean {near[0]!r}?")


def plan_asks(cascade: Cascade, class_names: Sequence[str], count: int) -> list[Ask]:
    """``count`` images of each named class, or of every class. Images are numbered within their class, so neither the
    class nor what else is asked for changes an image's noise."""
    if count < 1:
        raise UserError(f"-n is {count}; expected at least 1.")
    if count > MOST_PER_CLASS:
        raise UserError(f"-n is {count:,}; expected at most {MOST_PER_CLASS:,} of a class: use several --seed.")
    if class_names:
        labels: list[int | None] = [find_class(name, cascade.class_names) for name in dict.fromkeys(class_names)]
    else:
        labels = list(range(len(cascade.class_names))) or [None]
    return [Ask(label, index) for label in labels for index in range(count)]


def file_name(cascade: Cascade, ask: Ask, seed: int) -> str:
    """``A/A-seed0-00003.png``: class folders that ``cdm train`` could read again."""
    name = "image" if ask.label is None else cascade.class_names[ask.label]
    file = f"{name}-seed{seed}-{ask.index:05d}{suffix_of(cascade)}"
    return file if ask.label is None else f"{name}/{file}"


def suffix_of(cascade: Cascade) -> str:
    data = cascade.config.data
    return suffix_for(data.channels, 8 if data.window[1] <= 255 else 16)


def sample_to_files(
    cascade: Cascade, asks: Sequence[Ask], *, run: str, seed: int, settings: SamplingConfig, stop_after: int, out: Path,
    force: bool, batch_size: int, weights: str, progress: Progress | None, say: Say,
) -> list[Path]:  # fmt: skip
    """Sample ``asks`` and write one PNG each, batch by batch, and a sheet of all. Files that an earlier call with the
    same weights and settings left are kept and not made again; any other file is refused without ``force``. Returns
    the images' paths."""
    check_seed(seed)
    paths = [out / file_name(cascade, ask, seed) for ask in asks]
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
    infos = [told | {"class": _class_of(cascade, ask), "index": ask.index} for ask in asks]
    kept = set() if force else _made_before(paths, infos)
    if not force:
        check_free([path for path in paths if path not in kept])
    if kept:
        say(f"{len(kept):,} of {counted(len(asks), 'image')} are there from an earlier call; going on with the rest")
    make_folder(out)
    shown: list[list[Tensor]] = []
    sampled = None
    for begin in range(0, len(asks), batch_size):
        chunk = slice(begin, begin + batch_size)
        if kept.issuperset(paths[chunk]):
            continue  # a batch is made as a whole: in part, rounding would differ
        labels = [ask.label for ask in asks[chunk] if ask.label is not None]
        sampled = cascade.sample(
            labels or None, [image_seed(seed, ask.index) for ask in asks[chunk]], settings=settings,
            stop_after=stop_after, batch_size=batch_size, progress=progress,
        )  # fmt: skip
        images = [to_images(x, cascade.config.data.window) for x in sampled.images]
        for path, image, info in zip(paths[chunk], images[-1], infos[chunk], strict=True):
            if path not in kept:
                make_folder(path.parent)
                save_png(path, image, info)
        if len(asks) <= GRID_LIMIT:
            shown.append(images)
    if sampled is None:
        say(f"nothing to do: {counted(len(asks), 'image')} in {out}")
        return paths
    saved = sum(sampled.saved_evaluations)
    sheet = ""
    if len(asks) <= GRID_LIMIT:
        stages = _read_back(paths, cascade) if kept else [torch.cat(parts) for parts in zip(*shown, strict=True)]
        sheet = f", all on one sheet in {_save_sheet(cascade, asks, stages, out, force)}"
    say(
        f"{counted(len(asks), 'image')} in {out}{sheet}; {'+'.join(map(str, sampled.evaluations))} network "
        "evaluations each" + (f", {saved} spared by stopping early" if saved else "")
    )
    return paths


def _class_of(cascade: Cascade, ask: Ask) -> str | None:
    return None if ask.label is None else cascade.class_names[ask.label]


def _made_before(paths: Sequence[Path], infos: Sequence[dict[str, Any]]) -> set[Path]:
    """Those of ``paths`` that hold just what would be made: weights, settings, class and number are the same."""
    found = set()
    for path, info in zip(paths, infos, strict=True):
        if path.exists():
            try:
                known = read_png_info(path)
            except UserError:
                continue
            if {**known, "run": info["run"]} == info:  # the same run may be called by another path
                found.add(path)
    return found


def _read_back(paths: Sequence[Path], cascade: Cascade) -> list[Tensor]:
    """The last stage's images from their files: the lower stages of kept ones are not stored."""
    pixels = [decode(path.read_bytes(), cascade.config.data.channels).transpose(2, 0, 1) for path in paths]
    return [torch.from_numpy(np.stack(pixels))]


def _save_sheet(cascade: Cascade, asks: Sequence[Ask], stages: list[Tensor], out: Path, force: bool) -> Path:
    """All images of this call on one sheet, low-res beside high-res: ``grid.png``, or the next free name."""
    path, number = out / "grid.png", 1
    while path.exists() and (not force or path.is_dir()):  # a class may be called grid.png
        number += 1
        path = out / f"grid-{number}.png"
    labels = torch.tensor([-1 if ask.label is None else ask.label for ask in asks])
    sheet = class_grid(
        stages, None if asks[0].label is None else labels, cascade.class_names, cascade.config.data.window
    )
    write_atomic(path, png_bytes(sheet))
    return path


def check_free(paths: Sequence[Path], others: str = "--out or --seed") -> None:
    """Refuse to overwrite; ``others``: options that lead to other paths."""
    there = [path for path in paths if path.exists()]
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
    sampled = cascade.sample(labels, seeds_for(len(paths), seed), settings=settings, low_res=low_res, progress=progress)
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
