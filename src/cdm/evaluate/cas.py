"""Classification accuracy score (Ravuri & Vinyals 2019): does a network that saw generated images only know real ones?

Two arms, one network, one schedule: trained on generated images, and on as many real ones, class by class. Both are
scored on real validation images. The schedule is doubled until doubling gains the real arm at most two points (means
over all seeds, on either side), so that a weak result is the images' fault and not the training's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import sqrt
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

from cdm.artifacts import load_json, make_folder, save_json
from cdm.evaluate.area import Classes, Pixels, take_resized
from cdm.evaluate.cas_net import CasNet, choose_net, train_ranks
from cdm.evaluate.intervals import Z95, Estimate, student_95
from cdm.rng import Purpose, Rng

SEEDS = (0, 1, 2)
TOP = 5
WITHIN = 0.02  # of its ceiling, the real arm must come
MOST_DOUBLINGS = 5

Arm = Literal["generated", "real"]
Ranks = Int64[np.ndarray, " n"]
"""How many classes a network puts before the right one, per validation image, at most 9."""
Told = Callable[[str, float], None]
"""``told(what, done)``: what is being trained, and the share of it that is done."""


@dataclass(frozen=True)
class Labelled:
    """Images and their classes."""

    images: Pixels
    labels: Classes


@dataclass(frozen=True)
class NotApplicable:
    """A figure that these data do not have, and why."""

    reason: str


@dataclass(frozen=True)
class ArmScore:
    """One arm on the validation images: mean over seeds with the error of seeds and validation images."""

    top1: Estimate
    top5: Estimate
    per_seed: tuple[float, ...]


@dataclass(frozen=True)
class ClassScore:
    """Top-1 on the validation images of one class (``images`` of them; 0: no figures), and both arms' top-5."""

    name: str
    images: int
    generated: Estimate | None
    real: Estimate | None
    difference: Estimate | None
    generated_top5: Estimate | None = None
    real_top5: Estimate | None = None


@dataclass(frozen=True)
class CasResult:
    """Both arms and how they were trained.

    net, side, why: the network, the side of the images it reads, and why this one.
    recipe: hash of all that decides a training but the images, the seed and the steps.
    images: in each arm. steps, batch_size, seeds: of each training.
    top: the k of ``top5``: 5, or the number of classes where there are fewer.
    ceiling: top-1 of the real arm with twice the steps, over the same seeds. gap: how far below it the real arm is.
    converged: whether the gap is at most 2 points.
    beats: classes where the generated arm is better with 95 % confidence each (one in 40 would be so by chance).
    hashes: of each arm's images and labels, as the network reads them.
    """

    net: str
    side: int
    why: str
    recipe: str
    images: int
    val_images: int
    steps: int
    batch_size: int
    seeds: tuple[int, ...]
    top: int
    generated: ArmScore
    real: ArmScore
    difference: Estimate
    ceiling: float
    gap: float
    converged: bool
    per_class: tuple[ClassScore, ...]
    beats: tuple[str, ...]
    hashes: dict[str, str]

    @property
    def sentence(self) -> str:
        """The result in words."""
        text = (
            f"Trained on generated images alone, the network names {100 * self.generated.top1.value:.1f} % of real "
            f"validation images rightly; trained on as many real ones, {100 * self.real.top1.value:.1f} %."
        )
        if not self.converged:
            text += (
                f" Twice the steps still bring the real arm {100 * self.gap:.1f} points more: both figures are below "
                "what the images allow."
            )
        return text


def cas(
    generated: Labelled,
    real: Labelled,
    val: Labelled,
    *,
    class_names: Sequence[str],
    folder: str | Path | None = None,
    seeds: Sequence[int] = SEEDS,
    net: Literal["auto", "small", "resnet50"] = "auto",
    steps: int | None = None,
    device: torch.device | str = "cpu",
    told: Told | None = None,
) -> CasResult | NotApplicable:
    """Train and score both arms.

    Args:
        generated, real, val: generated images, real training images, real validation images; labels index
            ``class_names``. Each arm takes as many of a class as both have.
        folder: where each training's result is kept as JSON, named by a hash of all that decides it; what is there is
            not trained again. None: nothing is kept.
        net: see ``choose_net``.
        steps: where the search for the schedule starts; None: by the number of images.
    """
    reason = _not_applicable(generated, real, val, class_names)
    if reason:
        return NotApplicable(reason)
    rows = _equal_rows(generated.labels, real.labels, len(class_names))
    chosen = choose_net(net, real.images.shape[2:], real.images.shape[1], len(class_names), torch.device(device))
    sets = {"generated": _small(generated, rows[0], chosen.side), "real": _small(real, rows[1], chosen.side)}
    target = _small(val, torch.arange(len(val.labels)), chosen.side)
    keys = {arm: _digest(images, labels) for arm, (images, labels) in sets.items()}
    val_key = _digest(*target)

    def ranks(arm: Arm, seed: int, steps: int) -> Ranks:
        what = f"{chosen.name} on {len(rows[0]):,} {arm} images, seed {seed}, {steps:,} steps"
        key = hashlib.sha256(f"{chosen.recipe} {keys[arm]} {val_key} {seed} {steps}".encode()).hexdigest()[:16]
        path = None if folder is None else Path(folder) / f"cas-{arm}-{seed}-{key}.json"
        return _kept(path, what, lambda: _train(chosen, sets[arm], target, seed, steps, what, told))

    first = steps or chosen.first_steps(len(rows[0]))

    @cache
    def trained(arm: Arm, count: int) -> Int64[np.ndarray, "seeds n"]:
        return np.stack([ranks(arm, seed, count) for seed in seeds])

    found, ceiling = find_schedule(lambda count: _share(trained("real", count)), first)
    hits: dict[str, Int64[np.ndarray, "seeds n"]] = {arm: trained(arm, found) for arm in ("generated", "real")}
    return _result(chosen, hits, target[1].numpy(), class_names, tuple(seeds), found, ceiling, len(rows[0]), keys)


def find_schedule(top1: Callable[[int], float], steps: int) -> tuple[int, float]:
    """Doubles ``steps`` until doubling once more gains at most two points, or five times.

    Args:
        top1: of the real arm trained for so many steps.

    Returns:
        The steps, and the top-1 of twice as many: the ceiling.
    """
    score = top1(steps)
    for left in reversed(range(MOST_DOUBLINGS + 1)):
        ceiling = top1(2 * steps)
        if ceiling - score <= WITHIN or left == 0:
            return steps, ceiling
        steps, score = 2 * steps, ceiling
    raise AssertionError("the last round returns")


# ---- the data of the arms --------------------------------------------------------------------------------------------


def _not_applicable(generated: Labelled, real: Labelled, val: Labelled, class_names: Sequence[str]) -> str:
    """Why there is no score; empty: there is one."""
    if len(class_names) < 2:
        return f"a classification accuracy score needs classes; got {len(class_names)}"
    for what, data in (("generated", generated), ("real training", real)):
        missing = sorted(set(range(len(class_names))) - set(np.unique(np.asarray(data.labels)).tolist()))
        if missing:
            named = ", ".join(class_names[i] for i in missing[:5]) + ", ..." * (len(missing) > 5)
            return f"{len(missing)} of {len(class_names)} classes have no {what} images: {named}"
    if not len(val.labels):
        return "there are no validation images"
    if generated.images.shape[1] != real.images.shape[1] or real.images.shape[1] != val.images.shape[1]:
        channels = ", ".join(str(data.images.shape[1]) for data in (generated, real, val))
        return f"generated, training and validation images have different numbers of channels: {channels}"
    return ""


def _equal_rows(a: Classes, b: Classes, classes: int) -> tuple[Tensor, Tensor]:
    """Rows of either set, as many of each class as both have; a class's own images evenly at random."""
    chosen: tuple[list[Tensor], list[Tensor]] = ([], [])
    for label in range(classes):
        rows = [torch.from_numpy(np.flatnonzero(np.asarray(labels) == label)) for labels in (a, b)]
        count = min(map(len, rows))
        for side, own in zip(chosen, rows, strict=True):
            side.append(own[Rng(0).permutation(Purpose.EVALUATE, len(own), step=label)[:count]])
    return torch.cat(chosen[0]).sort().values, torch.cat(chosen[1]).sort().values


def _small(data: Labelled, rows: Tensor, side: int) -> tuple[UInt8[Tensor, "n c s s"], Int64[Tensor, " n"]]:
    return take_resized(data.images, rows, side, side), torch.as_tensor(data.labels)[rows]


def _digest(images: UInt8[Tensor, "n c s s"], labels: Int64[Tensor, " n"]) -> str:
    sha = hashlib.sha256(f"{tuple(images.shape)}".encode())
    for part in (images, labels):
        sha.update(np.ascontiguousarray(part.numpy()).data)
    return sha.hexdigest()[:16]


# ---- one training ----------------------------------------------------------------------------------------------------


def _train(
    net: CasNet,
    data: tuple[Tensor, Tensor],
    target: tuple[Tensor, Tensor],
    seed: int,
    steps: int,
    what: str,
    told: Told | None,
) -> Ranks:
    def progress(done: float) -> None:
        if told is not None:
            told(what, done)

    return train_ranks(net, *data, *target, seed=seed, steps=steps, progress=progress)


def _kept(path: Path | None, what: str, train: Callable[[], Ranks]) -> Ranks:
    """The ranks from a file, or trained and written there."""
    if path is not None and path.exists():
        return np.array([int(digit) for digit in load_json(path)["ranks"]], dtype=np.int64)
    ranks = train()
    if path is not None:
        make_folder(path.parent)
        save_json(path, {"what": what, "top1": _share(ranks), "ranks": "".join(map(str, ranks.tolist()))})
    return ranks


def _share(ranks: Int64[np.ndarray, "..."], top: int = 1) -> float:
    return float((ranks < top).mean())


# ---- figures ---------------------------------------------------------------------------------------------------------


def seeds_and_images(hits: Float64[np.ndarray, "seeds n"], lowest: float = 0.0) -> Estimate:
    """Mean over seeds and validation images; its error is of both.

    Args:
        hits: per seed and validation image, from ``lowest`` to 1.
        lowest: 0 for right or wrong, -1 for the difference of two arms.

    The images' part has two pseudo-images put in, one at either end, so that it is not 0 where all are alike (Agresti &
    Caffo 2000). Student's t with Satterthwaite's degrees of freedom.
    """
    seeds, images = hits.shape
    value = float(hits.mean())
    ends = [lowest, 1.0]
    of_images = float(np.var([*hits.mean(axis=0), *ends], ddof=1)) / (images + 2)
    of_seeds = float(np.var(hits.mean(axis=1), ddof=1)) / seeds if seeds > 1 else 0.0
    shares = of_images**2 / (images + 1) + (of_seeds**2 / (seeds - 1) if seeds > 1 else 0.0)
    reach = _student(int((of_images + of_seeds) ** 2 / shares)) * sqrt(of_images + of_seeds)
    low, high = max(ends[0], value - reach), min(ends[1], value + reach)
    what = f"{seeds} seeds and {images} validation images" if seeds > 1 else f"{images} validation images, one seed"
    return Estimate(value, min(low, value), max(high, value), f"Student's t over {what}")


def _student(degrees: int) -> float:
    few = {1: 12.706, 2: 4.303, 3: 3.182}
    if degrees > 1000:
        return Z95
    return few[max(degrees, 1)] if degrees < 4 else student_95(degrees)


def _result(
    net: CasNet,
    ranks: dict[str, Int64[np.ndarray, "seeds n"]],
    labels: Int64[np.ndarray, " n"],
    class_names: Sequence[str],
    seeds: tuple[int, ...],
    steps: int,
    ceiling: float,
    images: int,
    keys: dict[str, str],
) -> CasResult:
    top = min(TOP, len(class_names))
    right = {arm: (of_arm < 1).astype(np.float64) for arm, of_arm in ranks.items()}
    near = {arm: (of_arm < top).astype(np.float64) for arm, of_arm in ranks.items()}
    arms = {
        arm: ArmScore(
            seeds_and_images(right[arm]),
            seeds_and_images(near[arm]),
            tuple(float(x) for x in right[arm].mean(axis=1)),
        )
        for arm in ranks
    }
    per_class = tuple(
        _class_score(name, *({arm: hits[:, labels == label] for arm, hits in of.items()} for of in (right, near)))
        for label, name in enumerate(class_names)
    )
    gap = ceiling - arms["real"].top1.value
    beats = tuple(score.name for score in per_class if score.difference and (score.difference.low or 0) > 0)
    return CasResult(
        net=net.name,
        side=net.side,
        why=net.why,
        recipe=hashlib.sha256(net.recipe.encode()).hexdigest()[:12],
        images=images,
        val_images=len(labels),
        steps=steps,
        batch_size=net.batch_size(images),
        seeds=seeds,
        top=top,
        generated=arms["generated"],
        real=arms["real"],
        difference=seeds_and_images(right["generated"] - right["real"], lowest=-1.0),
        ceiling=ceiling,
        gap=gap,
        converged=gap <= WITHIN,
        per_class=per_class,
        beats=beats,
        hashes=keys,
    )


def _class_score(
    name: str, right: dict[str, Float64[np.ndarray, "seeds n"]], near: dict[str, Float64[np.ndarray, "seeds n"]]
) -> ClassScore:
    """right, near: whether each network put the right class first, and among the top ones."""
    generated, real = right["generated"], right["real"]
    if not generated.shape[1]:
        return ClassScore(name, 0, None, None, None)
    difference = seeds_and_images(generated - real, lowest=-1.0)
    return ClassScore(
        name,
        generated.shape[1],
        seeds_and_images(generated),
        seeds_and_images(real),
        difference,
        seeds_and_images(near["generated"]),
        seeds_and_images(near["real"]),
    )
