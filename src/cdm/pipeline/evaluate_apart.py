"""The cascade diagnosis of an evaluation: from chains of images to a sentence, a table and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from cdm.evaluate.diagnosis import Diagnosis, Measurements, View, better_level, diagnose
from cdm.evaluate.frechet import frechet_estimate
from cdm.evaluate.intervals import Estimate
from cdm.evaluate.measurements import LevelImages, features_of, measure_cascade, measure_images, view_of
from cdm.evaluate.results import short_name
from cdm.evaluate.stats import FeatureStats, is_constant
from cdm.pipeline.evaluate_bench import Bench
from cdm.pipeline.evaluate_chains import Chains, oracle_at_level, other_levels, pairs_of, stage_images, why_not
from cdm.pipeline.evaluate_figures import FAILURES, Judged, spread_rows
from cdm.pipeline.evaluate_findings import Copies
from cdm.pipeline.evaluate_pictures import stage_panels
from cdm.pipeline.evaluate_request import least_images, too_few
from cdm.pipeline.generate import ImageStore
from cdm.pipeline.reference import ROLES


def take_apart(
    bench: Bench, judged: Sequence[Judged], images: ImageStore, chains: Chains | None, length: int,
    copies: Copies | None,
) -> tuple[dict[str, Any] | None, list[tuple[bytes, str]]]:  # fmt: skip
    """The diagnosis for the report, and its pictures; None where it does not apply, which is said."""
    if not bench.request.wants("diagnosis"):
        return None, []
    reason = why_not(bench.inputs, [own.extractor for own in judged])
    if reason or not length:
        bench.say(f"no diagnosis: {reason}")
        return None, []
    side = bench.side("val", judged[0].extractor)
    if is_constant(judged[0].rows("main")) or (side is not None and side.rows is not None and is_constant(side.rows)):
        bench.say(f"no diagnosis: {short_name(judged[0].extractor.name)} gives all images the same features")
        return None, []
    try:
        found, shown = _measurements(bench, judged, images, chains, length, copies)
    except FAILURES as error:
        bench.say(f"no diagnosis: {error}")
        return None, []
    return _told(found, diagnose(found), least_images(judged[0].extractor.dim)), shown


def _measurements(
    bench: Bench, judged: Sequence[Judged], images: ImageStore, chains: Chains | None, length: int,
    copies: Copies | None,
) -> tuple[Measurements, list[tuple[bytes, str]]]:  # fmt: skip
    """Of the cascade, or of images alone. Other augmentation levels are tried only where something is wrong."""
    own, val, run = judged[0], bench.inputs.val, bench.inputs.run
    assert val is not None
    reference, name = _reference(bench, own)
    memory = None if copies is None else copies.found
    if chains is None or run is None:
        indices, rows = pairs_of(bench.inputs.source.labels, images.count, val, length)
        views = _views(bench, judged[1:], len(rows))
        made, real = images.images()[indices], val.pick(rows)
        labels = None if val.labels is None else val.labels[rows]
        found = measure_images(
            made, real, own.extractor, reference, name, memorisation=memory, views=views, labels=labels
        )
        return found, []
    parts = stage_images(chains, val, images, run.cascade.config.sizes)
    views = _views(bench, judged[1:], len(chains.rows))
    used = (None, *run.settings.aug_level)
    logsnr = (None, *(s.aug_logsnr(level) for s, level in zip(run.cascade.stages[1:], used[1:], strict=True) if level
                      is not None))  # fmt: skip

    def measure(levels: Sequence[LevelImages]) -> Measurements:
        return measure_cascade(parts, own.extractor, reference, name, levels_used=used, aug_logsnr=logsnr,
                               levels=levels, memorisation=memory, views=views)  # fmt: skip

    found = measure(())
    if any(finding.stage is not None for finding in diagnose(found).findings):
        found = measure(other_levels(bench, chains))
        better = better_level(found)
        if better is not None:  # what is lost above its stage, and below it, is told at that level
            oracle = oracle_at_level(bench, chains, better.stage, better.level)
            distance = frechet_estimate(reference, features_of(own.extractor, oracle), parts.labels)
            levels = (replace(each, oracle=distance) if each is better else each for each in found.levels)
            found = replace(found, levels=tuple(levels))
    return found, stage_panels(parts)


def _reference(bench: Bench, own: Judged) -> tuple[FeatureStats, str]:
    """What distances of the diagnosis are to: the training images; without them, the validation images."""
    for role in ("train", "val"):
        side = bench.side(role, own.extractor)
        if side is not None:
            return side.stats("main"), f"{ROLES[role]} images"
    raise AssertionError("validation images are there")


def _views(bench: Bench, judged: Sequence[Judged], count: int) -> list[View]:
    """The other extractors on as many images, where they have enough of them."""
    views = []
    for own in judged:
        side, val = bench.side("train", own.extractor), bench.side("val", own.extractor)
        if side is None or val is None or val.rows is None:
            continue
        number = min(count, len(val.rows), own.count)
        if too_few(own.extractor.name, own.extractor.dim, number, number):
            continue
        stats = side.stats("main")
        floor, full = spread_rows(val.rows, number), own.rows("main")[:number]
        views.append(
            view_of(own.extractor, stats, frechet_estimate(stats, full, own.labels), frechet_estimate(stats, floor))
        )
    return views


def _told(found: Measurements, verdict: Diagnosis, least: int) -> dict[str, Any]:
    """What the report shows of the diagnosis, in JSON types."""
    few = f" (On {found.count:,} images, fewer than the {least:,} that such a distance wants: take it as a hint.)"
    losses = [{"label": name.split(" (")[0], "value": loss.value, "low": loss.low, "high": loss.high}
              for name, loss in zip(found.stages, found.losses, strict=True)]  # fmt: skip
    label = "FID" if found.extractor == "inception" else f"FD-{found.extractor.rsplit(':', 1)[-1]}"
    return {
        "sentence": verdict.sentence + few * (found.count < least),
        "findings": [finding.sentence for finding in verdict.findings],
        "kinds": [list(finding.kinds) for finding in verdict.findings],
        "stages": [finding.stage for finding in verdict.findings],
        "distance": f"{label} to the {found.reference}",
        "hash": found.hash,
        "count": found.count,
        "losses": losses,
        "distances": [asdict(distance) for distance in found.distances],
        "levels": [asdict(level) for level in found.levels],
        "table": {"columns": [name.split(" (")[0] for name in found.stages], "rows": _stage_rows(found)},
    }


def _stage_rows(found: Measurements) -> list[list[str]]:
    """A row for each kind of measurement, a cell for each stage."""
    rows = [["lost here", *(_with_reach(loss) for loss in found.losses)]]
    if found.colour:
        worst = [max(shift.mean, key=lambda estimate: abs(estimate.value)) for shift in found.colour]
        rows.append(["largest shift of a channel, of 255", *map(_with_reach, worst)])
    if any(found.consistency):
        for name, pick_one in (
            ("PSNR with its low-res, dB", "generated"),
            ("the same from real low-res, dB", "oracle"),
        ):
            cells = ["–" if own is None else _with_reach(getattr(own, pick_one)) for own in found.consistency]
            rows.append([name, *cells])
        least = ["–" if own is None else f"{own.least:.1f}" for own in found.consistency]
        rows.append(["expected at least, dB", *least])
    return rows


def _with_reach(estimate: Estimate) -> str:
    reach = "" if estimate.high is None else f" ± {estimate.high - estimate.value:.2g}"
    return f"{estimate.value:.3g}{reach}"
