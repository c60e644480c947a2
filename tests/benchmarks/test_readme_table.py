"""The README's speeds are those of the results."""

from typing import Any

import pytest

from benchmarks import readme_table


def ratio(least: float, median: float, most: float) -> dict[str, float]:
    return {"min": least, "median": median, "max": most}


def machine(device: str, **ratios: dict[str, float]) -> dict[str, Any]:
    case = {what: {"ratio": ratios} for what in ("train", "forward")}
    return {"device": device, "rounds": 7, "cases": {"base64-32px": case | {"same": {"a": {"parameters": 7_990_000}}}}}


def test_the_readme_has_what_the_script_makes() -> None:
    readme = readme_table.README.read_text()
    assert readme_table.written(readme, readme_table.made()) == readme, "run python benchmarks/readme_table.py"
    assert readme_table.written(readme, "| other |\n") != readme


def test_each_peer_stands_at_its_fastest_and_what_is_lost_or_missing_is_told() -> None:
    slow, fast = ratio(2, 3, 4), ratio(0.96, 1.2, 1.26)
    here = machine("GPU", **{"a, slow": slow, "a, fast": fast})
    there = machine("CPU, 2 cores, rest", **{"a, slow": slow})
    here["cases"]["base64-32px"]["own_architecture"] = {"train": {"ratio": {"b, fast": slow}}, "sizes": {}}
    lines = readme_table.table([here, there]).splitlines()
    assert (
        lines[0]
        == "| our images/s, divided by those of | GPU: training | sampling | CPU, 2 cores: training | sampling |"
    )
    at, once = "1.2 (0.96 to 1.3)", "3.0 (2.0 to 4.0)"
    assert lines[2] == f"| a, 8.0 M parameters at 32 pixels | {at} | {at} | {once} | {once} |"
    assert lines[3] == f"| b, its own net, about 8.0 M parameters at 32 pixels | {once} |  |  |  |"
    note = " ".join(lines[5:])
    assert f"faster in some rounds: a, fast in training at 32 pixels on GPU, {at}; a, fast in sampling at 32" in note
    assert "Not measured: `base32-16px` on GPU: all; `adm64` on GPU: all; `base64-32px` on CPU, 2 cores: b;" in note


def test_no_loss_is_told_too() -> None:
    note = readme_table.table([machine("GPU", a=ratio(1.2, 2, 3))]).replace("\n", " ")
    assert "No peer was faster in any round." in note


def test_without_a_peer_nothing_is_claimed_and_our_own_net_is_none() -> None:
    alone = machine("GPU", **{"cdm, bf16, compiled": ratio(0.9, 1, 1.1)})
    note = readme_table.table([alone]).replace("\n", " ")
    assert "faster in" not in note and "cdm" not in note
    beside = machine("GPU", **{"a, bf16": ratio(2, 3, 4)})
    beside["cases"]["base32-16px"] = {
        what: {"ratio": {"a, bf16, compiled": ratio(1, 2, 3)}} for what in ("train", "forward")
    }
    beside["cases"]["base32-16px"]["same"] = {"a": {"parameters": 1_000_000}}
    note = readme_table.table([beside]).replace("\n", " ")
    assert "Not measured: `base64-32px` on GPU: a compiled; `base32-16px` on GPU: a; `adm64` on GPU: all." in note


def test_a_readme_without_marks_is_refused() -> None:
    with pytest.raises(ValueError):
        readme_table.written("no table", "| a |")
