"""Peers whose nets cannot be made the same as ours: their own architecture with about as many parameters.

denoising-diffusion-pytorch and imagen-pytorch, where they are installed. Stages, and blocks and sides with attention
where their nets have such a setting, are those of the case; the width is the multiple of 8 that comes nearest to our
number of parameters; all else is their default, without text.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from itertools import count
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from peers.cases import Case
from peers.timing import parameters

Width = Callable[[int], nn.Module]
STEP = 8  # of widths: imagen-pytorch normalises in 8 groups


@contextmanager
def torchvision_or_nothing() -> Iterator[None]:
    """Both name torchvision when they are imported, and use it for files of images alone. Where it is not installed,
    modules without content stand in while they are imported: their nets work, their data loaders do not."""
    names = [] if find_spec("torchvision") else ["torchvision", "torchvision.transforms", "torchvision.utils"]
    sys.modules.update({name: ModuleType(name) for name in names})
    for name in names[1:]:
        setattr(sys.modules[names[0]], name.split(".")[1], sys.modules[name])
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


def denoising_diffusion() -> Any:
    """The package.

    Raises:
        Exception: whatever an import may raise.
    """
    with torchvision_or_nothing():
        return import_module("denoising_diffusion_pytorch")


def imagen() -> Any:
    """The package. On import it fetches the configuration of T5 for its width, which a net without text has no use for;
    one made here stands in.

    Raises:
        Exception: whatever an import may raise.
    """
    text: Any = import_module("transformers")
    import_module("datasets")  # before the empty torchvision: it looks whether there is one
    own = text.T5Config()
    with torchvision_or_nothing(), patch.object(text.T5Config, "from_pretrained", lambda *_: own):
        return import_module("imagen_pytorch")


def denoising_diffusion_net(case: Case, width: int, *, flash: bool = True) -> nn.Module:
    """``flash``: attention by torch's own function, as its documentation has it; else the same by matrix products."""
    return denoising_diffusion().Unet(dim=width, dim_mults=case.multipliers, flash_attn=flash)


def imagen_net(case: Case, width: int) -> nn.Module:
    sides = [case.size >> level for level in range(len(case.multipliers))]
    with redirect_stdout(StringIO()):  # it advises a width of at least 128
        return imagen().Unet(
            dim=width,
            dim_mults=case.multipliers,
            num_resnet_blocks=case.blocks,
            layer_attns=tuple(side in case.attention for side in sides),
            cond_on_text=False,
            attn_pool_text=False,
        )


def nearest_width(build: Width, wanted: int) -> int:
    """The multiple of 8 whose net has the number of parameters that is nearest to the wanted one."""
    below = 0
    with torch.device("meta"):  # sizes alone, no memory
        for width in count(STEP, STEP):
            size = parameters(build(width))
            if size >= wanted:
                return width if size - wanted <= wanted - below or width == STEP else width - STEP
            below = size
    raise AssertionError


def build_denoising_diffusion(case: Case, wanted: int) -> tuple[nn.Module, nn.Module, int]:
    """The net, one like it whose FLOPs can be counted, and its width."""
    width = nearest_width(partial(denoising_diffusion_net, case), wanted)
    return denoising_diffusion_net(case, width), denoising_diffusion_net(case, width, flash=False), width


def build_imagen(case: Case, wanted: int) -> tuple[nn.Module, nn.Module, int]:
    """As above; its attention is of matrix products anyway."""
    width = nearest_width(partial(imagen_net, case), wanted)
    net = imagen_net(case, width)
    return net, net, width
