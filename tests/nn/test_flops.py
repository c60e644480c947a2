import weakref
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cdm.cascade import load_config
from cdm.config import NetConfig
from cdm.nn.flops import count_flops, count_parameters, estimate_forward_memory
from cdm.nn.unet import UNet
from cdm.recipes import paper

NET = NetConfig(
    image_size=16,
    in_channels=3,
    out_channels=3,
    width=32,
    multipliers=(1, 2, 2),
    num_blocks=1,
    attention=(8,),
    num_labels=27,
)


@pytest.mark.parametrize(
    ("config", "millions"),
    [(paper.base_32(), 826), (paper.sr_32_64(), 750), (paper.sr_64_128(), 575), (paper.sr_64_256(), 634)],
    ids=["base_32", "sr_32_64", "sr_64_128", "sr_64_256"],
)
def test_parameters_of_the_papers_nets(config: NetConfig, millions: int) -> None:
    """Counted once by an independent counter of the architecture, 1000 classes, residual resampling."""
    assert count_parameters(config) / 1e6 == pytest.approx(millions, rel=0.02)


def test_parameters_of_the_demo_net() -> None:
    """The naive net of 1.4 M parameters."""
    assert count_parameters(NET) / 1e6 == pytest.approx(1.4, rel=0.03)


def test_flops_of_the_smallest_net_by_hand() -> None:
    config = NetConfig(image_size=4, in_channels=1, out_channels=1, width=8, multipliers=(1,), num_blocks=0)
    pixels, c, wide = 16, 8, 32
    conv = 2 * pixels * 9
    first_last = conv * c + conv * c
    embedding = 2 * (c * wide + wide * wide)
    block = 2 * conv * c * c + 2 * wide * 2 * c  # two convolutions and the scale and shift
    decoder = (
        conv * 2 * c * c + conv * c * c + 2 * pixels * 2 * c * c + 2 * wide * 2 * c
    )  # its skip is a 1x1 convolution
    attention = 2 * pixels * c * 3 * c + 2 * pixels * c * c + 2 * 2 * pixels * pixels * c
    assert count_flops(config) == first_last + embedding + 2 * block + attention + decoder


def test_flops_grow_with_the_area() -> None:
    config = replace(NET, attention=())
    assert 3.5 < count_flops(config, 32) / count_flops(config, 16) < 4.5


class Alive(TorchDispatchMode):
    """Bytes of tensors alive, each storage once, ``known`` ones not, and the most there ever were."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet(x.untyped_storage() for x in known)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                self._seen.add(storage)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._drop, storage.nbytes())
        return out

    def _drop(self, count: int) -> None:
        self.now -= count


LETTERS = Path(__file__).parents[2] / "examples" / "letters"
SAMPLED = {
    "small": NET,
    "strided": replace(NET, resample="strided"),
    "no attention": replace(NET, attention=(), image_size=64),
    "attention at the top": replace(NET, attention=(16, 8)),
    "attention over many pixels": replace(NET, image_size=32, attention=(32,)),
    "deep": replace(NET, num_blocks=3, image_size=32, multipliers=(1, 2, 4)),
    "wide below": replace(NET, multipliers=(1, 8, 8)),
    "layer norm": replace(NET, norm="layer"),
    "patches": replace(NET, image_size=64, patch=2, direct=True),
    "letters": load_config(LETTERS).stages[0].net,
    "letters, SR": load_config(LETTERS).stages[1].net,
}


@pytest.mark.parametrize("name", SAMPLED)
def test_memory_of_sampling_is_what_is_alive_at_the_worst_moment_or_a_little_more(name: str) -> None:
    """Against tensors really alive on this machine in float32, two images in one pass."""
    config = SAMPLED[name]
    net = UNet(config)
    level, labels = torch.zeros(2), torch.zeros(2, dtype=torch.int64) if config.num_labels else None
    inputs = (torch.zeros(2, config.in_channels, config.image_size, config.image_size), level, labels)
    with torch.no_grad(), Alive(net.parameters()) as alive:
        net(*inputs, level if config.has_aug_level else None)
    assert alive.most <= 2 * estimate_forward_memory(config) <= 2 * alive.most
    assert alive.now < alive.most / 10
    assert 2 * estimate_forward_memory(config, torch.bfloat16) == estimate_forward_memory(config)
