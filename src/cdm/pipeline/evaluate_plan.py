"""``cdm evaluate --dry-run``: what would be measured, and what would not with the reason."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from cdm.evaluate.extractors.base import Extractor
from cdm.evaluate.kid import LEAST
from cdm.evaluate.results import Figure
from cdm.pipeline.evaluate_chains import why_not
from cdm.pipeline.evaluate_extractors import find_extractors, planned_domain
from cdm.pipeline.evaluate_figures import NEIGHBOURHOODS, Desk, Ledger
from cdm.pipeline.evaluate_findings import CAS_METRICS, why_no_classes, why_no_copies
from cdm.pipeline.evaluate_inputs import Inputs, open_inputs
from cdm.pipeline.evaluate_request import EvaluateRequest, too_few
from cdm.pipeline.generate import Progress
from cdm.pipeline.saving import StatisticsFile, check_save
from cdm.runtime import choose_device
from cdm.train.log import counted

Say = Callable[[str], None]


def describe(request: EvaluateRequest, progress: Progress, say: Say) -> None:
    """Say what would be measured. Nothing is computed and nothing written."""
    device = choose_device(request.device)
    inputs = open_inputs(request, progress, say)
    ledger = Ledger(request.out / "work" / "figures.jsonl")
    check_save(request, inputs.source, ledger)
    statistics = StatisticsFile.asked(request, inputs.val, ledger)
    say(f"{counted(inputs.source.count, 'image')} of {inputs.source.what} at {inputs.source.shape[-1]} pixels")
    for role, data in inputs.data.items():
        count = counted(data["count"], "image") if data["count"] else "statistics"
        say(f"{role}: {count} of {data['where']}, fingerprint {data['fingerprint']}")
    desk = Desk(request, ledger, say)
    extractors = find_extractors(request, inputs, desk, device, partial(planned_domain, inputs))
    if statistics is not None:
        statistics.find_extractor(extractors)
    planned = [label for extractor in extractors for label in _by_extractor(desk, inputs, extractor)]
    planned += _of_all(desk, inputs, extractors, say)
    say(f"to be measured: {'; '.join(planned) or 'nothing'}")
    say(f"nothing was written; without --dry-run this writes {request.out / 'report.html'}")


def _by_extractor(desk: Desk, inputs: Inputs, extractor: Extractor) -> list[str]:
    """Figures by this extractor in words; what will not be computed is left out at the desk."""
    request, count, planned = desk.request, inputs.source.count, []
    if request.wants("is") and extractor.num_probabilities:
        planned.append(_label("is", extractor))
    for role, real in (("train", inputs.train), ("val", inputs.val)):
        stats = inputs.stats.get(role) if extractor.name == "inception" else None
        if real is None and stats is None:
            continue
        there = (real.count if stats is None and real is not None else stats.count if stats is not None else 0) or count
        metrics = [*["fd"] * request.wants("fd"), *["sfid"] * (request.wants("sfid") and extractor.spatial_dim > 0)]
        reason = too_few(extractor.name, extractor.dim, count, there)
        if metrics and reason and not request.force:
            desk.leave_out(reason, metrics, extractor=extractor.name, reference=role)
            metrics = []
        few = min(count, there) < LEAST
        if few and request.wants("kid"):
            reason = f"KID needs at least {LEAST} images on both sides; got {count} judged ones and {there} of {role}"
            desk.leave_out(reason, ["kid"], extractor=extractor.name, reference=role)
        others = [*["kid"] * (request.wants("kid") and not few), *(NEIGHBOURHOODS if request.wants("prdc") else ())]
        if real is None and others:
            reason = "the reference holds statistics only; this needs the images"
            desk.leave_out(reason, others, extractor=extractor.name, reference=role)
            others = []
        if metrics or others:
            planned.append(f"{', '.join(_label(metric, extractor) for metric in metrics + others)} against {role}")
    return planned


def _label(metric: str, extractor: Extractor) -> str:
    return Figure(metric=metric, value=None, extractor=extractor.name).label


def _of_all(desk: Desk, inputs: Inputs, extractors: list[Extractor], say: Say) -> list[str]:
    """CAS, copies and the diagnosis."""
    request, planned = desk.request, []
    for group, words, reason, metrics in (
        ("memorisation", "copies of training images", why_no_copies(inputs, extractors), ("copy_rate",)),
        ("cas", "CAS", why_no_classes(inputs), CAS_METRICS),
    ):
        if request.wants(group) and reason:
            desk.leave_out(reason, metrics)
        elif request.wants(group):
            planned.append(words)
    reason = why_not(inputs, extractors)
    if request.wants("diagnosis") and reason:
        say(f"no diagnosis: {reason}")
    elif request.wants("diagnosis"):
        planned.append("diagnosis")
    return planned
