"""Judge a letters cascade: are its letters read as what was asked for, and are they more than copies?

    python examples/judge_letters.py train-judge glyphs64-train.zip glyphs64-val.zip --out judge.safetensors
    python examples/judge_letters.py judge runs/letters --judge judge.safetensors \
        --data-train glyphs64-train.zip --data-val glyphs64-val.zip -n 100 --out results.json

The judge is a small ResNet that reads letters at 32x32, trained on real ones. ``judge`` samples ``n`` letters of each
class without guidance, area-downsamples them to 32x32 and tells, as JSON:

- ``generated``: the share read as the letter asked for, with its 95 % interval; ``per_class`` the same by letter;
- ``base_only``: the base's images, enlarged bilinearly: what the SR stages must beat;
- ``sr_from_real_low_res``: the SR stages alone, fed with the low-res images of real ones; ``real``: those real images
  themselves, the ceiling;
- ``trained_on_generated``: the same ResNet trained on 5,200 generated letters and scored on real ones: a cascade that
  draws the same few letters again and again fails here, however well they are read;
- ``nearest_training_image``: distance of samples to the nearest training image, beside that of real held-out images:
  a cascade that copies lies far below.

With ``builtin:letters`` as data, real letters other than the training set come fresh from the same generator.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from cdm.artifacts import load_tensors, save_tensors, write_atomic
from cdm.cascade import Cascade, image_seed
from cdm.conditioning import make_low_res, upsample
from cdm.config import SamplingConfig, to_dict
from cdm.data.arrays import load_images
from cdm.data.letters import letters_array
from cdm.data.source import LETTERS_SPEC, open_source
from cdm.errors import UserError
from cdm.nn.classifier import Classifier, accuracy, to_float, train_classifier

JUDGE_SIZE = 32
FRESH_TRAIN, FRESH_VAL = (1001, 26 * 1200), (1002, 26 * 100)
"""Seed and number of built-in letters that are neither each other nor the ones that cascades train on (seed 0)."""
EPOCHS = 12
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95)


def read_letters(spec: str, size: int, fresh: tuple[int, int] | None = None) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """uint8 images ``[N, C, size, size]``, int64 labels ``[N]`` and class names of a folder or zip of class folders.

    ``fresh``: seed and number of letters that stand for ``builtin:letters``; None: the ones that cascades train on.
    """
    if spec == LETTERS_SPEC and fresh is not None:
        data = letters_array(fresh[1], size, fresh[0])
    else:
        data = load_images(open_source(spec), size)
    if data.labels is None:
        raise UserError(f"{spec!r} has no classes; expected a folder or zip with a folder for each letter.")
    return torch.from_numpy(data.images), torch.from_numpy(data.labels), data.class_names


def at_judge_size(x: Tensor) -> Tensor:
    """float ``[B, C, H, W]`` in [-1, 1] area-downsampled to what the judge reads, as saved files would be."""
    if x.shape[-1] < JUDGE_SIZE:
        return upsample(x, JUDGE_SIZE)
    return make_low_res(x, JUDGE_SIZE)


@torch.no_grad()
def read_as(judge: Classifier, x: Tensor) -> Tensor:
    """Class that the judge reads, int64 ``[B]``, for float ``[B, C, H, W]`` in [-1, 1] of any size."""
    judge.eval()
    return torch.cat([judge(at_judge_size(part)).argmax(dim=1) for part in x.split(256)])


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    z = 1.959964
    middle = (hits + z * z / 2) / (count + z * z)
    half = z / (count + z * z) * math.sqrt(hits * (count - hits) / count + z * z / 4)
    return middle - half, middle + half


def share(read: Tensor, asked: Tensor) -> dict[str, Any]:
    """How many were read as asked."""
    hits, count = int((read == asked).sum()), len(asked)
    return {"images": count, "share": hits / count, "interval_95": wilson_interval(hits, count)}


def nearest_distances(x: Tensor, training: Tensor) -> Tensor:
    """Euclidean distance over all pixel values in [0, 1] from each image to the nearest training image, ``[B]``.

    x, training: float in [-1, 1] at one size.
    """
    flat, known = ((images.flatten(1) + 1) / 2 for images in (x, training))
    nearest = [known[torch.cdist(part, known).argmin(dim=1)] for part in flat.split(128)]
    return (flat - torch.cat(nearest)).norm(dim=1)  # cdist itself loses small distances


def quantiles(distances: Tensor) -> dict[str, float]:
    values = torch.quantile(distances.double(), torch.tensor(QUANTILES, dtype=torch.float64))
    return {f"{100 * q:g} %": round(float(value), 4) for q, value in zip(QUANTILES, values, strict=True)}


def sample_letters(
    cascade: Cascade, per_class: int, seed: int, settings: SamplingConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Base images, final images and labels, ``per_class`` of every class; the classes take turns."""
    labels = torch.arange(per_class * len(cascade.class_names)) % len(cascade.class_names)
    bases, finals, begin = [], [], time.perf_counter()
    for rows in torch.arange(len(labels)).split(256):
        seeds = [image_seed(seed, int(i)) for i in rows]
        images = cascade.sample(labels=labels[rows], seeds=seeds, settings=settings).images
        bases.append(images[0].cpu())
        finals.append(images[-1].cpu())
        seconds = time.perf_counter() - begin
        print(f"sampled {int(rows[-1]) + 1} of {len(labels)} in {seconds:.0f} s", flush=True)
    return torch.cat(bases), torch.cat(finals), labels


def super_resolve(cascade: Cascade, images: Tensor, labels: Tensor, seed: int, settings: SamplingConfig) -> Tensor:
    """The SR stages on the low-res images of real ones: float final images."""
    finals = []
    for rows in torch.arange(len(labels)).split(256):
        low_res = make_low_res(to_float(images[rows]), cascade.config.sizes[0])
        seeds = [image_seed(seed, int(i)) for i in rows]
        sampled = cascade.sample(labels=labels[rows], seeds=seeds, low_res=low_res, settings=settings)
        finals.append(sampled.images[-1].cpu())
    return torch.cat(finals)


def train_judge(
    data_train: Annotated[str, tyro.conf.Positional],
    data_val: Annotated[str, tyro.conf.Positional],
    out: Path,
    seed: int = 0,
) -> None:
    """Train the judge on real letters and save it with its accuracy on real letters that it has not seen.

    Args:
        data_train: folder or zip of class folders, or builtin:letters.
        data_val: the same, other letters.
        out: a .safetensors file.
        seed: of weights, order and augmentation.
    """
    images, labels, class_names = read_letters(data_train, JUDGE_SIZE, FRESH_TRAIN)
    val_images, val_labels, val_names = read_letters(data_val, JUDGE_SIZE, FRESH_VAL)
    if val_names != class_names:
        raise UserError(
            f"the classes of {data_val!r} are not those of {data_train!r}; give two sets of the same letters."
        )
    begin = time.perf_counter()
    judge = train_classifier(images, labels, epochs=EPOCHS, seed=seed)
    meta = {
        "classes": class_names,
        "channels": images.shape[1],
        "accuracy": accuracy(judge, val_images, val_labels),
        "images": len(images),
        "val_images": len(val_images),
        "epochs": EPOCHS,
        "seed": seed,
        "data": [data_train, data_val],
    }
    save_tensors(out, judge.state_dict(), meta)
    print(f"{meta['accuracy']:.4f} of {len(val_images)} real letters read rightly, {time.perf_counter() - begin:.0f} s")


def load_judge(path: Path) -> tuple[Classifier, dict[str, Any]]:
    """What ``train_judge`` saved."""
    tensors, meta = load_tensors(path)
    judge = Classifier(meta["channels"], len(meta["classes"]))
    judge.load_state_dict(tensors)
    return judge.eval(), meta


def judge_run(
    run: Annotated[Path, tyro.conf.Positional],
    judge: Path,
    data_train: str,
    data_val: str,
    out: Path,
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 100,
    n_collapse: int = 200,
    seed: int = 0,
    sampler: str | None = None,
    steps: tuple[int, ...] | None = None,
    aug_level: float | None = None,
) -> None:
    """Sample letters of every class from a trained cascade and judge them; results as JSON.

    Args:
        run: run folder of `cdm train`.
        judge: file that train-judge saved.
        data_train: what the cascade was trained on.
        data_val: real letters that it was not trained on.
        out: of the JSON.
        n: letters of each class that are judged.
        n_collapse: letters of each class on which the judge's net is trained anew; 0 leaves that out.
        seed: of the samples.
        sampler: instead of the run's default.
        steps: per stage from the base up, instead of the run's default.
        aug_level: of the SR stages, instead of the run's default.
    """
    reader, meta = load_judge(judge)
    cascade = Cascade.load(run)
    if list(cascade.class_names) != meta["classes"]:
        raise UserError(
            f"the judge reads {meta['classes']}, the run has {list(cascade.class_names)}; train another judge."
        )
    settings = cascade.settings(sampler=sampler, steps=steps, aug_level=aug_level)
    count = n * len(cascade.class_names)
    real, real_labels, _ = read_letters(data_val, cascade.config.sizes[-1], FRESH_VAL)
    begin = time.perf_counter()
    base, final, labels = sample_letters(cascade, max(n, n_collapse), seed, settings)
    seconds = time.perf_counter() - begin
    read = read_as(reader, final[:count])
    results: dict[str, Any] = {
        "run": run.name,
        "weights": cascade.hash,
        "settings": to_dict(settings),
        "seed": seed,
        "seconds_per_image": seconds / len(labels),
        "judge": {key: meta[key] for key in ("accuracy", "images", "val_images", "epochs")},
        "generated": share(read, labels[:count]),
        "per_class": per_class(read, labels[:count], cascade.class_names),
        "base_only": share(read_as(reader, upsample(base[:count], final.shape[-1])), labels[:count]),
        "sr_from_real_low_res": share(
            read_as(reader, super_resolve(cascade, real, real_labels, seed, settings)), real_labels
        ),
        "real": share(read_as(reader, to_float(real)), real_labels),
    }
    training, _, _ = read_letters(data_train, JUDGE_SIZE)
    results["nearest_training_image"] = copies(final[:count], to_float(real), to_float(training))
    if n_collapse:
        generated = ((at_judge_size(final) + 1) * 127.5).round().to(torch.uint8).to(cascade.device)
        epochs = EPOCHS * meta["images"] // len(labels)
        pupil = train_classifier(generated, labels.to(cascade.device), epochs=epochs, seed=seed).cpu()
        real_small = ((at_judge_size(to_float(real)) + 1) * 127.5).round().to(torch.uint8)
        results["trained_on_generated"] = {"images": len(labels), "accuracy": accuracy(pupil, real_small, real_labels)}
    print(json.dumps({key: value for key, value in results.items() if key != "per_class"}, indent=2))
    write_atomic(out, json.dumps(results, indent=2).encode() + b"\n")


def per_class(read: Tensor, asked: Tensor, class_names: Sequence[str]) -> dict[str, float]:
    return {name: round(float((read[asked == k] == k).double().mean()), 4) for k, name in enumerate(class_names)}


def copies(samples: Tensor, real: Tensor, training: Tensor) -> dict[str, Any]:
    """Are samples nearer to training images than real images are that the cascade has not seen?"""
    of_samples, of_real = (nearest_distances(at_judge_size(x), training) for x in (samples, real))
    closest_real = torch.quantile(of_real.double(), 0.01)
    return {
        "unit": f"Euclidean, values in [0, 1], {JUDGE_SIZE}x{JUDGE_SIZE}",
        "samples": quantiles(of_samples),
        "real": quantiles(of_real),
        "samples_nearer_than_1_percent_of_real": float((of_samples.double() < closest_real).double().mean()),
    }


if __name__ == "__main__":
    try:
        tyro.extras.subcommand_cli_from_dict({"train-judge": train_judge, "judge": judge_run})
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
