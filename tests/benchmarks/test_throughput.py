"""The benchmark against peers: the nets are the same, and the timing runs. Its figures are made by hand."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.throughput import check_same, diffusers_unet
from peers.cases import CASES, Case

from benchmarks import throughput

TINY = Case("tiny", 16, 2, 32, (1, 2), 1, (8,), head_channels=32)

diffusers = pytest.importorskip("diffusers", reason="diffusers is only an oracle: install the extra [dev]")


@pytest.mark.parametrize("case", [TINY, replace(TINY, residual=True), *CASES[:2]], ids=lambda case: case.name)
def test_diffusers_weights_in_our_net_give_its_outputs(case: Case) -> None:
    same = check_same(case, diffusers_unet.build(case), diffusers_unet.copy_into)
    assert same["output_difference"] < 2e-6 and same["flops"] == same["peer_flops"]


def test_another_network_is_told() -> None:
    peer = diffusers_unet.build(TINY)

    def copy_wrongly(ours: torch.nn.Module, peer: torch.nn.Module) -> None:
        diffusers_unet.copy_into(ours, peer)
        with torch.no_grad():
            ours.last.weight *= 1.01  # type: ignore[union-attr]

    with pytest.raises(AssertionError, match="outputs differ"):
        check_same(TINY, peer, copy_wrongly)


def test_it_times_all_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "throughput.json"
    monkeypatch.setattr(throughput, "CASES", (TINY,))
    monkeypatch.setattr(sys, "argv", f"x --cases tiny --rounds 2 --seconds 0.01 --device cpu --out {out}".split())
    throughput.main()
    case = json.loads(out.read_text())["cases"]["tiny"]
    assert case["same"].keys() == {"diffusers"}
    for what in ("train", "forward"):
        rates = case[what]["images_per_s"]
        assert len(rates) == 3 and all(0 < each["min"] <= each["median"] <= each["max"] for each in rates.values())
        assert len(case[what]["ratio"]) == 2 and case[what]["share_of_convolutions_alone"] > 0
