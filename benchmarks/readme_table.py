"""The table of speeds in README.md, from the results of throughput.py.

    python benchmarks/readme_table.py

Writes between two marks in README.md. Every peer stands there in the fastest of the settings that were measured for
it, in every case and on both machines; below the table, where a peer was faster and what was not measured. Ratios below
1.05 have two decimals.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from textwrap import fill
from typing import Any

from peers.cases import CASES, Case

ROOT = Path(__file__).resolve().parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "benchmarks" / "results"
FILES = ("throughput-h200.json", "throughput-cpu.json")
BEGIN, END = "<!-- speed: made by benchmarks/readme_table.py -->\n", "<!-- end of speed -->\n"
WIDTH = 120
WHAT = {"train": "training", "forward": "sampling"}


def number(value: float) -> str:
    return f"{value:.2f}" if value < 1.05 else f"{value:.1f}"


def told(ratio: dict[str, float]) -> str:
    return f"{number(ratio['median'])} ({number(ratio['min'])} to {number(ratio['max'])})"


def ratios(case: dict[str, Any], what: str) -> dict[str, dict[str, float]]:
    """Of all contenders in a measured case; nothing of ``{}``."""
    parts = (case, case.get("own_architecture", {}))
    found = {name: ratio for part in parts for name, ratio in part.get(what, {"ratio": {}})["ratio"].items()}
    return {name: ratio for name, ratio in found.items() if peer_of(name) != "cdm"}  # our own net, compiled


def measured(machines: list[dict[str, Any]], case: Case) -> list[dict[str, Any]]:
    """On each machine; ``{}`` where it was not measured."""
    return [machine["cases"].get(case.name, {}) for machine in machines]


def peer_of(contender: str) -> str:
    return contender.split(", ")[0]


def kind_of(contender: str) -> str:
    """A peer, or a peer compiled."""
    return f"{peer_of(contender)}{' compiled' if contender.endswith('compiled') else ''}"


def row(case: Case, found: list[dict[str, Any]], peer: str) -> str:
    """A peer at its fastest, on each machine."""
    parameters = next(each["parameters"] for one in found if one for each in one["same"].values())
    same = any(peer in one.get("same", {}) for one in found)
    cells = []
    for one in found:
        for what in WHAT:
            own = [ratio for name, ratio in ratios(one, what).items() if peer_of(name) == peer]
            cells.append(told(min(own, key=lambda ratio: ratio["median"])) if own else "")
    net = f"{'' if same else 'its own net, about '}{parameters / 1e6:.1f} M parameters at {case.size} pixels"
    return f"| {peer}, {net} | {' | '.join(cells)} |"


def rows(machines: list[dict[str, Any]]) -> list[str]:
    lines = []
    for case in CASES:
        found = measured(machines, case)
        peers = dict.fromkeys(peer_of(name) for one in found for what in WHAT for name in ratios(one, what))
        lines += [row(case, found, peer) for peer in peers]
    return lines


def name_of(machine: dict[str, Any]) -> str:
    return ", ".join(machine["device"].split(", ")[:2])


def lost(machines: list[dict[str, Any]]) -> str:
    """Where a peer was faster in a round; nothing where none was measured."""
    if not any(ratios(one, what) for case in CASES for one in measured(machines, case) for what in WHAT):
        return ""
    found = [
        f"{name} in {word} at {case.size} pixels on {name_of(machine)}, {told(ratio)}"
        for case in CASES
        for machine, one in zip(machines, measured(machines, case), strict=True)
        for what, word in WHAT.items()
        for name, ratio in ratios(one, what).items()
        if ratio["min"] < 1
    ]
    return f"A peer was faster in some rounds: {'; '.join(found)}." if found else "No peer was faster in any round."


def missing(machines: list[dict[str, Any]]) -> str:
    """Nets that a machine was not given, and contenders that only another net or machine had."""
    all_of = {
        kind_of(name) for m in machines for one in m["cases"].values() for what in WHAT for name in ratios(one, what)
    }
    each = []
    for machine in machines:
        for case in CASES:
            one = machine["cases"].get(case.name)
            had = {kind_of(name) for what in WHAT for name in ratios(one or {}, what)}
            lost = ["all"] if one is None else sorted(all_of - had)
            if lost:
                each.append(f"`{case.name}` on {name_of(machine)}: {', '.join(lost)}")
    return f" Not measured: {'; '.join(each)}." if each else ""


def table(machines: list[dict[str, Any]]) -> str:
    words = list(WHAT.values())
    heads = [head for machine in machines for head in (f"{name_of(machine)}: {words[0]}", *words[1:])]
    lines = [f"| our images/s, divided by those of | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    rounds = " and ".join(dict.fromkeys(str(machine["rounds"]) for machine in machines))
    note = f"Median, and least to most, of {rounds} rounds; each peer in the fastest of the settings measured for it. "
    return "\n".join([*lines, *rows(machines), "", fill(note + lost(machines) + missing(machines), WIDTH)]) + "\n"


def written(readme: str, made: str) -> str:
    """The README with the table between its marks."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + made + END + rest.split(END)[1]


def made() -> str:
    return table([json.loads((RESULTS / name).read_text()) for name in FILES])


def main() -> None:
    argparse.ArgumentParser(description="Writes the README's table of speeds from benchmarks/results/.").parse_args()
    README.write_text(written(README.read_text(), made()))
    print(f"written to {README}")


if __name__ == "__main__":
    main()
