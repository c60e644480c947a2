"""The README's speeds are those of the results."""

from typing import Any

import pytest

from benchmarks import readme_table


def ratio(least: float, median: float, most: float) -> dict[str, float]:
    return {"min": least, "median": median, "max": most}


def machine(device: str, **ratios: dict[str, float]) -> dict[str, Any]:
    case = {what: {"ratio": ratios} for what in ("train", "forward")}
    return {
        "device": device,
        "rounds": 7,
        "cases": {"base64-32px": case | {"own": {"parameters": 7_990_000}, "same": {"a": {}}}},
    }


def test_the_readme_has_what_the_script_makes() -> None:
    readme = readme_table.README.read_text()
    assert readme_table.written(readme, readme_table.made()) == readme, "run python benchmarks/readme_table.py"
    assert readme_table.written(readme, "| other |\n") != readme


def test_each_peer_stands_at_its_fastest_and_what_is_missing_is_empty() -> None:
    slow, fast = ratio(2, 3, 4), ratio(0.96, 1.2, 1.26)
    here = machine("GPU", **{"a, slow": slow, "a, fast": fast})
    there = machine("CPU, 2 cores, rest", **{"a, slow": slow})
    here["cases"]["base64-32px"]["own_architecture"] = {"train": {"ratio": {"b, fast": slow}}, "sizes": {}}
    lines = readme_table.table([here, there]).splitlines()
    heads = ["GPU: training", "one evaluation", "CPU, 2 cores: training", "one evaluation"]
    assert lines[0] == f"| our images/s, divided by those of | {' | '.join(heads)} |"
    at, once = "1.20 (0.96 to 1.26)", "3.0 (2.0 to 4.0)"
    assert lines[2] == f"| a, 8.0 M parameters at 32 pixels | {at} | {at} | {once} | {once} |"
    assert lines[3] == f"| b, its own net, about 8.0 M parameters at 32 pixels | {once} |  |  |  |"
    assert "below 1 the peer was faster. Empty: not measured." in " ".join(lines[5:])


def test_compiled_peers_are_marked_where_they_win_and_named_where_they_were_measured() -> None:
    slow, fast = ratio(2, 3, 4), ratio(1, 2, 3)
    here = machine("GPU", **{"a, bf16": slow, "a, bf16, compiled": fast, "b, bf16": slow})
    there = machine("CPU, 2 cores", **{"a, bf16": fast, "a, bf16, compiled": slow})
    lines = readme_table.table([here, there]).splitlines()
    at = "2.0 (1.00 to 3.0)"
    assert lines[2] == f"| a, 8.0 M parameters at 32 pixels | {at}† | {at}† | {at} | {at} |"
    note = " ".join(lines[5:])
    assert "Compiled were a of 8.0 M parameters on GPU; all of 8.0 M parameters on CPU, 2 cores; no others." in note
    assert "None was compiled." in readme_table.table([machine("GPU", a=slow)]).replace("\n", " ")


def test_our_own_net_is_no_peer() -> None:
    alone = machine("GPU", **{"cdm, bf16, compiled": ratio(0.9, 1, 1.1)})
    assert "cdm" not in readme_table.table([alone])


def test_a_readme_without_marks_is_refused() -> None:
    with pytest.raises(ValueError):
        readme_table.written("no table", "| a |")
