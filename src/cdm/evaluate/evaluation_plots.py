"""Plots of an evaluation: PNG bytes. Sized to be read on a telephone: few words, one axis."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

ACCENT, QUIET, GOOD = "#1f4e8c", "#9a9aa4", "#2f7d4f"
MOST_CLASSES = 60
TICKS_APART = 0.09  # of the range of levels, or their words run into each other
NO_IMAGE = 100.0  # sigma / alpha from which nothing is left of an image


def _figure(width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def ratio_plot(rows: Sequence[tuple[str, float]]) -> bytes:
    """How many times as far from the data as real validation images each distance says the samples are.

    rows: (label, ratio > 0), at least one.
    """
    figure, axes = _figure(6.4, 0.9 + 0.42 * len(rows))
    labels, ratios = zip(*rows, strict=True)
    places = np.arange(len(rows))[::-1]
    axes.hlines(places, 1, ratios, color=QUIET, linewidth=1.2)
    axes.plot(ratios, places, "o", color=ACCENT, markersize=7)
    axes.axvline(1, color=GOOD, linewidth=1.4)
    axes.set_yticks(places, labels)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xscale("log")
    low, high = min(1.0, *ratios) / 1.15, max(1.0, *ratios) * 1.15
    axes.set_xlim(low, high)
    ticks = [t for t in (0.01, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000, 10000) if low <= t <= high]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("times as far as real images (green)")
    return _png(figure)


def bars_plot(rows: Sequence[tuple[str, float]], what: str) -> bytes:
    """One bar for each (label, value), at least one."""
    figure, axes = _figure(6.4, 0.9 + 0.45 * len(rows))
    labels, values = zip(*rows, strict=True)
    places = np.arange(len(rows))[::-1]
    axes.barh(places, values, color=[ACCENT if value >= 0 else GOOD for value in values], height=0.6)
    axes.axvline(0, color=QUIET, linewidth=1)
    axes.set_yticks(places, labels)
    axes.set_xlabel(what)
    return _png(figure)


def classes_plot(names: Sequence[str], generated: Sequence[float], real: Sequence[float]) -> bytes:
    """Accuracy per class of the two arms of CAS, worst first; of very many classes the worst and the best."""
    order = np.argsort(np.asarray(generated) - np.asarray(real), kind="stable")
    if len(order) > MOST_CLASSES:
        order = np.concatenate([order[: MOST_CLASSES // 2], order[-MOST_CLASSES // 2 :]])
    figure, axes = _figure(6.4, 1.0 + 0.24 * len(order))
    places = np.arange(len(order))[::-1]
    made, true = (100 * np.asarray(values)[order] for values in (generated, real))
    axes.hlines(places, made, true, color=QUIET, linewidth=1)
    axes.plot(true, places, "o", color=GOOD, markersize=5, label="trained on real images")
    axes.plot(made, places, "o", color=ACCENT, markersize=5, label="trained on generated images")
    axes.set_yticks(places, [_short(names[int(i)]) for i in order])
    axes.set_ylim(-0.7, len(order) - 0.3)
    axes.set_xlabel("real validation images named right, %")
    axes.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return _png(figure)


def quartiles_plot(rows: Sequence[tuple[str, Sequence[float]]], threshold: float, what: str) -> bytes:
    """Lower quartile, median and upper quartile of each row, and a line at ``threshold``."""
    figure, axes = _figure(6.4, 1.0 + 0.45 * len(rows))
    places = np.arange(len(rows))[::-1]
    for place, (_, (low, middle, high)) in zip(places, rows, strict=True):
        axes.hlines(place, low, high, color=ACCENT, linewidth=6, alpha=0.4)
        axes.plot(middle, place, "o", color=ACCENT, markersize=7)
    axes.axvline(threshold, color=GOOD, linewidth=1.4)
    axes.set_yticks(places, [label for label, _ in rows])
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlim(left=0)
    axes.set_xlabel(what)
    return _png(figure)


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"


def front_plot(points: Sequence[Mapping[str, Any]], front: Sequence[Mapping[str, Any]]) -> bytes:
    """Distance against evaluations, both axes logarithmic; a line through ``front``, which is part of ``points``."""
    figure, axes = _figure(6.4, 3.8)
    for sampler in dict.fromkeys(str(point["sampler"]) for point in points):
        own = [point for point in points if point["sampler"] == sampler]
        axes.plot([p["evaluations"] for p in own], [p["distance"] for p in own], "o", markersize=4, label=sampler)
    xs, ys = [p["evaluations"] for p in front], [p["distance"] for p in front]
    ends = [(p["distance"] - (p["low"] or p["distance"]), (p["high"] or p["distance"]) - p["distance"]) for p in front]
    axes.errorbar(xs, ys, yerr=np.array(ends).T, color=ACCENT, linewidth=1.4, capsize=3)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({point["evaluations"] for point in points})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("network evaluations")
    axes.set_ylabel("Fréchet distance")
    axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def apart(places: Sequence[float], least: float) -> list[float]:
    """Those of rising ``places`` that lie ``least`` or more above the one kept before."""
    kept = list[float]()
    for place in places:
        if not kept or place - kept[-1] >= least:
            kept.append(place)
    return kept


def levels_plot(curves: Mapping[str, Sequence[Mapping[str, Any]]], what: str) -> bytes:
    """Distance against augmentation level, a line for each kind of low-res images; sigma / alpha above. Thin bars from
    ``low`` to ``high``, thick ones over ``paired``.

    curves: name to points of ``level``, ``noise_ratio``, ``distance``, ``low``, ``high`` and ``paired``; "real" in a
        name is green.
    """
    figure, axes = _figure(6.4, 4.2)
    styles = iter([(ACCENT, line) for line in ("-", "--", ":")])
    reach = max((point["level"] for points in curves.values() for point in points), default=1.0)
    for k, (name, points) in enumerate(curves.items()):
        colour, line = (GOOD, "-") if "real" in name else next(styles)
        values = [point["distance"] for point in points]
        places = [point["level"] + 0.01 * reach * k for point in points]  # bars beside each other
        for place, point in zip(places, points, strict=True):
            if point["low"] is not None:
                axes.vlines(place, point["low"], point["high"], color=colour, linewidth=0.7, alpha=0.6)
            if point["paired"] is not None:
                axes.vlines(place, *point["paired"], color=colour, linewidth=3.5, alpha=0.6)
        axes.plot(places, values, color=colour, linestyle=line, linewidth=1.4, marker="o", markersize=4, label=name)
    ratios = {p["level"]: p["noise_ratio"] for points in curves.values() for p in points}
    ticks = apart(sorted(ratios), TICKS_APART * reach)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    above = axes.secondary_xaxis("top")
    above.set_xticks(ticks, [f"{ratio:.2g}" if (ratio := ratios[tick]) < NO_IMAGE else "∞" for tick in ticks])
    above.set_xlabel("σ/α")
    axes.set_xlabel("augmentation level s")
    axes.set_ylabel(what)
    axes.legend(frameon=False, fontsize=8)
    return _png(figure)
