"""The benchmark of the samplers' own time: that it runs and refuses; its figures are made by ``make bench``."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import sampler_overhead
from cdm.samplers import SAMPLERS


@pytest.mark.parametrize(("net_ms", "over"), [("1e9", False), ("1e-6", True)])
def test_it_exits_1_above_its_limits(net_ms: str, over: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At toy size, against a network that takes weeks and one that takes no time."""
    for name, value in {"BATCH": 2, "STEPS": 2, "REPEATS": 1, "SIZES": (8, 16)}.items():
        monkeypatch.setattr(sampler_overhead, name, value)
    out = tmp_path / "results" / "overhead.json"
    monkeypatch.setattr(sys, "argv", ["sampler_overhead.py", "--net-ms", net_ms, "--out", str(out)])
    if over:
        with pytest.raises(SystemExit, match="over its limit: dpmpp, dpmpp_sde, ddim, ddpm, "):
            sampler_overhead.main()
    else:
        sampler_overhead.main()
    rows = json.loads(out.read_text())["samplers"]
    assert rows.keys() == SAMPLERS.keys()
    assert all(
        row["outside_ms_per_evaluation"] > 0 and (row["overhead"] > row["limit"]) == over for row in rows.values()
    )
