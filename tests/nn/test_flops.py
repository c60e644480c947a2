from dataclasses import replace

import pytest

from cdm.config import NetConfig
from cdm.nn.flops import count_flops, count_parameters
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
