"""``report.html`` of ``cdm evaluate`` and of ``cdm compare``: one file with tables, plots and pictures inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cdm.evaluate.evaluation_plots import bars_plot, classes_plot, quartiles_plot, ratio_plot
from cdm.evaluate.report import Commands, Picture, Section, Table, Text, write_report
from cdm.evaluate.results import METRICS, Comparison, Figure, Report, short_name

NONE = "–"
Block = Text | Commands | Table | Picture


def evaluation_report(
    path: Path, report: Report, pictures: Mapping[str, Sequence[tuple[bytes, str]]], commands: Sequence[tuple[str, str]]
) -> Path:
    """Write the page.

    Args:
        pictures: PNG bytes and caption, under ``samples``, ``panels`` or ``neighbours``.
        commands: what to do next, with a word on why.
    """
    samples = [Picture(*picture) for picture in pictures.get("samples", ())]
    sections = [
        Section("In short", _summary(report)),
        Section("Figures", [*_figures(report), Text(_legend(report))]),
        Section("What guidance cannot cheat", _verdict(report)),
        Section("Which stage", _diagnosis(report, pictures.get("panels", ()))),
        *([Section("What an image costs", costs_blocks(report.costs))] if report.costs else []),
        Section("Classes", _classes(report)),
        Section("Copies", _memorisation(report, pictures.get("neighbours", ()))),
        Section("Samples", samples or [Text("No samples are shown.")]),
        Section("Not computed", _missing(report)),
        Section("Where each figure comes from", [_sources(report), *_data(report)]),
        Section("What next", [Commands(commands)]),
    ]
    title = f"{report.subject.get('name', 'images')}: evaluation"
    return write_report(path, title, sections, _header(report))


def _header(report: Report) -> dict[str, str]:
    subject, made = report.subject, report.made
    header = {"judged": f"{subject.get('count', 0):,} images of {subject.get('where', '')}"}
    if subject.get("hash"):
        header["weights"] = str(subject["hash"])
    if subject.get("settings"):
        header["sampled with"] = str(subject["settings"])
    header |= {name: _data_words(data) for name, data in report.data.items() if data}
    return header | {name: str(made[name]) for name in ("command", "written", "version") if made.get(name)}


def _data_words(data: Mapping[str, Any]) -> str:
    count = f"{data['count']:,} images" if data.get("count") else "statistics"
    own, size = data.get("own_size", 0), data.get("size", 0)
    sizes = f"{own} pixels, compared at {size}, " if own > size else ""
    return f"{data.get('where', '')}, {count}, {sizes}{data.get('fingerprint', '')}"


def _summary(report: Report) -> list[Block]:
    return [Text(report.summary), *(Text(f"Mind: {warning}") for warning in report.warnings)]


def columns(figures: Sequence[Figure]) -> list[tuple[str, str]]:
    """(extractor, hash) in order of appearance: one column each, so figures of different hashes never share one."""
    return list(dict.fromkeys((figure.extractor, figure.hash) for figure in figures))


def _figures(report: Report) -> list[Block]:
    """A table per reference with a column for each extractor and hash, and one of what needs no extractor."""
    blocks: list[Block] = []
    for reference, words in (
        ("train", "Against the training images"),
        ("val", "Against the validation images"),
        ("", ""),
    ):
        own = [figure for figure in report.computed if figure.reference == reference and _on_features(figure)]
        if not own:
            continue
        heads = columns(own)
        metrics = list(dict.fromkeys(figure.metric for figure in own))
        rows = [[_row_name(metric), *(_cell(own, metric, head) for head in heads)] for metric in metrics]
        if words:
            blocks.append(Text(f"{words}:"))
        blocks.append(Table(["", *(f"{short_name(name)} {digest}" for name, digest in heads)], rows))
    rest = [figure for figure in report.computed if not _on_features(figure)]
    if rest:
        blocks.append(Table(["", "value", "95 % interval"],
                            [[f.label, f.shown, f.shown_interval or NONE] for f in rest]))  # fmt: skip
    return blocks or [Text("No figure could be computed: the reasons stand below.")]


def _on_features(figure: Figure) -> bool:
    """CAS trains a network of its own, of which ``extractor`` is the name."""
    return bool(figure.extractor) and not figure.metric.startswith("cas")


def _row_name(metric: str) -> str:
    arrow = "↓" if METRICS[metric].better == "lower" else "↑"
    return f"{METRICS[metric].label.replace('-{}', '')} {arrow}"


def _cell(figures: Sequence[Figure], metric: str, head: tuple[str, str]) -> str:
    found = [figure for figure in figures if figure.metric == metric and (figure.extractor, figure.hash) == head]
    if not found:
        return NONE
    figure = found[0]
    interval = f" ({figure.shown_interval})" if figure.shown_interval else ""
    floor = "" if figure.floor is None else f"; real {figure.shown_floor}"
    return f"{figure.shown}{interval}{floor}"


def _legend(report: Report) -> str:
    words = "↓ less is better, ↑ more is better; in brackets the 95 % interval."
    if any(figure.floor is not None for figure in report.computed):
        words += " real: the same distance of real validation images, the floor."
    return " ".join([words, *report.marks])


def _verdict(report: Report) -> list[Block]:
    verdict = report.verdict
    if not verdict:
        return [Text("Nothing to compare: no distance could be computed.")]
    blocks: list[Block] = [Text(verdict["sentence"])]
    rows = verdict.get("rows", [])
    if rows:
        heads = ["", "times as far as real images", "an ImageNet classifier's"]
        table = [[row["label"], f"{row['ratio']:.2f}", "yes" if row["imagenet"] else "no"] for row in rows]
        blocks.append(Table(heads, table))
        drawn = [(row["label"], max(row["ratio"], 0.1)) for row in rows]
        blocks.append(Picture(ratio_plot(drawn), "Each distance over that of real validation images, which is 1."))
    if verdict.get("beside"):
        beside = [[row["label"], row["shown"], "yes" if row["imagenet"] else "no"] for row in verdict["beside"]]
        blocks.append(Table(["", "value", "an ImageNet classifier's"], beside))
    return blocks


def _diagnosis(report: Report, panels: Sequence[tuple[bytes, str]]) -> list[Block]:
    diagnosis = report.diagnosis
    if diagnosis is None:
        return [Text("Only a run with super-resolution stages, and real images to put in, can be taken apart.")]
    blocks: list[Block] = [Text(diagnosis["sentence"])]
    blocks += [Text(finding) for finding in diagnosis.get("findings", ()) if finding not in diagnosis["sentence"]]
    losses = [(row["label"], row["value"]) for row in diagnosis.get("losses", ()) if row["value"] is not None]
    if losses:
        what = diagnosis.get("distance", "distance")
        blocks.append(Picture(bars_plot(losses, f"lost at each stage, {what}"), f"What each stage costs: {what}."))
    if diagnosis.get("table"):
        blocks.append(Table(["", *diagnosis["table"]["columns"]], diagnosis["table"]["rows"]))
    return blocks + [Picture(*panel) for panel in panels]


def costs_blocks(costs: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Of each stage: a row of ``pipeline.costs.told_costs``."""
    rows = [
        [row["stage"], f"{row['evaluations']}", f"{row['flops'] / 1e9:.2f}", f"{1000 * row['seconds']:.2f}",
         f"{100 * row['share']:.0f} %"]
        for row in costs
    ]  # fmt: skip
    heads = ["stage", "network evaluations", "GFLOPs", "ms", "of the time"]
    words = "Of one image in a batch, on the machine that made this page; the sampler's own arithmetic is not in it."
    return [Table(heads, rows), Text(words)]


def _classes(report: Report) -> list[Block]:
    cas = report.cas
    if cas is None:
        return [Text("No classification accuracy score; if it was asked for, 'Not computed' gives the reason.")]
    names, made, real = cas["class_names"], cas["generated"], cas["real"]
    blocks: list[Block] = [Text(cas["sentence"])]
    blocks.append(
        Picture(classes_plot(names, made, real), "Accuracy on real validation images per class, worst first.")
    )
    if cas.get("why"):
        blocks.append(Text(f"The network: {cas['network']} at {cas['side']} pixels ({cas['why']})."))
    ends, top5 = cas.get("intervals", {}), cas.get("top5", {})
    heads = ["class", "trained on generated", "trained on real", "difference"]
    if top5:
        heads += ["generated, top-5", "real, top-5"]
    rows = []
    for i in sorted(range(len(names)), key=lambda i: made[i] - real[i]):
        shares = (("generated", made[i], ""), ("real", real[i], ""), ("difference", made[i] - real[i], "+"))
        row = [names[i], *(_share(value, ends.get(arm, {i: None})[i], sign) for arm, value, sign in shares)]
        rows.append([*row, *(f"{100 * top5[arm][i]:.1f} %" for arm in top5)])
    blocks.append(Table(heads, rows))
    if ends:
        words = "In brackets the 95 % intervals over seeds and validation images, of each class on its own:"
        blocks.append(Text(f"{words} about one class in 40 would be marked as better than real by chance alone."))
    return blocks


def _share(value: float, ends: Sequence[float | None] | None, sign: str) -> str:
    text = f"{100 * value:{sign}.1f} %" if not sign else f"{100 * value:+.1f}"
    if not ends or ends[0] is None or ends[1] is None:
        return text
    return f"{text} ({100 * ends[0]:{sign}.1f} to {100 * ends[1]:{sign}.1f})"


def _memorisation(report: Report, pictures: Sequence[tuple[bytes, str]]) -> list[Block]:
    own, by_heart = report.memorisation, report.verdict.get("by_heart")
    heart: list[Block] = [Text(by_heart)] if by_heart else []
    if own is None:
        return [Text("No nearest training images were looked for; this needs them (--train-data)."), *heart]
    blocks: list[Block] = [Text(own["sentence"]), *heart]
    if own.get("samples") and own.get("val"):
        rows = [("samples", own["samples"]), ("real validation images", own["val"])]
        what = "distance to the nearest training image: quartiles"
        caption = "Copies lie left of the green line, where only the closest hundredth of unseen real images do."
        blocks.append(Picture(quartiles_plot(rows, own["by_features"]["threshold"], what), caption))
    return blocks + [Picture(*picture) for picture in pictures]


def _missing(report: Report) -> list[Block]:
    if not report.missing:
        return [Text("Everything that was asked for was computed.")]
    grouped: dict[str, list[str]] = {}
    for figure in report.missing:
        against = f" against {figure.reference}" if figure.reference else ""
        grouped.setdefault(figure.reason, []).append(figure.label + against)
    return [Text(f"{', '.join(labels)}: {reason}") for reason, labels in grouped.items()]


def _sources(report: Report) -> Table:
    """Every figure with all it can be traced by."""
    rows = []
    for figure in report.computed:
        interval = figure.interval or NONE
        extractor = f"{short_name(figure.extractor)} {figure.hash}" if figure.extractor else NONE
        reference = f"{figure.reference} {figure.data}".strip() or NONE
        rows.append([figure.label, figure.shown, figure.shown_interval or NONE, interval, extractor, reference,
                     figure.shown_counts, f"{figure.seconds:.1f} s"])  # fmt: skip
    heads = ["figure", "value", "95 %", "interval by", "extractor", "reference", "generated / real", "took"]
    return Table(heads, rows)


def _data(report: Report) -> list[Text]:
    return [Text(f"{name}: {_data_words(data)}.") for name, data in report.data.items() if data]


def comparison_report(path: Path, comparison: Comparison, reports: Sequence[Report], command: str) -> Path:
    """The page of ``cdm compare --out``."""
    header = {name: _judged(report) for name, report in zip(comparison.names, reports, strict=True)}
    sections = [
        Section("Side by side", [Table(*comparison_table(comparison)), Text(COMPARISON_WORDS)]),
        Section("In short", [Text(f"{name}: {report.summary}")
                             for name, report in zip(comparison.names, reports, strict=True)]),
    ]  # fmt: skip
    return write_report(path, "cdm compare", sections, header | {"command": command})


COMPARISON_WORDS = (
    "Figures stand in one row only where extractor, weights hash and reference data are the same, and the numbers of "
    "images (generated / real) too for those that hang on them. *: the best, where the 95 % intervals tell it from the "
    "next."
)


def comparison_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of text."""
    rows = []
    for row in comparison.rows:
        label, measured = comparison.head(row)
        best = comparison.best(row)
        rows.append([label, *(_compared(figure, i == best) for i, figure in enumerate(row)), measured])
    return ["", *comparison.names, "measured with"], rows


def _compared(figure: Figure | None, best: bool) -> str:
    if figure is None:
        return NONE
    return f"{figure.shown}{' *' if best else ''}"


def _judged(report: Report) -> str:
    subject = report.subject
    words = f"{subject.get('count', 0):,} images of {subject.get('where', '')}"
    return f"{words}, weights {subject['hash']}" if subject.get("hash") else words
