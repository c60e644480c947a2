"""Other libraries that measure the same things. Tests compare with them; under CDM_REQUIRE_ORACLES (in CI) they must be
there, elsewhere the tests skip."""

import importlib
import importlib.util
import os
import sys
import warnings
from types import ModuleType

import numpy as np
import pytest
import torch


def require(name: str, install: str) -> ModuleType:
    if os.environ.get("CDM_REQUIRE_ORACLES"):
        return importlib.import_module(name)
    return pytest.importorskip(name, reason=f"{name} is only an oracle: {install}")


def pil_to_tensor(picture):
    """What torchvision's function of this name does to an 8-bit picture."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


class Compose:
    def __init__(self, steps):
        self.steps = steps

    def __call__(self, x):
        for step in self.steps:
            x = step(x)
        return x


def torchvision_stand_in() -> dict[str, ModuleType]:
    """The few names that torch-fidelity needs of torchvision: two lines of decoding, and classes it derives from."""
    names = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
    modules = {name: ModuleType(name) for name in names}
    top, datasets, transforms, functional = modules.values()
    datasets.CIFAR10 = datasets.CIFAR100 = datasets.STL10 = object
    functional.pil_to_tensor = pil_to_tensor
    transforms.functional, transforms.Compose = functional, Compose
    top.datasets, top.transforms = datasets, transforms
    return modules


def torch_fidelity() -> ModuleType:
    """The whole package. Where torchvision is not there, a stand-in is, while this imports: left in place it would be
    taken for torchvision by others."""
    stand_in = {} if importlib.util.find_spec("torchvision") else torchvision_stand_in()
    sys.modules.update(stand_in)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # theirs
            return require("torch_fidelity", "make install-oracles")
    finally:
        for name in stand_in:
            sys.modules.pop(name, None)


def torchmetrics() -> ModuleType:
    """It imports torch-fidelity where that is installed, so that must be imported first, with the stand-in."""
    if importlib.util.find_spec("torch_fidelity"):
        torch_fidelity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        return require("torchmetrics", "make install")
