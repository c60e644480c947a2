"""Chains for the diagnosis: real validation images put in after each stage and carried up by those above it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int64

from cdm.artifacts import make_folder
from cdm.cascade import image_seed
from cdm.config import SamplingConfig
from cdm.data.batches import Pyramid
from cdm.data.pixels import to_float
from cdm.evaluate.extractors.base import Extractor, widths
from cdm.evaluate.feature_store import FeatureStore
from cdm.pipeline.evaluate_bench import Bench
from cdm.pipeline.generate import FeatureSink, OracleImages, carry_up, fill, to_bytes
from cdm.pipeline.image_source import Images, key_of
from cdm.pipeline.reference import RealImages, eight_bits

CHAIN_MOST = 2048
"""Images that a chain is judged on at most: the smallest number that suits every extractor."""
PROBED = 64
"""Images of every stage that low-res consistency and colours are measured on."""


@dataclass(frozen=True)
class Chains:
    """Features of each chain. ``stores[k]``: real images put in after stage k. rows: of the validation images."""

    extractor: Extractor
    rows: Int64[np.ndarray, " n"]
    stores: tuple[FeatureStore, ...]


@dataclass(frozen=True)
class Probe:
    """Some images of every stage, uint8 on the CPU, from the base up.

    generated: of the run. real: validation images. oracle: ``oracle[k - 1]`` is stage k on the real images of the stage
    before it.
    """

    generated: tuple[Images, ...]
    real: tuple[Images, ...]
    oracle: tuple[Images, ...]


def chain_rows(val: RealImages, count: int) -> Int64[np.ndarray, " n"]:
    """Validation images spread evenly, so that every class has its share."""
    return np.unique(np.linspace(0, val.count - 1, min(count, val.count)).round().astype(np.int64))


def why_not(bench: Bench, extractors: Sequence[Extractor]) -> str:
    """Why this cannot be taken apart; empty where it can."""
    run, val = bench.inputs.run, bench.inputs.val
    if run is None:
        return "only a run has stages"
    if len(run.cascade.stages) < 2:
        return "the run has one stage only"
    if val is None:
        return "it needs the validation images, not their statistics"
    return "" if extractors else "it needs an extractor"


def fill_chains(bench: Bench, extractors: Sequence[Extractor]) -> Chains | None:
    """Make the chains and their features, by the first extractor (all processes take part)."""
    if not bench.request.wants("diagnosis") or why_not(bench, extractors):
        return None
    run, val, extractor = bench.inputs.run, bench.inputs.val, extractors[0]
    assert run is not None and val is not None
    rows = chain_rows(val, min(run.count, CHAIN_MOST))
    pyramid = Pyramid(val.array, run.cascade.config.sizes)
    labels = None if val.labels is None else val.labels[rows]
    stores = []
    for after in range(len(run.cascade.stages) - 1):
        low_res = np.asarray(pyramid.at(after)[val.rows[rows]])
        source = OracleImages(
            run.cascade, oracle_settings(run.settings), run.seed, after, low_res, val.array.window, labels, val.key
        )
        key = key_of(source.key, len(rows), extractor.name, extractor.hash)
        store = FeatureStore.open(make_folder(bench.work / "features"), key, len(rows), widths(extractor))
        fill(source, [FeatureSink(extractor, store)], bench.processes, bench.request.batch_size, bench.progress)
        stores.append(store)
    return Chains(extractor, rows, tuple(stores))


def oracle_settings(settings: SamplingConfig) -> SamplingConfig:
    """A real image has no x_t to hand over."""
    return replace(settings, hand_over="non_truncated")


def probe(bench: Bench) -> Probe:
    """Sample the images that are looked at closely; the same ones every time."""
    run, val = bench.inputs.run, bench.inputs.val
    assert run is not None and val is not None
    cascade = run.cascade
    count = min(PROBED, run.count)
    rows = chain_rows(val, count)
    labels = None if val.labels is None else torch.from_numpy(val.labels[rows])
    seeds = torch.tensor([image_seed(run.seed, i) for i in range(len(rows))])
    pyramid = Pyramid(val.array, cascade.config.sizes)
    real = [np.asarray(pyramid.at(k)[val.rows[rows]]) for k in range(len(cascade.stages))]
    oracle = []
    for k in range(1, len(cascade.stages)):
        x = to_float(real[k - 1], val.array.window).to(cascade.device)
        made = carry_up(cascade, k - 1, x, labels, seeds, oracle_settings(run.settings), stop_after=k)
        oracle.append(to_bytes(made, "the oracle"))
    parts = [run.stages(i, min(i + bench.request.batch_size, count)) for i in range(0, count, bench.request.batch_size)]
    generated = tuple(torch.cat(own) for own in zip(*parts, strict=True))
    return Probe(generated, tuple(eight_bits(images, val.array) for images in real), tuple(oracle))
