"""The extractors of an evaluation: found, trained, or listed with what they lack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import UInt8
from torch import Tensor

from cdm.errors import UserError
from cdm.evaluate.extractors import load_extractor
from cdm.evaluate.extractors.base import Extractor, Features, MissingWeights
from cdm.evaluate.extractors.domain import MIN_IMAGES, cached_domain
from cdm.nn.classifier import FEATURES
from cdm.pipeline.evaluate_bench import Bench
from cdm.pipeline.evaluate_figures import NEIGHBOURHOODS, Desk
from cdm.pipeline.evaluate_inputs import Inputs
from cdm.pipeline.evaluate_request import DEFAULT_EXTRACTORS, EvaluateRequest
from cdm.pipeline.reference import RealImages, pixels_of
from cdm.runtime import cache_folder

DOMAIN_SEED = 0
EXTRACTED = {"fd": ("fd",), "sfid": ("sfid",), "kid": ("kid",), "is": ("is",), "prdc": NEIGHBOURHOODS}
"""Figures of each group that an extractor is needed for."""


def find_extractors(
    request: EvaluateRequest, inputs: Inputs, desk: Desk, device: torch.device, domain: Callable[[], Extractor]
) -> list[Extractor]:
    """Those asked for; by default ``domain``, and ``inception`` where its weights are. What is missing is listed.

    Args:
        domain: makes that extractor.
    """
    if not any(request.wants(group) for group in (*EXTRACTED, "memorisation", "diagnosis")):
        return []
    found: list[Extractor] = []
    real = inputs.val or inputs.train
    sample = None if real is None else real.block(0, min(4, real.count))
    for name in request.extractors or DEFAULT_EXTRACTORS:
        try:
            if name == "domain":
                found.append(domain())
            else:
                weights = request.extractor_weights.get(name)
                found.append(
                    load_extractor(name, weights=weights, device=device, unverified=request.unverified, sample=sample)
                )
        except MissingWeights as error:
            desk.leave_out(str(error), _figures_of(request, name), extractor=name)
        except UserError as error:
            if name != "domain":
                raise  # weights that are there and damaged, or a callable that is not there: to be mended
            desk.leave_out(f"failed: {error}", _figures_of(request, name), extractor=name)
    return found


def _figures_of(request: EvaluateRequest, extractor: str) -> list[str]:
    """Figures that would need this extractor."""
    groups = ["fd", "kid", "prdc", *(["sfid", "is"] if extractor == "inception" else [])]
    return [metric for group in groups if request.wants(group) for metric in EXTRACTED[group]]


def trained_domain(bench: Bench) -> Extractor:
    """Trained on the real training images, or on those given where there are no others; kept in the cache."""
    real = _of_domain(bench.inputs)
    make = partial(
        cached_domain, cache_folder() / "domain", labels=real.labels, fingerprint=real.key, seed=DOMAIN_SEED,
        device=bench.device,
    )  # fmt: skip

    def told(share: float) -> None:
        bench.progress("training the domain extractor", round(1000 * share), 1000)

    if not bench.processes.first:
        bench.processes.wait()  # the first trains it, the others read it
        return make(images=pixels_of(real))
    try:
        return make(images=pixels_of(real), progress=told)
    finally:
        bench.processes.wait()


def planned_domain(inputs: Inputs) -> Extractor:
    """What stands for it in a dry run, which trains nothing."""
    if _of_domain(inputs).count < MIN_IMAGES:
        raise UserError(f"the domain extractor needs at least {MIN_IMAGES} real images; give more.")
    return _Planned()


@dataclass(frozen=True)
class _Planned:
    """The domain extractor before it is trained."""

    name: str = "domain"
    hash: str = ""
    dim: int = FEATURES
    spatial_dim: int = 0
    num_probabilities: int = 0
    resize: str = ""
    verified: bool = True

    def __call__(self, images: UInt8[Tensor, "b c h w"]) -> Features:
        raise AssertionError("a dry run computes nothing")


def _of_domain(inputs: Inputs) -> RealImages:
    real = inputs.train or inputs.val
    if real is None:
        raise UserError("the domain extractor is trained on real images and got statistics only; give --train-data.")
    return real
