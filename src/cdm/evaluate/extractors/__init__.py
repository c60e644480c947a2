"""Feature extractors: networks that turn images into the vectors that distances are computed on."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from cdm.errors import UserError
from cdm.evaluate.extractors.base import Extractor
from cdm.evaluate.extractors.custom import PREFIX, load_custom
from cdm.evaluate.extractors.hub import DINOV2, RESNET50, load_hub
from cdm.evaluate.extractors.inception import load_inception

NAMES = ("inception", DINOV2.name, RESNET50.name)
"""Extractors with published weights."""


def load_extractor(
    name: str,
    *,
    weights: Path | None = None,
    device: torch.device,
    unverified: bool = False,
    sample: UInt8[Tensor, "b c h w"] | None = None,
) -> Extractor:
    """``inception``, ``dinov2``, ``resnet50``, ``custom:MODULE:FUNCTION`` or ``custom:FILE.py:FUNCTION``.

    Args:
        weights: a file (inception) or a folder as transformers keeps it; None: ``$CDM_WEIGHTS`` or
            ``~/.cache/cdm/weights``, and the Hugging Face cache. Nothing is downloaded.
        unverified: take weights that are not known to be the published ones; the extractor then says so.
        sample: 2 images or more as they will come, for trying a custom extractor.

    Raises:
        MissingWeights: weights or a package are not on this machine.
        UserError: unknown name, damaged or other weights, a custom function that does not keep its promise.
    """
    if name == "inception":
        return load_inception(weights, device, unverified)
    for model in (DINOV2, RESNET50):
        if name == model.name:
            return load_hub(model, weights, device, unverified)
    if name.startswith(PREFIX):
        return load_custom(name, sample)
    raise UserError(
        f"unknown extractor {name!r}; expected domain, {', '.join(NAMES)} or custom:MODULE:FUNCTION: check it."
    )
