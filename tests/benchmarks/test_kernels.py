"""The benchmark of the CPU kernels: that it runs both and refuses; its figures are made by ``make bench``."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import kernels
from cdm.nn import cpu_attention, cpu_norm


@pytest.mark.skipif(not cpu_norm.works(), reason="no compiler: no kernel of the norm")
def test_it_compares_with_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(kernels.NETS[1], size=8, batch=2)
    for name, value in {
        "ROUNDS": 1,
        "SECONDS": {"cpu": 1e-3},
        "SHAPES": ((1, 32, 4, 4),),
        "ATTENTION": ((1, 2, 16, 16),),
        "NETS": (small,),
    }.items():
        monkeypatch.setattr(kernels, name, value)
    calls = {"kernel": 0, "torch": 0}
    for name, module in (("kernel", kernels.cpu_norm), ("torch", kernels.cpu_norm.plain_norm)):
        forward = module.forward

        def counting(*args, name=name, forward=forward):
            calls[name] += 1
            return forward(*args)

        monkeypatch.setattr(module, "forward", counting)
    kernels.main(["--out", str(tmp_path / "kernels.json")])
    told = json.loads((tmp_path / "kernels.json").read_text())
    assert calls["kernel"] > 0 and calls["torch"] > 0
    assert len(told["attention"]) == cpu_attention.works()
    assert all(each["forward"]["times"]["min"] > 0 for each in told["attention"].values())
    for each in (told["norm"]["1x32x4x4"], told["nets"][small.name]):
        for what in ("forward", "train"):
            assert each[what]["times"]["min"] <= each[what]["times"]["median"] <= each[what]["times"]["max"]


def test_without_a_kernel_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(kernels.cpu_norm, "works", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        kernels.main(["--out", str(tmp_path / "kernels.json")])
    assert "no kernel of the norm to measure" in str(stopped.value) + capsys.readouterr().err
