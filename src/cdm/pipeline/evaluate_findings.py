"""What the figures come to: copies, classes, the stage at fault, and whether FID tells the same as the others."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import numpy as np

from cdm.evaluate.cas import TOP, CasResult, Labelled, NotApplicable, cas
from cdm.evaluate.extractors.base import Extractor
from cdm.evaluate.intervals import Estimate
from cdm.evaluate.memorisation import Known, Memorisation, memorisation
from cdm.evaluate.results import Figure
from cdm.pipeline.evaluate_bench import Bench
from cdm.pipeline.evaluate_figures import FAILURES, Judged, figure_of
from cdm.pipeline.evaluate_inputs import Inputs
from cdm.pipeline.evaluate_pictures import neighbour_pairs, pick
from cdm.pipeline.generate import ImageStore
from cdm.pipeline.reference import ROLES, RealImages, pixels_of
from cdm.train.log import counted

IMAGENET = ("inception", "resnet50")
"""Extractors that are classifiers of ImageNet: what guidance by such a classifier can please without better images."""
PAIRS_SHOWN = 8
UNLIKELY = 0.01
"""Chance below which copying is told."""
BESIDE = ("density", "coverage", "is", "cas_top1", "cas_real_top1")
"""Figures that stand beside the distances."""
APART = 2.0
"""Ratios further apart than this tell different stories."""


def verdict(figures: Sequence[Figure]) -> dict[str, Any]:
    """FID's verdict beside those that guidance cannot cheat: how many times as far from the data as real images each
    distance puts the samples, and what the figures without such a floor say."""
    rows, beside = [], []
    for figure in figures:
        if figure.value is None:
            continue
        imagenet = figure.extractor in IMAGENET
        if figure.metric in ("fd", "kid") and figure.floor is not None and min(figure.floor, figure.value) > 0:
            row = {"label": f"{figure.label} {figure.hash}", "ratio": figure.value / figure.floor}
            rows.append(row | {"imagenet": imagenet, "metric": figure.metric})
        elif figure.metric in BESIDE:
            against = f" against {figure.reference}" if figure.extractor else ""
            label = f"{figure.label}{against} {figure.hash}".strip()
            beside.append({"label": label, "shown": figure.shown, "imagenet": imagenet or figure.metric == "is"})
    return {"sentence": _agreement(_comparable(rows)), "rows": rows, "beside": beside, "by_heart": by_heart(figures)}


def by_heart(figures: Sequence[Figure]) -> str:
    """Over-fitting in a sentence: samples that are nearer to the training images than real validation images are. Empty
    where the Fréchet distance to the training images, or its floor, is not known.

    The floor has no interval of its own: it is taken to err as much as the distance of as many samples.
    """
    for figure in figures:
        if figure.metric != "fd" or figure.reference != "train" or figure.value is None or figure.floor is None:
            continue
        beside = [f for f in figures if (f.metric, f.reference, f.hash) == ("fd", "val", figure.hash)]
        if not beside or beside[0].real < figure.generated:
            return (
                "Whether the samples are nearer to the training images than real ones cannot be told by the distance: "
                "there are fewer validation images than samples, and fewer images are farther."
            )
        if figure.high is None:
            return "Whether the samples are nearer to the training images than real ones cannot be told: no interval."
        told = (
            f"By {figure.label} the samples are {figure.shown} from the training images, as many real validation "
            f"images {figure.shown_floor}"
        )
        if figure.value + sqrt(2) * (figure.high - figure.value) < figure.floor:
            return f"{told}: nearer by more than the intervals, so training images may be learnt by heart."
        return f"{told}: no sign of training images learnt by heart."
    return ""


def _comparable(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ratios of one kind: of Fréchet distances if there are any, else of KID, which grows as the square of them."""
    distances = [row for row in rows if row["metric"] == "fd"]
    return distances or list(rows)


def _agreement(rows: Sequence[dict[str, Any]]) -> str:
    imagenet = [row for row in rows if row["imagenet"]]
    others = [row for row in rows if not row["imagenet"]]
    told = [f"{row['label'].split(' ')[0]} puts the samples {row['ratio']:.1f} times as far from the data as real ones"
            for row in rows]  # fmt: skip
    if not rows:
        return "No distance has real images' own beside it, so nothing can be said of FID's verdict and the others'."
    if not imagenet:
        return f"{'; '.join(told)}. FID was not computed, so there is nothing that it could be at odds with."
    if not others:
        return f"{'; '.join(told)}. Nothing that guidance cannot cheat was computed: add --extractors domain."
    low, high = min(row["ratio"] for row in imagenet), max(row["ratio"] for row in others)
    if high > APART * low:
        end = "They disagree: FID is the kinder, and guidance by an ImageNet classifier can please it; trust the others"
    elif low > APART * high:
        end = "They disagree: FID is the harsher, which guidance does not explain; look at the samples"
    else:
        end = "They agree"
    return f"{'; '.join(told)}. {end}."


def summary(figures: Sequence[Figure], compared: dict[str, Any], diagnosis: dict[str, Any] | None) -> str:
    """The first sentences of the report: the most trusted distance, and what to do."""
    parts = []
    first = next((f for metric in ("fd", "kid") for f in figures if f.metric == metric and f.value is not None), None)
    if first is not None:
        floor = f", that of real validation images {first.shown_floor}" if first.floor is not None else ""
        parts.append(f"{first.label} against the {ROLES.get(first.reference, 'real')} images is {first.shown}{floor}.")
    said = diagnosis is not None and ["disagreement"] in diagnosis["kinds"]
    if "disagree" in compared["sentence"] and not said:
        parts.append(compared["sentence"])
    if "may be learnt by heart" in compared["by_heart"]:
        parts.append(compared["by_heart"])
    if diagnosis is not None:
        parts.append(diagnosis["sentence"])
    return " ".join(parts) or "No distance could be computed; the reasons stand below."


@dataclass(frozen=True)
class Copies:
    """What the search for copies found, for the report and for the diagnosis."""

    found: Memorisation
    told: dict[str, Any]

    def pictures(self, bench: Bench, images: ImageStore) -> list[tuple[bytes, str]]:
        train = bench.inputs.train
        assert train is not None
        pairs = self.found.pairs[:PAIRS_SHOWN]
        samples = pick(bench.inputs.source, images, [pair.sample for pair in pairs])
        return neighbour_pairs(samples, train, [pair.train for pair in pairs])


def why_no_copies(inputs: Inputs, extractors: Sequence[Extractor]) -> str:
    """Why copies cannot be searched for; empty where they can."""
    if inputs.val is None or inputs.train is None:
        return "the search for copies needs validation and training images"
    return "" if extractors else "the search for copies needs an extractor"


def find_copies(bench: Bench, judged: Sequence[Judged], images: ImageStore) -> Copies | None:
    """Nearest training images of samples and of validation images, by the first extractor; on the images kept."""
    desk, val, train = bench.desk, bench.inputs.val, bench.inputs.train
    if not bench.request.wants("memorisation"):
        return None
    reason = why_no_copies(bench.inputs, [own.extractor for own in judged])
    if reason:
        desk.leave_out(reason, ["copy_rate"])
        return None
    assert val is not None and train is not None
    own = judged[0]
    common = {"extractor": own.extractor.name, "hash": own.extractor.hash, "verified": own.extractor.verified,
              "generated": images.count, "real": train.count, "reference": "train",
              "data": train.fingerprint}  # fmt: skip
    began = time.monotonic()
    try:
        found = memorisation(
            Known(images.images(), own.rows("main")[: images.count]),
            Known(pixels_of(val), bench.cache.features(val, own.extractor).rows()),
            Known(pixels_of(train), bench.cache.features(train, own.extractor).rows()),
        )
    except FAILURES as error:
        desk.leave_out(f"failed: {error}", ["copy_rate"], **common)
        return None
    seconds = round(time.monotonic() - began, 1)
    desk.figures.append(figure_of("copy_rate", found.by_features.rate, seconds=seconds, **common))
    return Copies(found, asdict(found) | {"sentence": copies_sentence(found)})


def copies_sentence(found: Memorisation) -> str:
    """The copy rate in words, beside what chance gives."""
    own = found.by_features
    text = (
        f"{100 * own.rate.value:.1f} % of {found.sample_count:,} samples lie nearer to a training image than the "
        f"closest {100 * own.expected:.1f} % of {found.val_count - own.left_out:,} real validation images do: "
    )
    if own.chance < UNLIKELY:
        text += f"more than chance gives (probability {own.chance:.1g}), so training images are repeated."
    else:
        text += "no more than chance gives, so no copying is seen."
    if found.samples_in_train:
        text += f" {found.samples_in_train:,} samples are training images, pixel for pixel."
    if own.left_out:
        text += f" {own.left_out:,} validation images are training images themselves and were left out."
    return text


def score_classes(bench: Bench, images: ImageStore) -> dict[str, Any] | None:
    """CAS with both arms, as figures and as a table for the report; None where it does not apply, with its reason."""
    inputs, desk, request = bench.inputs, bench.desk, bench.request
    if not request.wants("cas"):
        return None
    reason = why_no_classes(inputs)
    if reason:
        desk.leave_out(reason, CAS_METRICS)
        return None
    made, train, val = inputs.source.labels, inputs.train, inputs.val
    assert made is not None and train is not None and val is not None
    assert train.labels is not None and val.labels is not None
    generated = Labelled(images.images(), made[: images.count])
    real = Labelled(pixels_of(train), train.labels), Labelled(pixels_of(val), val.labels)
    return _cas_figures(bench, generated, *real, val)


def why_no_classes(inputs: Inputs) -> str:
    """Why there is no CAS; empty where there is."""
    train, val = inputs.train, inputs.val
    if inputs.source.labels is None or not inputs.source.class_names:
        real = [side for side in (train, val) if side is not None]
        if real and not any(side.class_names for side in real):
            return "CAS needs classes: the real images have none"
        return "CAS needs classes: the judged images have none"
    if train is None or train.labels is None:
        return "CAS needs real training images with classes for its real arm (--train-data)"
    if val is None or val.labels is None:
        return "CAS needs real validation images with classes"
    for what, labels in (("generated", inputs.source.labels), ("real training", train.labels)):
        missing = sorted(set(range(len(inputs.source.class_names))) - set(np.unique(labels).tolist()))
        if missing:
            named = ", ".join(inputs.source.class_names[i] for i in missing[:5]) + ", ..." * (len(missing) > 5)
            return f"CAS does not apply: {counted(len(missing), 'class', 'classes')} without {what} images: {named}"
    return ""


CAS_METRICS = ("cas_top1", "cas_top5", "cas_real_top1", "cas_real_top5")


def _cas_figures(
    bench: Bench, generated: Labelled, train: Labelled, val: Labelled, reference: RealImages
) -> dict[str, Any] | None:  # fmt: skip
    common = {"reference": "val", "data": reference.fingerprint}

    def told(what: str, share: float) -> None:
        bench.progress(f"CAS: {what}", round(1000 * share), 1000)

    began = time.monotonic()
    try:
        found = cas(
            generated, train, val, class_names=bench.inputs.source.class_names, folder=bench.work / "cas",
            device=bench.device, told=told,
        )  # fmt: skip
    except FAILURES as error:
        bench.desk.leave_out(f"failed: {error}", CAS_METRICS, **common)
        return None
    if isinstance(found, NotApplicable):
        bench.desk.leave_out(f"CAS does not apply: {found.reason}", CAS_METRICS, **common)
        return None
    seconds = time.monotonic() - began
    common |= {"generated": found.images, "real": found.val_images, "seconds": round(seconds, 1)}
    common |= {"extractor": found.net, "hash": found.recipe}
    for arm, name in ((found.generated, "cas"), (found.real, "cas_real")):
        for top, estimate in (("top1", arm.top1), ("top5", arm.top5)):
            if top == "top1" or found.top == 5:
                bench.desk.figures.append(figure_of(f"{name}_{top}", estimate, **common))
    return _cas_told(found)


def _cas_told(found: CasResult) -> dict[str, Any]:
    """What the report shows of it, in JSON types."""
    scored = [score for score in found.per_class if score.generated and score.real]
    beaten = (
        f" Better than real in: {', '.join(found.beats)}." if found.beats else " In no class better than real ones."
    )
    return {
        "sentence": found.sentence + beaten,
        "class_names": [score.name for score in scored],
        "class_images": [score.images for score in scored],
        "generated": [score.generated.value for score in scored if score.generated],
        "real": [score.real.value for score in scored if score.real],
        "intervals": {
            arm: [_ends(getattr(score, arm)) for score in scored] for arm in ("generated", "real", "difference")
        },
        "top5": {arm: [getattr(score, f"{arm}_top5").value for score in scored] for arm in ("generated", "real")}
        if found.top == TOP
        else {},
        "beats": list(found.beats),
        "network": found.net,
        "why": found.why,
        "recipe": found.recipe,
        "side": found.side,
        "images": found.images,
        "steps": found.steps,
        "seeds": list(found.seeds),
        "per_seed": {"generated": list(found.generated.per_seed), "real": list(found.real.per_seed)},
        "ceiling": found.ceiling,
        "converged": found.converged,
        "hashes": found.hashes,
    }


def _ends(estimate: Estimate) -> list[float | None]:
    return [estimate.low, estimate.high]
