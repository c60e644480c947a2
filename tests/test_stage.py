"""A stage made ready for sampling computes the same numbers, or as good ones."""

from __future__ import annotations

import pytest
import torch
from tests.fakes import random_stage, stage_config

from cdm.types import Cond


@pytest.mark.parametrize("low", [0, 4], ids=["base", "sr"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_cast_once_are_those_cast_each_time_to_the_last_bit(low: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, logsnr = torch.randn(3, 1, 8, 8, generator=generator), torch.tensor([-4.0, 0.0, 5.0])
    cond = Cond(torch.tensor([0, 1, 2]))
    if low:
        cond = Cond(cond.labels, torch.randn(3, 1, 8, 8, generator=generator), torch.tensor([1.0, 3.0, 12.0]))
    stage = random_stage(stage_config(8, low, num_labels=4), num_classes=3).to("cpu", dtype)
    each_time = stage.denoiser(x, logsnr, cond)
    kinds = {name: p.dtype for name, p in stage.for_sampling().net.named_parameters()}
    once = stage.denoiser(x, logsnr, cond)
    assert torch.equal(once.x0, each_time.x0) and torch.equal(once.eps, each_time.eps)
    assert kinds["first.weight"] == dtype and kinds["norm.weight"] == torch.float32
    assert kinds["embed_label.weight"] == torch.float32


@torch.no_grad()
def test_a_net_of_packed_weights_is_no_further_from_float32() -> None:
    """Its sums are rounded once instead of twice, so it is not the same to the last bit."""
    generator = torch.Generator().manual_seed(0)
    x, logsnr, cond = torch.randn(8, 1, 8, 8, generator=generator), torch.zeros(8), Cond(torch.arange(8) % 4)
    outputs = {}
    for name, dtype in (("float32", torch.float32), ("autocast", torch.bfloat16), ("packed", torch.bfloat16)):
        stage = random_stage(stage_config(8, 0, num_labels=4), num_classes=3).to("cpu", dtype)
        outputs[name] = (stage.for_sampling() if name == "packed" else stage).denoiser.raw(x, logsnr, cond)[0]
    off = {name: float((outputs[name] - outputs["float32"]).norm()) for name in ("autocast", "packed")}
    assert 0 < off["packed"] <= 1.1 * off["autocast"] < 0.05 * float(outputs["float32"].norm())
