"""A user's own extractor: a Python path to a function from images to features."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from cdm.errors import UserError
from cdm.evaluate.extractors.base import Features
from cdm.rng import Purpose, Rng

PREFIX = "custom:"
TOLERANCE = 1e-3
"""Of a feature in a batch and alone, as a share of the largest feature."""
PROBES = 8
"""Images of noise whose features go into the hash."""
GRAIN = 1e-3
"""What these features are rounded to, as a share of their size: coarser than what machines differ by."""


@dataclass(frozen=True)
class CustomExtractor:
    """``function(uint8 [B, C, H, W]) -> [B, D]`` floats (tensor or array), checked on every call."""

    function: Callable[[Tensor], Any]
    name: str
    hash: str
    dim: int
    spatial_dim: int = 0
    num_probabilities: int = 0
    resize: str = "its own"
    verified: bool = True

    def __call__(self, images: UInt8[Tensor, "b c h w"]) -> Features:
        features = _call(self.function, images, self.name)
        if features.shape[1] != self.dim:
            raise UserError(
                f"{self.name} gave {features.shape[1]} features per image and {self.dim} before; "
                "expected the same number for all images."
            )
        return Features(features)


def load_custom(spec: str, sample: UInt8[Tensor, "b c h w"] | None) -> CustomExtractor:
    """``custom:module:function`` or ``custom:path/file.py:function``, tried on a few images.

    Args:
        sample: images as it will meet them, 2 or more; None: two random ones, 3x64x64.

    Raises:
        UserError: no such function, it fails, or its features have the wrong shape or dtype, are not finite, or depend
            on the other images of a batch.
    """
    where, _, function_name = spec.removeprefix(PREFIX).rpartition(":")
    if not where or not function_name:
        raise UserError(f"got the extractor {spec!r}; expected custom:MODULE:FUNCTION or custom:FILE.py:FUNCTION.")
    module = _load_file(Path(where)) if where.endswith(".py") else _load_module(where)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"{where} has no function {function_name!r}; expected one from images to features.")
    if sample is None:
        sample = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    together = _call(function, sample, spec)
    alone = torch.cat([_call(function, image[None], spec) for image in sample])
    if together.shape != alone.shape or (together - alone).abs().max() > TOLERANCE * together.abs().max():
        raise UserError(
            f"{spec} gives an image other features in a batch than alone; expected the same: "
            "put the network into eval mode, and normalise each image by itself."
        )
    shape = (int(sample.shape[1]), int(sample.shape[2]), int(sample.shape[3]))
    hashed = _hash(_source(module), function_name, _call(function, probe_images(shape), spec))
    return CustomExtractor(function, spec, hashed, together.shape[1])


def probe_images(shape: tuple[int, int, int]) -> UInt8[Tensor, "b c h w"]:
    """The same noise on every machine."""
    words = Rng(0).int32(Purpose.EVALUATE, torch.arange(PROBES), shape)
    return (words & 255).to(torch.uint8)


def _load_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"cdm_custom_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"there is no Python file {path}; expected custom:FILE.py:FUNCTION.")
    module = importlib.util.module_from_spec(spec)
    _guarded(str(path), lambda: spec.loader.exec_module(module))  # pyright: ignore[reportOptionalMemberAccess]
    return module


def _load_module(name: str) -> Any:
    return _guarded(name, lambda: importlib.import_module(name))


def _guarded(what: str, action: Callable[[], Any]) -> Any:
    """Whatever a user's code raises, as one sentence."""
    try:
        return action()
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a script that ends itself is an error here
        raise UserError(
            f"the custom extractor {what} failed ({type(error).__name__}: {error}); expected it to run: mend it there."
        ) from error


def _call(function: Callable[[Tensor], Any], images: UInt8[Tensor, "b c h w"], name: str) -> Float32[Tensor, "b d"]:
    def run() -> Any:
        with torch.no_grad():
            return function(images)

    features = _guarded(name, run)
    if isinstance(features, np.ndarray):
        features = torch.from_numpy(features)
    if not isinstance(features, Tensor) or not features.is_floating_point():
        kind = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise UserError(f"{name} gave {kind}; expected a tensor or an array of floats, one row per image.")
    if features.dim() != 2 or features.shape[0] != len(images) or features.shape[1] == 0:
        raise UserError(
            f"{name} gave the shape {list(features.shape)} for {len(images)} images; expected [{len(images)}, D]."
        )
    features = features.detach().float().cpu()
    if not features.isfinite().all():
        raise UserError(f"{name} gave NaN or infinity; expected finite features: check its weights and arithmetic.")
    return features


def _source(module: Any) -> str:
    try:
        return inspect.getsource(module)
    except (OSError, TypeError):
        return module.__name__


def _hash(source: str, function_name: str, features: Float32[Tensor, "b d"]) -> str:
    """Of the source, the function's name and what it makes of the probe images, so that other weights tell.

    Each probe is told by one number, a sum of its features with random signs: the fewer numbers, the less likely is one
    that lies on the edge of rounding and falls to the other side on another machine.
    """
    x = features.double()
    size = float(x.norm(dim=1).square().mean().sqrt())
    signs = Rng(0).int32(Purpose.EVALUATE, torch.arange(1), (x.shape[1],), step=1).sign().double()[0]
    sums = [] if size == 0 else (x @ signs / (size * GRAIN)).round().long().tolist()
    told = (function_name, source, x.shape[1], sums, round(log(size) / GRAIN) if size else None)
    return hashlib.sha256(repr(told).encode()).hexdigest()[:12]
