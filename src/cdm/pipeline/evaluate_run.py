"""``cdm evaluate``: from a run or images to ``report.json`` and ``report.html``. The same call again goes on."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

import cdm
from cdm.artifacts import RunLock, make_folder
from cdm.errors import UserError
from cdm.evaluate.evaluation_report import evaluation_report
from cdm.evaluate.extractors.base import Extractor, widths
from cdm.evaluate.feature_store import FeatureStore
from cdm.evaluate.results import Report, save_report
from cdm.pipeline.costs import stage_costs, told_costs
from cdm.pipeline.evaluate_apart import take_apart
from cdm.pipeline.evaluate_bench import Bench
from cdm.pipeline.evaluate_chains import Chains, chain_length, fill_chains, lower_stores
from cdm.pipeline.evaluate_extractors import find_extractors, trained_domain
from cdm.pipeline.evaluate_figures import Desk, Judged, Ledger
from cdm.pipeline.evaluate_findings import find_copies, score_classes, summary, verdict
from cdm.pipeline.evaluate_inputs import Inputs, open_inputs
from cdm.pipeline.evaluate_pictures import sample_sheet
from cdm.pipeline.evaluate_request import EvaluateRequest
from cdm.pipeline.generate import FeatureSink, ImageStore, Progress, Sink, fill
from cdm.pipeline.image_source import key_of
from cdm.pipeline.processes import Processes
from cdm.pipeline.reference import ReferenceCache
from cdm.pipeline.saving import FolderSink, StatisticsFile, check_save, is_archive, pack
from cdm.runtime import cache_folder, choose_device, set_threads
from cdm.train.log import counted, duration

Say = Callable[[str], None]
SHOWN_MOST = 208
"""Images kept for the sheet of samples."""


def evaluate(request: EvaluateRequest, processes: Processes, progress: Progress, say: Say) -> Path | None:
    """Carry the request out. Returns the path of ``report.html`` on the first process, None on the others.

    Raises:
        UserError: something that cannot work, or neither a figure nor a diagnosis could be made (the report then says
            why).
    """
    began = time.monotonic()
    set_threads(request.threads)
    device = choose_device(request.device)
    inputs = open_inputs(request, progress, say)
    work = request.out / "work"
    ledger = Ledger(work / "figures.jsonl")
    check_save(request, inputs.source, ledger)
    statistics = StatisticsFile.asked(request, inputs.val, ledger)
    make_folder(work)
    lock = RunLock(request.out) if processes.first else None
    try:
        cache = ReferenceCache(cache_folder(), processes, request.batch_size, progress, say)
        bench = Bench(request, inputs, processes, cache, Desk(request, ledger, say), work, device, progress, say)
        say(
            f"judging {counted(inputs.source.count, 'image')} of {inputs.source.what}, {inputs.source.shape[-1]} pixels"
        )
        extractors = find_extractors(request, inputs, bench.desk, device, partial(trained_domain, bench))
        if statistics is not None:
            statistics.find_extractor(extractors)
        length = chain_length(bench, extractors)
        lower = lower_stores(bench, length)
        stores, images = run_through(bench, extractors, length, lower)
        for extractor in extractors:
            for role in ("val", "train"):
                bench.side(role, extractor)  # every process takes its share of the reference's blocks
        chains = fill_chains(bench, length, lower)
        if not processes.first:
            processes.wait()
            return None
        if statistics is not None:
            statistics.write(cache, extractors, say)
        report = _judge(bench, extractors, stores, images, (chains, length), began)
        processes.wait()
        return report
    finally:
        if lock is not None:
            lock.release()


def run_through(
    bench: Bench, extractors: Sequence[Extractor], length: int, lower: Sequence[ImageStore]
) -> tuple[list[FeatureStore], ImageStore]:
    """The one pass over the images: features of each extractor, the images that are needed again, and ``--save``."""
    request, source = bench.request, bench.inputs.source
    sinks: list[Sink] = []
    stores = []
    for extractor in extractors:
        key = key_of(source.key, extractor.name, extractor.hash, extractor.resize)
        stores.append(FeatureStore.open(make_folder(bench.work / "features"), key, source.count, widths(extractor)))
        sinks.append(FeatureSink(extractor, stores[-1]))
    images = ImageStore(bench.work, source.key, _kept(bench, length), source.shape)
    sinks += [images, *lower]
    if request.save is not None and not is_archive(request.save):
        sinks.append(FolderSink(Path(request.save), request, source, bench.inputs.run))
    began = time.monotonic()
    made = fill(source, sinks, bench.processes, request.batch_size, bench.progress, bench.say)
    if made:
        bench.say(f"{counted(made, 'image')} in {duration(time.monotonic() - began)}")
    if bench.processes.first:
        pack(request, source, images, bench.desk.ledger, bench.say)
    return stores, images


def _kept(bench: Bench, length: int) -> int:
    """How many images, from the first on, are kept in the working folder: for CAS, copies, pictures,
    diagnosis; all for an archive."""
    request, source, train = bench.request, bench.inputs.source, bench.inputs.train
    if is_archive(request.save):
        return source.count
    again = request.wants("memorisation") or (request.wants("cas") and source.labels is not None)
    return min(source.count, max(SHOWN_MOST, length, train.count if again and train is not None else 0))


def _judge(
    bench: Bench, extractors: Sequence[Extractor], stores: Sequence[FeatureStore], images: ImageStore,
    apart: tuple[Chains | None, int], began: float,
) -> Path:  # fmt: skip
    """Everything that one process does alone: figures, findings, the report."""
    desk, inputs, request = bench.desk, bench.inputs, bench.request
    judged = [
        Judged(inputs.source.key, extractor, store.rows, store.count, inputs.source.labels)
        for extractor, store in zip(extractors, stores, strict=True)
    ]
    for own in judged:
        bench.progress(f"figures on {own.extractor.name}", 0, 1)
        if request.wants("is"):
            desk.inception_score(own)
        val, train = bench.side("val", own.extractor), bench.side("train", own.extractor)
        for side in (train, val):
            if side is not None:
                desk.distances(own, side, val if side is train else None)
    memory = find_copies(bench, judged, images)
    cas = score_classes(bench, images)
    diagnosis, panels = take_apart(bench, judged, images, *apart, memory)
    pictures = {"samples": sample_sheet(inputs.source, images), "panels": panels}
    if memory is not None:
        pictures["neighbours"] = memory.pictures(bench, images)
    compared = verdict(desk.figures)
    run = inputs.run
    costs = [] if run is None else told_costs(stage_costs(run.cascade, run.settings, request.batch_size))
    report = Report(
        summary=summary(desk.figures, compared, diagnosis),
        subject=inputs.subject,
        data=inputs.data,
        figures=tuple(desk.figures),
        verdict=compared,
        diagnosis=diagnosis,
        memorisation=None if memory is None else memory.told,
        cas=cas,
        costs=costs,
        warnings=inputs.warnings,
        made={
            "command": request.command,
            "written": datetime.now().strftime("%Y-%m-%d %H:%M"),
            "version": f"cdm {cdm.__version__}",
            "processes": bench.processes.count,
            "seconds": round(time.monotonic() - began, 1),
        },
    )
    save_report(request.out / "report.json", report)
    page = evaluation_report(request.out / "report.html", report, pictures, _next(request, inputs))
    if not report.computed and report.diagnosis is None:
        reason = report.missing[0].reason if report.missing else "nothing was asked for that applies here"
        raise UserError(f"not one figure could be computed ({reason.rstrip('.')}); {page} lists the reasons.")
    _tell(report, bench.say)
    return page


def _tell(report: Report, say: Say) -> None:
    for figure in report.computed:
        interval = f" ({figure.shown_interval})" if figure.shown_interval else ""
        measured = f" by {figure.extractor} {figure.hash}" if figure.extractor else ""
        against = f" against {figure.reference}" if figure.reference else ""
        say(f"{figure.label}: {figure.shown}{interval}{measured}{against}")
    for words in report.marks:
        say(words)
    say(report.summary)


def _next(request: EvaluateRequest, inputs: Inputs) -> list[tuple[str, str]]:
    """Commands for the page."""
    commands = [(request.command, "The same again (what is done is not done twice):")] if request.command else []
    if inputs.run is not None:
        run = shlex.quote(request.subject)
        commands.append((f"cdm sample {run} -n 16 --seed 1", "Look at more images:"))
    return [
        *commands,
        (f"cdm compare {shlex.quote(str(request.out))} OTHER/", "Put another evaluation beside this one:"),
    ]
