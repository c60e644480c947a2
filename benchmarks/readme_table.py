"""The table of speeds in README.md, from the results of throughput.py.

    python benchmarks/readme_table.py

Writes between two marks in README.md. Every peer stands there in the fastest of the settings that were measured for
it, in every case and on both machines; below the table, which peers were measured compiled. Ratios below 1.3 have two
decimals.
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
COMPILED = "†"
WHAT = {"train": "training", "forward": "one evaluation"}


def number(value: float) -> str:
    return f"{value:.2f}" if value < 1.295 else f"{value:.1f}"


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


def is_compiled(contender: str) -> bool:
    return contender.endswith("compiled")


def millions(found: list[dict[str, Any]]) -> str:
    """Parameters of our net in a case, which are those of peers with the same one (older files tell these alone)."""
    sizes = (size for one in found if one for size in (one.get("own"), *one["same"].values()) if size)
    return f"{next(sizes)['parameters'] / 1e6:.1f} M"


def row(case: Case, found: list[dict[str, Any]], peer: str) -> str:
    """A peer at its fastest, on each machine."""
    same = any(peer in one.get("same", {}) for one in found)
    cells = []
    for one in found:
        for what in WHAT:
            own = {name: ratio for name, ratio in ratios(one, what).items() if peer_of(name) == peer}
            best = min(own, key=lambda name: own[name]["median"]) if own else ""
            cells.append(f"{told(own[best])}{COMPILED if is_compiled(best) else ''}" if best else "")
    net = f"{'' if same else 'its own net, about '}{millions(found)} parameters at {case.size} pixels"
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


def compiled(machines: list[dict[str, Any]]) -> str:
    """The peers that were measured compiled, by net and machine."""
    each = []
    for machine in machines:
        for one in (machine["cases"].get(case.name, {}) for case in CASES):
            names = [name for what in WHAT for name in ratios(one, what)]
            if found := dict.fromkeys(peer_of(name) for name in names if is_compiled(name)):
                all_of = found.keys() >= {peer_of(name) for name in names}
                who = "all" if all_of else ", ".join(found)
                each.append(f"{who} of {millions([one])} parameters on {name_of(machine)}")
    return f"Compiled were {'; '.join(each)}; no others." if each else "None was compiled."


def table(machines: list[dict[str, Any]]) -> str:
    words = list(WHAT.values())
    heads = [head for machine in machines for head in (f"{name_of(machine)}: {words[0]}", *words[1:])]
    lines = [f"| our images/s, divided by those of | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    rounds = " and ".join(dict.fromkeys(str(machine["rounds"]) for machine in machines))
    note = (
        f"Median, and least to most, of {rounds} rounds; below 1 the peer was faster. Empty: not measured. Each peer "
        f"in the fastest of its settings that were measured ({COMPILED}: by torch.compile). {compiled(machines)}"
    )
    return "\n".join([*lines, *rows(machines), "", fill(note, WIDTH, break_on_hyphens=False)]) + "\n"


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
