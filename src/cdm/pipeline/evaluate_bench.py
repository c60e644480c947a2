"""What every step of an evaluation shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from cdm.evaluate.extractors.base import Extractor
from cdm.pipeline.evaluate_figures import Desk, Side
from cdm.pipeline.evaluate_inputs import Inputs
from cdm.pipeline.evaluate_request import EvaluateRequest
from cdm.pipeline.generate import Progress
from cdm.pipeline.processes import Processes
from cdm.pipeline.reference import ReferenceCache

Say = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """What every step needs: the request, what was read, and where things are kept."""

    request: EvaluateRequest
    inputs: Inputs
    processes: Processes
    cache: ReferenceCache
    desk: Desk
    work: Path
    device: torch.device
    progress: Progress
    say: Say

    def side(self, role: str, extractor: Extractor) -> Side | None:
        """Real images of ``role`` as ``extractor`` sees them; given statistics go before those of images."""
        real = self.inputs.val if role == "val" else self.inputs.train
        given = self.inputs.stats.get(role)
        if given is not None and extractor.name != "inception":
            given = None
        if real is None and given is None:
            return None
        rows = None if real is None else self.cache.features(real, extractor).rows()
        if given is not None:
            return Side(role, given.fingerprint, given.count, given.of, rows)
        assert real is not None
        return Side(role, real.fingerprint, real.count, partial(self.cache.stats, real, extractor), rows)
