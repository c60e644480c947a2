"""A weights file of the Inception network in its published layout, with made-up numbers."""

from functools import lru_cache
from pathlib import Path

import torch

from cdm.evaluate.extractors import inception


@lru_cache(maxsize=1)
def made_up_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights that keep activations at their size from layer to layer (He et al. 2015), unlike torch's default."""
    with inception._network_module() as module:
        network = module.FeatureExtractorInceptionV3
        module.load_state_dict_from_url = lambda *_, **__: {}
        network.load_state_dict = lambda self, state: None  # of a private copy: nobody else sees it
        net = network("inception-v3-compat", ["2048"])
    generator = torch.Generator().manual_seed(seed)
    state = net.state_dict()
    for name, value in state.items():
        if name.endswith("conv.weight"):
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif name.endswith("bn.running_mean") or name.endswith("bn.bias"):
            value.normal_(0, 0.1, generator=generator)
        elif name.startswith("fc."):
            value.normal_(0, 0.5, generator=generator)
    return state


def save_published_layout(path: Path, seed: int = 0) -> Path:
    torch.save(made_up_state(seed), path)  # noqa: TID251  the publisher's format
    return path
