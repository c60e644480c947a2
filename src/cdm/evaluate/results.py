"""``report.json`` of ``cdm evaluate``, documented in docs/evaluate.md: every figure with all it can be traced by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from cdm.artifacts import load_json, save_json
from cdm.errors import UserError

REPORT_VERSION = 1
Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    label: with ``{}`` for the extractor. factor: shown times this.
    by_count: whether it hangs on the numbers of images, so that only equal numbers can be compared.
    """

    label: str
    better: Better
    digits: int = 2
    factor: float = 1.0
    unit: str = ""
    by_count: bool = True


METRICS = {
    "fd": Metric("FD-{}", "lower"),
    "sfid": Metric("sFID", "lower"),
    "kid": Metric("KID-{} ×1000", "lower", factor=1000.0, by_count=False),
    "is": Metric("Inception Score", "higher"),
    "precision": Metric("precision", "higher", digits=3),
    "recall": Metric("recall", "higher", digits=3),
    "density": Metric("density", "higher", digits=3),
    "coverage": Metric("coverage", "higher", digits=3),
    "cas_top1": Metric("CAS top-1", "higher", digits=1, factor=100.0, unit=" %"),
    "cas_top5": Metric("CAS top-5", "higher", digits=1, factor=100.0, unit=" %"),
    "cas_real_top1": Metric("the same, trained on real images, top-1", "higher", digits=1, factor=100.0, unit=" %"),
    "cas_real_top5": Metric("the same, trained on real images, top-5", "higher", digits=1, factor=100.0, unit=" %"),
    "copy_rate": Metric("copies of training images", "lower", digits=1, factor=100.0, unit=" %", by_count=False),
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number and where it comes from.

    metric: a key of ``METRICS``. value: None where it was not computed; ``reason`` then says why.
    low, high: ends of the 95 % interval, or None. interval: how it was made, or why there is none.
    extractor, hash: of the features; of CAS, the network that was trained and its recipe; empty where none are used.
    generated, real: number of images on each side; real is 0 where the number is not known or none are used.
    reference: ``val``, ``train`` or empty. data: fingerprint of that reference.
    verified: False for weights other than the published ones. forced: computed with ``--force`` on too few images.
    floor: the same distance of real validation images, where that is known. floor_images: how many they are; as many as
    are judged for a Fréchet distance, which depends on it, or all where they are fewer.
    """

    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None
    interval: str = ""
    extractor: str = ""
    hash: str = ""
    generated: int = 0
    real: int = 0
    reference: str = ""
    data: str = ""
    verified: bool = True
    forced: bool = False
    floor: float | None = None
    floor_images: int = 0
    seconds: float = 0.0
    reason: str = ""

    @property
    def key(self) -> tuple[str, str, str, str, tuple[int, int]]:
        """Figures are comparable only where this is the same: metric, extractor's hash, reference and its data, and the
        numbers of images where the metric hangs on them."""
        counts = (self.generated, self.real) if METRICS[self.metric].by_count else (0, 0)
        return (self.metric, f"{self.extractor} {self.hash}".strip(), self.reference, self.data, counts)

    @property
    def shown_counts(self) -> str:
        """Numbers of generated and of real images."""
        return f"{self.generated:,} / {self.real:,}" if self.real else f"{self.generated:,}"

    @property
    def label(self) -> str:
        """As people call it: FID for FD on Inception."""
        if self.metric == "fd" and self.extractor == "inception":
            return "FID"
        return METRICS[self.metric].label.format(short_name(self.extractor) or "?")

    @property
    def shown(self) -> str:
        """The value as it is read, with its marks: ``!`` too few images, ``?`` not the published weights."""
        if self.value is None:
            return "not computed"
        return f"{self._number(self.value)}{METRICS[self.metric].unit}{self.marks}"

    @property
    def marks(self) -> str:
        return " !" * self.forced + " ?" * (not self.verified)

    @property
    def shown_interval(self) -> str:
        if self.low is None or self.high is None:
            return ""
        return f"{self._number(self.low)} to {self._number(self.high)}"

    @property
    def shown_floor(self) -> str:
        if self.floor is None:
            return ""
        fewer = f" (of only {self.floor_images:,} images)" if 0 < self.floor_images < self.generated else ""
        return f"{self._number(self.floor)}{fewer}"

    def _number(self, value: float) -> str:
        metric = METRICS[self.metric]
        value *= metric.factor
        digits = metric.digits if value == 0 or abs(value) >= 10**-metric.digits else 4
        return f"{value:,.{digits}f}"


def short_name(extractor: str) -> str:
    """``custom:package.module:function`` is called by its function."""
    return extractor.rsplit(":", 1)[-1]


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that ``report.json`` holds. The dictionaries hold JSON types; docs/evaluate.md lists their keys.

    subject: what was judged. data: ``val`` and ``train``. verdict: FID's beside those that guidance cannot cheat.
    diagnosis, memorisation, cas: None where they do not apply, ``warnings`` or a figure's reason says why.
    costs: of one image at each stage, where a run is judged.
    """

    summary: str
    subject: dict[str, Any]
    data: dict[str, dict[str, Any]]
    figures: tuple[Figure, ...]
    verdict: dict[str, Any] = field(default_factory=dict)
    diagnosis: dict[str, Any] | None = None
    memorisation: dict[str, Any] | None = None
    cas: dict[str, Any] | None = None
    costs: list[dict[str, Any]] = field(default_factory=list)
    warnings: tuple[str, ...] = ()
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def marks(self) -> list[str]:
        """What the marks behind figures mean, where there are any."""
        words = []
        if any(figure.forced for figure in self.computed):
            words.append("!: computed with --force on too few images.")
        if not all(figure.verified for figure in self.computed):
            words.append("?: by weights that are not the published ones (--unverified-weights).")
        return words

    @property
    def computed(self) -> list[Figure]:
        return [figure for figure in self.figures if figure.value is not None]

    @property
    def missing(self) -> list[Figure]:
        return [figure for figure in self.figures if figure.value is None]

    def find(self, metric: str, extractor: str = "", reference: str = "") -> Figure | None:
        """The first computed figure of that name; an empty argument takes any."""
        for figure in self.computed:
            if figure.metric == metric and extractor in ("", figure.extractor) and reference in ("", figure.reference):
                return figure
        return None


def save_report(path: Path, report: Report) -> Path:
    """Write ``report.json``, replaced in one go. Numbers that are not finite become null."""
    body = {item.name: getattr(report, item.name) for item in fields(report)}
    body["figures"] = [{item.name: getattr(figure, item.name) for item in fields(figure)} for figure in report.figures]
    save_json(path, {"kind": "evaluation", "report_version": REPORT_VERSION} | finite(body))
    return path


def finite(body: Any) -> Any:
    """JSON types with every NaN and infinity put to None: JSON has no word for them."""
    if isinstance(body, dict):
        return {str(key): finite(value) for key, value in body.items()}
    if isinstance(body, list | tuple):
        return [finite(value) for value in body]
    return None if isinstance(body, float) and not math.isfinite(body) else body


def load_report(path: Path) -> Report:
    """Read what ``save_report`` wrote; ``path`` is the file or its folder. Unknown keys are left out.

    Raises:
        UserError: no report, or one of a newer version. CorruptError: damaged.
    """
    path = path / "report.json" if path.is_dir() else path
    if not path.exists():
        raise UserError(f"there is no report at {path}; expected the report.json, or the --out, of `cdm evaluate`.")
    body = load_json(path)
    if body.pop("kind", None) != "evaluation":
        raise UserError(f"{path} is no evaluation; expected the report.json of `cdm evaluate`: name another file.")
    version = body.pop("report_version", 0)
    if version > REPORT_VERSION:
        raise UserError(
            f"{path} has report version {version}, this cdm reads up to {REPORT_VERSION}; install the newer cdm."
        )
    try:
        figures = tuple(Figure(**_known(Figure, entry)) for entry in body.pop("figures"))
        warnings = tuple(body.pop("warnings"))
        return Report(figures=figures, warnings=warnings, **_known(Report, body))
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} does not fit the format of reports ({error}); evaluate once more.") from error


def _known(kind: type[Figure] | type[Report], body: dict[str, Any]) -> dict[str, Any]:
    names = {item.name for item in fields(kind)}
    return {key: value for key, value in body.items() if key in names}


@dataclass(frozen=True)
class Comparison:
    """Several reports in one table: a row for each kind of figure, a column for each report; only figures of the same
    metric, extractor hash and reference data, and of the same numbers of images where these matter, share a row."""

    names: tuple[str, ...]
    rows: tuple[tuple[Figure | None, ...], ...]

    def head(self, row: Sequence[Figure | None]) -> tuple[str, str]:
        """What a row is: metric and direction, and what it was measured with."""
        figure = next(figure for figure in row if figure is not None)
        arrow = "↓" if METRICS[figure.metric].better == "lower" else "↑"
        measured = " ".join(part for part in (figure.extractor and short_name(figure.extractor), figure.hash) if part)
        against = f"against {figure.reference} {figure.data[:6]}".strip() if figure.reference else ""
        counts = f"{figure.shown_counts} images" if METRICS[figure.metric].by_count else ""
        return f"{figure.label} {arrow}", ", ".join(part for part in (measured, against, counts) if part)

    def best(self, row: Sequence[Figure | None]) -> int | None:
        """Column of the best value, None where fewer than two have one, or their intervals do not tell them apart."""
        known = [(figure.value, i) for i, figure in enumerate(row) if figure is not None and figure.value is not None]
        if len(known) < 2:
            return None
        figure = next(figure for figure in row if figure is not None)
        known.sort(reverse=METRICS[figure.metric].better == "higher")
        first, second = row[known[0][1]], row[known[1][1]]
        return None if overlap(first, second) else known[0][1]


def overlap(a: Figure | None, b: Figure | None) -> bool:
    """Whether the intervals of two figures share a value; figures without intervals overlap where they are equal."""
    if a is None or b is None:
        return False
    low_a, high_a, low_b, high_b = (
        figure.value if end is None else end for figure in (a, b) for end in (figure.low, figure.high)
    )
    if low_a is None or high_a is None or low_b is None or high_b is None:
        return False
    return low_a <= high_b and low_b <= high_a


def compare(names: Sequence[str], reports: Sequence[Report]) -> Comparison:
    """Put reports side by side, rows in the order in which metrics are listed."""
    keys: dict[tuple[str, str, str, str, tuple[int, int]], None] = {}
    for report in reports:
        keys |= dict.fromkeys(figure.key for figure in report.computed)
    order = list(METRICS)
    rows = []
    for key in sorted(keys, key=lambda key: (order.index(key[0]), key[1:])):
        rows.append(tuple(next((f for f in report.computed if f.key == key), None) for report in reports))
    return Comparison(tuple(names), tuple(rows))
