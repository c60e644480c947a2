"""``cdm compare``: several evaluations in one table."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from cdm.cli.options import Compare
from cdm.cli.paths import user_path
from cdm.cli.say import say
from cdm.errors import UserError
from cdm.evaluate.evaluation_report import COMPARISON_WORDS, comparison_report, comparison_table
from cdm.evaluate.results import compare, load_report
from cdm.pipeline.sample_run import check_free


def run_compare(options: Compare, command: str) -> None:
    if len(options.reports) < 2:
        raise UserError("got fewer than two reports; expected cdm compare REPORT REPORT ..., the --out of evaluations.")
    paths = [user_path(name, "report") for name in options.reports]
    reports = [load_report(path) for path in paths]
    out = None if options.out is None else user_path(options.out)
    if out is not None and not options.force:
        check_free([out], "--out")
    comparison = compare(_names(paths), reports)
    if not comparison.rows:
        raise UserError("none of the reports has a figure to compare; evaluate with more images or other --metrics.")
    heads, rows = comparison_table(comparison)
    table = Table(*heads)
    for row in rows:
        table.add_row(*row)
    Console().print(table, markup=False)
    say(COMPARISON_WORDS)
    if out is not None:
        comparison_report(out, comparison, reports, command)
        say(f"the same as a page in {out}")


def _names(paths: list[Path]) -> list[str]:
    """The shortest ends of the paths that differ, each one once."""
    folders = [path.parent if path.suffix == ".json" else path for path in paths]
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-depth:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{i + 1}: {path}" for i, path in enumerate(paths)]
