"""What a cascade diagnosis rests on, measured on 8-bit images of every stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from cdm.errors import UserError
from cdm.evaluate.area import Pixels, area_resize, take
from cdm.evaluate.diagnosis import (
    NO_CASCADE,
    ColourShift,
    Consistency,
    Level,
    Measurements,
    View,
    difference,
    least_psnr,
)
from cdm.evaluate.extractors.base import Extractor
from cdm.evaluate.frechet import Strata, frechet_estimate
from cdm.evaluate.intervals import Estimate, mean
from cdm.evaluate.memorisation import Memorisation
from cdm.evaluate.stats import FeatureStats

CHUNK = 256
PSNR_FLOOR = 1 / 48  # mean square error in 8-bit units below which images count as equal: 65 dB


@dataclass(frozen=True)
class StageImages:
    """Images of a cascade of K stages; image i everywhere has the label of real image i.

    full: output of each stage of the full cascade, the base first.
    from_real: for stage k = 1 to K - 1, the outputs of stages k to K - 1 with the real image, brought to the size of
        stage k - 1, in place of that stage's output.
    real: the real validation images at each stage's size, made as stages' low-res images are.
    """

    full: tuple[Pixels, ...]
    from_real: tuple[tuple[Pixels, ...], ...]
    real: tuple[Pixels, ...]
    labels: Strata | None = None


@dataclass(frozen=True)
class LevelImages:
    """Final images with SR stage ``stage`` at another augmentation level, all else and all seeds as they were.

    full: of the cascade. oracle: with real low-res put in before this stage; None: left out.
    """

    stage: int
    level: float
    full: Pixels
    oracle: Pixels | None = None


def measure_cascade(
    images: StageImages,
    extractor: Extractor,
    reference: FeatureStats,
    reference_name: str,
    *,
    levels_used: Sequence[float | None] = (),
    aug_logsnr: Sequence[float | None] = (),
    levels: Sequence[LevelImages] = (),
    memorisation: Memorisation | None = None,
    views: Sequence[View] = (),
) -> Measurements:
    """Everything of a cascade.

    Args:
        reference: of real images that are not among ``images.real``: the training set, or other validation images.
        levels_used, aug_logsnr: augmentation level of each stage, and its log-SNR as the stage is told it; None: none.
        views: of other extractors.

    Raises:
        UserError: sets of different counts: a Fréchet distance hangs on the count.
    """
    assert len(images.full) == len(images.real) == len(images.from_real) + 1
    count = len(images.full[0])
    tried = [pixels for trial in levels for pixels in (trial.full, trial.oracle) if pixels is not None]
    for pixels in (*images.full, *images.real, *(x for outputs in images.from_real for x in outputs), *tried):
        if len(pixels) != count:
            raise UserError(
                f"got sets of {count} and of {len(pixels)} images for the diagnosis; expected equal counts: "
                "cut them to the smaller."
            )

    def distance(pixels: Pixels) -> Estimate:
        return frechet_estimate(reference, features_of(extractor, pixels), images.labels)

    finals = [images.full[-1], *(outputs[-1] for outputs in images.from_real), images.real[-1]]
    distances = tuple(map(distance, finals))
    none: tuple[float | None, ...] = (None,) * len(images.full)
    used, logsnr = tuple(levels_used) or none, tuple(aug_logsnr) or none
    colour = [colour_shift(images.full[0], images.real[0])]
    consistency: list[Consistency | None] = [None]
    for k, outputs in enumerate(images.from_real, start=1):
        colour.append(colour_shift(outputs[0], images.real[k], paired=True))
        generated = low_res_psnr(images.full[k], images.full[k - 1])
        oracle = low_res_psnr(outputs[0], images.real[k - 1])
        consistency.append(Consistency(used[k], generated, oracle, least_psnr(logsnr[k])))
    return Measurements(
        extractor=extractor.name,
        hash=extractor.hash,
        reference=reference_name,
        count=count,
        stages=stage_names([pixels.shape[-1] for pixels in images.full]),
        distances=distances,
        levels_used=used,
        levels=tuple(
            Level(each.stage, each.level, distance(each.full), None if each.oracle is None else distance(each.oracle))
            for each in levels
        ),
        colour=tuple(colour),
        consistency=tuple(consistency),
        memorisation=memorisation,
        views=(view_of(extractor, reference, distances[0], distances[-1]), *views),
    )


def measure_images(
    generated: Pixels,
    real: Pixels,
    extractor: Extractor,
    reference: FeatureStats,
    reference_name: str,
    *,
    memorisation: Memorisation | None = None,
    views: Sequence[View] = (),
    labels: Strata | None = None,
) -> Measurements:
    """Of images whose cascade is not known: as many of either are used as both have. ``labels``: class of each."""
    count = min(len(generated), len(real))
    full, floor = (frechet_estimate(reference, features_of(extractor, x[:count]), labels) for x in (generated, real))
    return Measurements(
        extractor=extractor.name,
        hash=extractor.hash,
        reference=reference_name,
        count=count,
        stages=(NO_CASCADE,),
        distances=(full, floor),
        colour=(colour_shift(generated[:count], real[:count]),),
        memorisation=memorisation,
        views=(view_of(extractor, reference, full, floor), *views),
    )


def stage_names(sizes: Sequence[int]) -> tuple[str, ...]:
    """``stage 0 (base, 16x16)``, ``stage 1 (SR, 16 -> 64)``, ..."""
    names = [f"stage 0 (base, {sizes[0]}x{sizes[0]})"]
    return (*names, *(f"stage {k} (SR, {sizes[k - 1]} -> {sizes[k]})" for k in range(1, len(sizes))))


def view_of(extractor: Extractor, reference: FeatureStats, full: Estimate, floor: Estimate) -> View:
    """full, floor: distance of as many generated, and real validation images to ``reference``."""
    return View(extractor.name, extractor.hash, full, floor, float(np.trace(reference.cov)))


def features_of(extractor: Extractor, images: Pixels) -> Float32[np.ndarray, "n d"]:
    """Main features of all images, a chunk at a time."""
    parts = torch.arange(len(images)).split(CHUNK)
    return np.concatenate([extractor(take(images, rows)).main.numpy() for rows in parts])


# ---- colour ----------------------------------------------------------------------------------------------------------


def colour_shift(generated: Pixels, real: Pixels, *, paired: bool = False) -> ColourShift:
    """Difference of channel means, and of channels' standard deviations within an image, generated less real.

    Args:
        paired: generated image i was made from real image i, so that what differs between images cancels.
    """
    facts = [_channel_facts(images) for images in (generated, real)]
    shifts = []
    for part in range(2):
        fake, true = facts[0][part], facts[1][part]
        shifts.append(
            tuple(
                mean(fake[:, c] - true[:, c], "images, each less its real one")
                if paired
                else difference(mean(fake[:, c], "generated images"), mean(true[:, c], "real images"))
                for c in range(fake.shape[1])
            )
        )
    return ColourShift(mean=shifts[0], contrast=shifts[1])


def _channel_facts(images: Pixels) -> tuple[Float64[np.ndarray, "n c"], Float64[np.ndarray, "n c"]]:
    """Mean and standard deviation of each channel of each image."""
    means, deviations = [], []
    for rows in torch.arange(len(images)).split(CHUNK):
        x = take(images, rows).double()
        means.append(x.mean(dim=(2, 3)))
        deviations.append(x.std(dim=(2, 3), correction=0))
    return torch.cat(means).numpy(), torch.cat(deviations).numpy()


# ---- consistency -----------------------------------------------------------------------------------------------------


def low_res_psnr(images: Pixels, low_res: Pixels) -> Estimate:
    """Mean PSNR in dB of images, brought to the size of ``low_res`` by area, with it; image by image, at most 65."""
    height, width = low_res.shape[-2:]
    values = []
    for rows in torch.arange(len(images)).split(CHUNK):
        down = area_resize(take(images, rows), height, width)
        values.append(_psnr(down, take(low_res, rows)))
    return mean(torch.cat(values).numpy(), "images")


def _psnr(a: Tensor, b: Tensor) -> Float64[Tensor, " n"]:
    error = (a.double() - b.double()).square().mean(dim=(1, 2, 3)).clamp(min=PSNR_FLOOR)
    return 10 * torch.log10(255**2 / error)
