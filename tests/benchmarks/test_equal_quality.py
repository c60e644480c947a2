"""Wall-clock to equal quality at toy size: a foreign net goes through our trainer; the figures are of its images."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.e2e.conftest import CLASSES, write_images

from benchmarks import equal_quality
from cdm.evaluate import frechet_ratio
from cdm.evaluate.extractors import domain
from cdm.runtime import has_fast_bf16
from cdm.train.step import Trainee

PEER = '''
import torch
from torch import nn

class AttentionBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.mix = nn.Conv1d(channels, channels, 1)

    def forward(self, x):
        in_vain = torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
        assert not in_vain, "its checkpoint computes it once more in the backward pass, without autocast"
        return self._forward(x)

    def _forward(self, x):
        return self.mix(x.flatten(2)).view_as(x)


class UNetModel(nn.Module):
    """Stands in for the peer's: the parts that our trainer is shown, and an attention's one-dimensional convolution."""

    def __init__(self, *, in_channels, model_channels, out_channels, num_classes, **rest):
        super().__init__()
        self.input_blocks = nn.ModuleList([nn.Conv2d(in_channels, model_channels, 3, padding=1)])
        self.inner = nn.Conv2d(model_channels, model_channels, 3, padding=1)
        self.attention = AttentionBlock(model_channels)
        self.time_embed = nn.Linear(1, model_channels)
        self.label_emb = nn.Embedding(num_classes, model_channels)
        self.out = nn.Sequential(nn.SiLU(), nn.Conv2d(model_channels, out_channels, 3, padding=1))

    def forward(self, x, timesteps, y):
        h = self.input_blocks[0](x)
        h = h + (self.time_embed(timesteps[:, None] / 1000) + self.label_emb(y))[:, :, None, None]
        h = h + self.inner(torch.nn.functional.silu(h))
        return self.out(h + self.attention(h))
'''


def test_a_foreign_net_is_trained_and_judged_beside_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"SIZE": 8, "BLOCK": 32, "STEPS": 2}.items():
        monkeypatch.setattr(equal_quality, name, value)
    monkeypatch.setattr(frechet_ratio, "DRAWS", 20)
    monkeypatch.setattr(domain, "EFFORT", 30)
    monkeypatch.setenv("CDM_CACHE", str(tmp_path / "cache"))
    for name in [each for each in sys.modules if each.startswith("guided_diffusion")]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "peer" / "guided_diffusion").mkdir(parents=True)
    (tmp_path / "peer" / "guided_diffusion" / "unet.py").write_text(PEER)
    for part in ("train", "val"):
        for seed, name in enumerate(CLASSES):
            write_images(tmp_path / part / name, 40, seed=seed + 2 * (part == "val"))
    kinds: dict[str, list[str]] = {}
    made = Trainee.__init__

    def noted(trainee: Trainee, *args: Any, **options: Any) -> None:
        made(trainee, *args, **options)
        kinds[type(trainee.stage.net).__name__] = list(trainee.muon_names)

    monkeypatch.setattr(Trainee, "__init__", noted)
    train = equal_quality.cdm_main

    def by_images(command: list[str]) -> int:  # a budget of time would hang on the machine
        place = command.index("--minutes")
        return train([*command[:place], "--images", str(round(640 * float(command[place + 1]))), *command[place + 2 :]])

    monkeypatch.setattr(equal_quality, "cdm_main", by_images)
    path = list(sys.path)
    try:
        equal_quality.main([
            "--peer", str(tmp_path / "peer"), "--data", str(tmp_path / "train"), "--val", str(tmp_path / "val"),
            "--work", str(tmp_path / "work"), "--minutes", "2", "--shares", "0.5", "--width", "8", "-n", "64",
            "--out", str(tmp_path / "out.json"),
        ])  # fmt: skip
    finally:
        sys.path[:] = path
    arms = json.loads((tmp_path / "out.json").read_text())["arms"]
    peer, ours = arms["guided-diffusion, float32"], arms["ours, 0.5 of the time"]
    peers = {name: arm for name, arm in arms.items() if name.startswith("guided-diffusion")}
    assert list(peers) == [
        f"guided-diffusion, {name}" for name in ("float32", *["bf16"] * has_fast_bf16(torch.device("cpu")))
    ]
    assert peer["ratios"] == {} and peer["parameters"] < 10_000 < ours["parameters"]
    for name, arm in peers.items():
        assert ours["ratios"][name][0] == pytest.approx(ours["distance"][0] / arm["distance"][0], rel=1e-6)
    assert (peer["minutes"], ours["minutes"]) == (2, 1) and (peer["images"], ours["images"]) == (1280, 640)
    assert all(arm["flops_of_an_image"] > 1000 and 0 < arm["share_of_matmul_peak"] < 1 for arm in (peer, ours))
    assert kinds["PeerNet"] == ["inner.inner.weight"]  # ends, embeddings and attention are AdamW's
    assert any(name.startswith("encoder.") for name in kinds["UNet"])


def test_bad_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ("--data", "x", "--val", "y", "--out", str(tmp_path / "o.json"))
    equal_quality.main(["--peer", str(tmp_path), *data])
    assert f"equal_quality is skipped: {tmp_path} has no guided_diffusion/unet.py." in capsys.readouterr().out
    for shares in ("x", "2", "0.5,0", "nan"):
        with pytest.raises(SystemExit) as ended:
            equal_quality.main(["--peer", str(tmp_path), *data, "--shares", shares])
        assert ended.value.code == 2 and "expected numbers of 0 to 1" in capsys.readouterr().err
