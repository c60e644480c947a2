"""A run beside real images and the extractor they are compared by: what a search or an experiment judges with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cdm.cascade import Cascade
from cdm.errors import UserError
from cdm.evaluate.extractors.base import Extractor
from cdm.evaluate.stats import FeatureStats
from cdm.pipeline.evaluate_bench import Bench
from cdm.pipeline.evaluate_extractors import trained_domain
from cdm.pipeline.evaluate_figures import Desk, Ledger
from cdm.pipeline.evaluate_inputs import open_inputs
from cdm.pipeline.evaluate_request import EvaluateRequest
from cdm.pipeline.generate import Progress
from cdm.pipeline.image_source import ClassIndex
from cdm.pipeline.processes import Processes
from cdm.pipeline.reference import RealImages, ReferenceCache
from cdm.pipeline.tune_trials import reference_stats
from cdm.runtime import cache_folder, choose_device


@dataclass(frozen=True)
class Judge:
    """val: real images kept from training. labels: class of each generated image, in turn; None without classes."""

    cascade: Cascade
    val: RealImages
    labels: ClassIndex | None
    extractor: Extractor
    cache: ReferenceCache

    def reference(self, size: int) -> FeatureStats:
        """Of the real images as a stage of this size shows them."""
        return reference_stats(self.cache, self.val, self.extractor, size)


def open_judge(request: EvaluateRequest, progress: Progress, say: Callable[[str], None]) -> Judge:
    """Read run and images, and train the domain extractor or take it from the cache.

    Raises:
        UserError: what does not fit together, and statistics instead of real images.
    """
    inputs = open_inputs(request, progress, say)
    if inputs.run is None:
        raise UserError(f"{request.subject} is not a run folder; expected the --out of `cdm train`.")
    if inputs.val is None:
        raise UserError(f"--data {request.data} holds statistics only; expected the real images themselves.")
    cache = ReferenceCache(cache_folder(), Processes(), request.batch_size, progress, say)
    desk = Desk(request, Ledger(request.out / "figures.jsonl"), say)
    device = choose_device(request.device)
    bench = Bench(request, inputs, Processes(), cache, desk, request.out, device, progress, say)
    return Judge(inputs.run.cascade, inputs.val, inputs.run.labels, trained_domain(bench), cache)
