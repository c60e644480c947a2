"""What a feature extractor is, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float32, UInt8
from torch import Tensor

from cdm.errors import UserError


class MissingWeights(UserError):
    """Weights are not on this machine. The message names the file, where to put it and the option for its path."""


@dataclass(frozen=True)
class Features:
    """What an extractor sees in a batch of images, on the CPU.

    main: what distances are computed on.
    spatial: a map of activations laid flat, for sFID; None: the network has none.
    probabilities: of the classes of the network's own training, for the Inception Score; None: it has none.
    """

    main: Float32[Tensor, "b d"]
    spatial: Float32[Tensor, "b s"] | None = None
    probabilities: Float32[Tensor, "b k"] | None = None

    def by_name(self) -> dict[str, Float32[Tensor, "b _"]]:
        """The parts that are there: ``main``, ``spatial``, ``probabilities``."""
        parts = {"main": self.main, "spatial": self.spatial, "probabilities": self.probabilities}
        return {name: part for name, part in parts.items() if part is not None}


@runtime_checkable  # for the checks of signatures in tests
class Extractor(Protocol):
    """Images to features. Features of an image do not depend on the batch that it comes in.

    name: ``domain``, ``inception``, ``dinov2``, ``resnet50`` or ``custom:MODULE:FUNCTION``.
    hash: 12 hex digits of weights and recipe.
    dim: width of ``Features.main``.
    spatial_dim: width of ``Features.spatial``; 0: none.
    num_probabilities: width of ``Features.probabilities``; 0: none.
    resize: how images come to the network's size, in words; a part of cache keys.
    verified: False for weights that are not the published ones; every figure is then marked.
    """

    @property
    def name(self) -> str: ...
    @property
    def hash(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def spatial_dim(self) -> int: ...
    @property
    def num_probabilities(self) -> int: ...
    @property
    def resize(self) -> str: ...
    @property
    def verified(self) -> bool: ...

    def __call__(self, images: UInt8[Tensor, "b c h w"]) -> Features:
        """Features of a batch, on the CPU whatever the device of the network."""
        ...


def widths(extractor: Extractor) -> dict[str, int]:
    """Numbers per image by name, as ``Features.by_name`` has them: what a ``FeatureStore`` needs to know."""
    named = {
        "main": extractor.dim,
        "spatial": extractor.spatial_dim,
        "probabilities": extractor.num_probabilities,
    }
    return {name: width for name, width in named.items() if width}
