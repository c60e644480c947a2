"""Figures of ``cdm evaluate``: each computed on its own, so that one that fails leaves the others standing, and kept,
so that an interrupted evaluation does not compute it twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cdm.artifacts import append_event, read_events
from cdm.errors import UserError
from cdm.evaluate.extractors.base import Extractor
from cdm.evaluate.frechet import INTERVALS, frechet_distance, frechet_estimate
from cdm.evaluate.inception_score import inception_score
from cdm.evaluate.intervals import Estimate
from cdm.evaluate.kid import kid
from cdm.evaluate.prdc import prdc
from cdm.evaluate.results import Figure, finite, short_name
from cdm.evaluate.stats import FeatureStats, feature_stats, is_constant
from cdm.pipeline.evaluate_request import EvaluateRequest, too_few
from cdm.pipeline.image_source import ClassIndex, key_of

FAILURES = (UserError, ValueError, ArithmeticError, RuntimeError, MemoryError, np.linalg.LinAlgError)
"""What a metric may fail by; the others go on."""
NEIGHBOURHOODS = ("precision", "recall", "density", "coverage")


class Ledger:
    """What was computed so far, one line each, flushed; read again by the next call. A line that has lost a part is as
    good as none: what it held is computed once more."""

    def __init__(self, path: Path) -> None:
        """``path``: its folder need not exist before the first ``put``."""
        self._path = path
        events = read_events(path)
        whole = (event for event in events if isinstance(event.get("key"), str) and "body" in event)
        self._known = {event["key"]: event["body"] for event in whole}

    def get(self, key: str) -> Any | None:
        return self._known.get(key)

    def put(self, key: str, body: Any) -> Any:
        """``body``: JSON types."""
        body = self._known[key] = finite(body)
        append_event(self._path, {"key": key, "body": body})
        return body


@dataclass(frozen=True)
class Side:
    """Real images as one extractor sees them. ``rows``: features, None where only statistics are known."""

    reference: str  # val or train
    data: str
    count: int
    stats: Callable[[str], FeatureStats]
    rows: np.ndarray | None


@dataclass(frozen=True)
class Judged:
    """The images under judgement as one extractor sees them."""

    key: str
    extractor: Extractor
    rows: Callable[[str], np.ndarray]
    count: int
    labels: ClassIndex | None = None


class Desk:
    """Computes figures and collects them, good and failed."""

    def __init__(self, request: EvaluateRequest, ledger: Ledger, say: Callable[[str], None]) -> None:
        self.request, self.ledger, self.say = request, ledger, say
        self.figures: list[Figure] = []
        self._told: set[str] = set()

    def leave_out(self, reason: str, metrics: Sequence[str], **common: Any) -> None:
        """List ``metrics`` as not computed; the reason is said once."""
        self.figures += [Figure(metric=metric, value=None, reason=reason, **common) for metric in metrics]
        if reason not in self._told:
            self._told.add(reason)
            self.say(f"not computed: {', '.join(figure.label for figure in self.figures[-len(metrics) :])}: {reason}")

    def measure(
        self, metrics: Sequence[str], key: Sequence[Any], compute: Callable[[], Mapping[str, Estimate]], **common: Any
    ) -> list[Figure]:
        """Figures of one computation, or of an earlier call that had the same ``key``."""
        name = key_of(list(metrics), list(key), common)
        figures = _figures(self.ledger.get(name))
        if not figures:
            began = time.monotonic()
            try:
                estimates = compute()
            except FAILURES as error:
                words = f"{type(error).__name__}: " * (not isinstance(error, UserError))
                self.leave_out(f"failed: {words}{error}", metrics, **common)
                return []
            seconds = round((time.monotonic() - began) / len(estimates), 3)
            figures = [figure_of(metric, estimate, seconds=seconds, **common) for metric, estimate in estimates.items()]
            self.ledger.put(name, [asdict(figure) for figure in figures])
        self.figures += figures
        return figures

    # ---- by extractor ------------------------------------------------------------------------------------------------

    def inception_score(self, judged: Judged) -> None:
        common = _common(judged)
        if not judged.extractor.num_probabilities:
            return
        self.measure(["is"], [judged.key], lambda: {"is": inception_score(judged.rows("probabilities"))}, **common)

    def distances(self, judged: Judged, side: Side, floor: Side | None) -> None:
        """FD, sFID, KID and the four of neighbourhoods against one set of real images.

        floor: real images that are not ``side``, whose distance to it is what perfect samples would have.
        """
        common = _common(judged, side)
        if self._same_features(judged, side, common):
            return
        if self.request.wants("fd"):
            self._frechet("fd", "main", judged, side, floor, common)
        if self.request.wants("sfid") and judged.extractor.spatial_dim:
            self._frechet("sfid", "spatial", judged, side, None, common)
        rows = side.rows
        if rows is None:
            wanted = ["kid"] * self.request.wants("kid") + [*NEIGHBOURHOODS] * self.request.wants("prdc")
            if wanted:
                self.leave_out("the reference holds statistics only; this needs the images", wanted, **common)
            return
        if self.request.wants("kid"):
            made = self.measure(["kid"], [judged.key], lambda: {"kid": kid(rows, judged.rows("main"))}, **common)
            if made and floor is not None and floor.rows is not None:
                self._put_floor(made[0], self._kid_floor(judged, side, floor), len(floor.rows))
        if self.request.wants("prdc"):
            self.measure(NEIGHBOURHOODS, [judged.key], lambda: _prdc(rows, judged), **common)

    def _same_features(self, judged: Judged, side: Side, common: dict[str, Any]) -> bool:
        """Whether one side has the same features for every image: no distance says anything then, all are left out."""
        for what, rows in (("generated", judged.rows("main")), ("real", side.rows)):
            if rows is not None and is_constant(rows):
                groups = {"fd": ["fd"], "kid": ["kid"], "prdc": NEIGHBOURHOODS}
                wanted = [metric for group, own in groups.items() if self.request.wants(group) for metric in own]
                reason = (
                    f"failed: {short_name(judged.extractor.name)} gives all {what} images the same features (zero "
                    "variance); expected images that differ: look at them, or take another extractor"
                )
                if wanted:
                    self.leave_out(reason, wanted, **common)
                return True
        return False

    def _frechet(
        self, metric: str, name: str, judged: Judged, side: Side, floor: Side | None, common: dict[str, Any]
    ) -> None:
        real = side.count or judged.count  # ADM's files do not tell how many images their statistics are of
        reason = too_few(judged.extractor.name, judged.extractor.dim, judged.count, real)
        if reason and not self.request.force:
            self.leave_out(reason, [metric], **common)
            return
        made = self.measure(
            [metric], [judged.key, INTERVALS],
            lambda: {metric: frechet_estimate(side.stats(name), judged.rows(name), judged.labels)},
            forced=bool(reason), **common,
        )  # fmt: skip
        if made and floor is not None and floor.rows is not None:
            self._put_floor(made[0], self._floor(side, floor, judged), min(judged.count, len(floor.rows)))

    def _floor(self, side: Side, floor: Side, judged: Judged) -> float | None:
        """The same distance of as many real images, or of all where they are fewer."""
        assert floor.rows is not None
        if floor.data == side.data:
            return None
        key = key_of("fd floor of spread rows", side.data, floor.data, judged.extractor.hash, judged.count)
        known = self.ledger.get(key)
        if known is None:
            try:
                stats = feature_stats(spread_rows(floor.rows, judged.count))
                known = self.ledger.put(key, [frechet_distance(side.stats("main"), stats)])
            except FAILURES:
                return None
        return known[0]

    def _kid_floor(self, judged: Judged, side: Side, floor: Side) -> float | None:
        if floor.data == side.data or floor.rows is None or side.rows is None:
            return None
        key = key_of("kid floor", side.data, floor.data, judged.extractor.hash)
        known = self.ledger.get(key)
        if known is None:
            try:
                known = self.ledger.put(key, [kid(side.rows, floor.rows).value])
            except FAILURES:
                return None
        return known[0]

    def _put_floor(self, figure: Figure, floor: float | None, images: int) -> None:
        found = replace(figure, floor=floor, floor_images=images if floor is not None else 0)
        self.figures[self.figures.index(figure)] = found


def spread_rows(rows: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` rows, evenly spread: real images stand class by class, so the first are of one."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(np.int64)]


def _figures(known: Any) -> list[Figure]:
    """As the ledger keeps them; none where it has none, or a damaged entry."""
    try:
        return [Figure(**entry) for entry in known or ()]
    except TypeError:
        return []


def figure_of(metric: str, estimate: Estimate, **common: Any) -> Figure:
    """An estimate as an entry of the report; a value that is no number is a failure."""
    value = float(estimate.value)
    if not np.isfinite(value):
        return Figure(metric=metric, value=None, reason=f"failed: it came out as {value}", **common)
    low, high = (None if end is None else float(end) for end in (estimate.low, estimate.high))
    return Figure(metric=metric, value=value, low=low, high=high, interval=estimate.method, **common)


def _common(judged: Judged, side: Side | None = None) -> dict[str, Any]:
    extractor = judged.extractor
    common = {
        "extractor": extractor.name,
        "hash": extractor.hash,
        "generated": judged.count,
        "verified": extractor.verified,
    }
    if side is not None:
        common |= {"reference": side.reference, "data": side.data, "real": side.count}
    return common


def _prdc(rows: np.ndarray, judged: Judged) -> dict[str, Estimate]:
    found = prdc(rows, judged.rows("main"))
    return {name: getattr(found, name) for name in NEIGHBOURHOODS}
