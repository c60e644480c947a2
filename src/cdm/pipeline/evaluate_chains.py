"""The cascade taken apart: real validation images put in after each stage and carried up by the stages above it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isclose

import numpy as np
from jaxtyping import Int64, UInt8

from cdm.config import SamplingConfig
from cdm.data.batches import Pyramid
from cdm.evaluate.extractors.base import Extractor
from cdm.evaluate.measurements import LevelImages, StageImages
from cdm.pipeline.evaluate_bench import Bench
from cdm.pipeline.evaluate_inputs import Inputs
from cdm.pipeline.evaluate_request import least_images
from cdm.pipeline.generate import ImageStore, OracleImages, RunImages, fill
from cdm.pipeline.image_source import ClassIndex, key_of
from cdm.pipeline.processes import Processes
from cdm.pipeline.reference import RealImages, eight_bits

LEVELS_TRIED = (0.1, 0.2)
"""Augmentation levels that are good ones in most runs: tried whatever is used, then twice and half of that."""
LEVELS_MOST = 3


@dataclass(frozen=True)
class Chains:
    """What the diagnosis looks at, image by image.

    indices: of the run's images. rows: validation images of the same classes. lower: the run's images at each stage but
    the last. oracles: after each stage but the last, the outputs of the stages above.
    """

    indices: Int64[np.ndarray, " n"]
    rows: Int64[np.ndarray, " n"]
    lower: tuple[ImageStore, ...]
    oracles: tuple[tuple[ImageStore, ...], ...]


def pairs_of(
    made: ClassIndex | None, count: int, real: RealImages, most: int
) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
    """Numbers of at most ``most`` generated images and of as many real ones, class by class the same; real images are
    spread evenly over their class."""
    if made is None or real.labels is None:
        most = min(most, count, real.count)
        return np.arange(most), np.unique(np.linspace(0, real.count - 1, most).round().astype(np.int64))
    labels = made[: min(count, most)]
    indices, rows = [], []
    for label in np.unique(labels):
        own, there = np.flatnonzero(labels == label), np.flatnonzero(real.labels == label)
        own = own[: len(there)]
        indices.append(own)
        if len(own):
            rows.append(there[np.linspace(0, len(there) - 1, len(own)).round().astype(np.int64)])
    order = np.argsort(np.concatenate(indices), kind="stable")
    return np.concatenate(indices)[order], np.concatenate([np.empty(0, np.int64), *rows])[order]


def why_not(inputs: Inputs, extractors: Sequence[Extractor]) -> str:
    """Why nothing can be said; empty where it can."""
    if inputs.val is None:
        return "it needs the validation images, not their statistics"
    if inputs.run is not None and inputs.run.labels is not None and inputs.val.labels is None:
        return "the run draws classes, and validation images without class folders have none to draw them by"
    return "" if extractors else "it needs an extractor"


def stages_apart(bench: Bench) -> RunImages | None:
    """The run, where it has stages to take apart."""
    run = bench.inputs.run
    return run if run is not None and len(run.cascade.stages) > 1 else None


def chain_length(bench: Bench, extractors: Sequence[Extractor]) -> int:
    """Images that the diagnosis looks at: what suits the extractor, as far as they are there; 0: no diagnosis."""
    if not bench.request.wants("diagnosis") or why_not(bench.inputs, extractors) or bench.inputs.val is None:
        return 0
    return min(least_images(extractors[0].dim), bench.inputs.source.count, bench.inputs.val.count)


def lower_stores(bench: Bench, length: int) -> tuple[ImageStore, ...]:
    """Where the one pass over the run leaves the images of each stage but the last."""
    run = stages_apart(bench)
    if run is None or not length:
        return ()
    stages = run.cascade.stages[:-1]
    return tuple(
        ImageStore(bench.work, f"{run.key}-{stage.index}", length, stage.shape, stage.index) for stage in stages
    )


def fill_chains(bench: Bench, length: int, lower: tuple[ImageStore, ...]) -> Chains | None:
    """Make the images of every chain (all processes take part)."""
    run, val = bench.inputs.run, bench.inputs.val
    if run is None or val is None or not lower:
        return None
    indices, rows = pairs_of(run.labels, run.count, val, length)
    oracles = []
    for after in range(len(lower)):
        source = oracle_source(run, val, rows, after, non_truncated(run.settings))
        oracles.append(_fill_stages(bench, source, bench.processes))
    return Chains(indices, rows, lower, tuple(oracles))


def oracle_source(
    run: RunImages, val: RealImages, rows: Int64[np.ndarray, " n"], after: int, settings: SamplingConfig
) -> OracleImages:
    """Validation images, put in after stage ``after``."""
    low_res = np.asarray(Pyramid(val.array, run.cascade.config.sizes).at(after)[val.rows[rows]])
    labels = None if val.labels is None else val.labels[rows]
    data = key_of(val.key, rows.tolist())
    return OracleImages(run.cascade, settings, run.seed, after, low_res, val.array.window, labels, data)


def _fill_stages(bench: Bench, source: OracleImages, processes: Processes) -> tuple[ImageStore, ...]:
    stages = source.cascade.stages[source.after + 1 :]
    stores = [ImageStore(bench.work, f"{source.key}-{s.index}", source.count, s.shape, i) for i, s in enumerate(stages)]
    fill(source, stores, processes, bench.request.batch_size, bench.progress)
    return tuple(stores)


def non_truncated(settings: SamplingConfig) -> SamplingConfig:
    """A stored image has no x_t to hand over."""
    return replace(settings, hand_over="non_truncated")


def stage_images(chains: Chains, val: RealImages, images: ImageStore, sizes: tuple[int, ...]) -> StageImages:
    """Everything that ``measure_cascade`` compares."""
    pyramid = Pyramid(val.array, sizes)
    real = [np.asarray(pyramid.at(k)[val.rows[chains.rows]]) for k in range(len(sizes))]
    return StageImages(
        full=tuple(store.images()[chains.indices] for store in (*chains.lower, images)),
        from_real=tuple(tuple(store.images() for store in outputs) for outputs in chains.oracles),
        real=tuple(eight_bits(own, val.array) for own in real),
        labels=None if val.labels is None else val.labels[chains.rows],
    )


def levels_to_try(used: float, level_max: float) -> list[float]:
    """At most ``LEVELS_MOST`` others than ``used``, none above ``level_max``, what the stage was trained up to."""
    tried: list[float] = []
    for level in (*LEVELS_TRIED, 2 * used, used / 2):
        level = min(level, level_max)
        if not any(isclose(level, other) for other in (used, *tried)):
            tried.append(level)
    return sorted(tried[:LEVELS_MOST])


def other_levels(bench: Bench, chains: Chains) -> list[LevelImages]:
    """The cascade's images with one SR stage at another augmentation level, on its own low-res images."""
    run = stages_apart(bench)
    assert run is not None
    tried = []
    for stage in run.cascade.stages[1:]:
        used = run.settings.aug_level[stage.index - 1]
        if not stage.config.augmentation.has_noise:
            continue
        own = stage.config.augmentation
        for level in (level for level in levels_to_try(used, own.level_max) if own.trained_at(level)):
            settings = _at_level(run.settings, stage.index, level)
            low_res = chains.lower[stage.index - 1].images()[chains.indices]
            labels = None if run.labels is None else run.labels[chains.indices]
            key = key_of(run.key, chains.indices.tolist())
            source = OracleImages(
                run.cascade, settings, run.seed, stage.index - 1, low_res, (0, 255), labels, key,
                f"stage {stage.index} at augmentation level {level:g}", chains.indices,
            )  # fmt: skip
            stores = _fill_stages(bench, source, Processes())
            tried.append(LevelImages(stage.index, level, stores[-1].images()))
    return tried


def oracle_at_level(bench: Bench, chains: Chains, stage: int, level: float) -> UInt8[np.ndarray, "n c h w"]:
    """Final images with real low-res put in before SR stage ``stage``, at another augmentation level of it."""
    run, val = stages_apart(bench), bench.inputs.val
    assert run is not None and val is not None
    source = oracle_source(run, val, chains.rows, stage - 1, _at_level(run.settings, stage, level))
    return _fill_stages(bench, source, Processes())[-1].images()


def _at_level(settings: SamplingConfig, stage: int, level: float) -> SamplingConfig:
    levels = list(settings.aug_level)
    levels[stage - 1] = level
    return replace(non_truncated(settings), aug_level=tuple(levels))
