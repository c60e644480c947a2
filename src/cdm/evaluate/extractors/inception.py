"""Inception v3 of 2015 as torch-fidelity has it: the network that FID, sFID and the Inception Score are defined on."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from cdm.artifacts import weights_hash
from cdm.errors import CorruptError
from cdm.evaluate.extractors.base import Features, MissingWeights
from cdm.evaluate.extractors.pixels import as_rgb
from cdm.evaluate.extractors.weights import check_published, file_sha256, find_weights, read_state

FILE = "weights-inception-2015-12-05-6726825d.pth"
SHA256_START = "6726825d"
"""As the publisher gives it: in the file's name."""
SOURCE = "github.com/toshas/torch-fidelity, release v0.2.0, 91 MB"

SPATIAL_CHANNELS = 7
"""Of ``mixed_6/conv``, 17 x 17 each: what ADM's evaluator computes sFID on."""


@dataclass(frozen=True)
class InceptionExtractor:
    """Pool features ``[B, 2048]``, 7 channels of ``mixed_6/conv`` ``[B, 2023]``, probabilities ``[B, 1008]``.

    Probabilities are the softmax of logits without the bias, as ADM's evaluator and torch-fidelity take them.
    """

    net: nn.Module
    device: torch.device
    hash: str
    verified: bool
    name: str = "inception"
    dim: int = 2048
    spatial_dim: int = SPATIAL_CHANNELS * 17 * 17
    num_probabilities: int = 1008
    resize: str = "TensorFlow 1 bilinear to 299x299 without antialiasing, inside the network"

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "b c h w"]) -> Features:
        kept: list[Tensor] = []
        spot = self.net.get_submodule("Mixed_6d.branch1x1")  # mixed_6/conv of the graph of 2015
        hook = spot.register_forward_hook(lambda *arguments: kept.append(arguments[2]))
        try:
            pool, logits = self.net(as_rgb(images, self.name).to(self.device))
        finally:
            hook.remove()
        # height, width, channel: the order of ADM's reference statistics
        spatial = kept[0][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(start_dim=1)
        return Features(pool.cpu(), spatial.float().cpu(), logits.softmax(dim=1).cpu())


def load_inception(weights: Path | None, device: torch.device, unverified: bool) -> InceptionExtractor:
    """Raises ``MissingWeights`` (of the network's package too), ``UserError`` for other weights than the published."""
    path = find_weights("inception", weights, FILE, SOURCE)
    published = file_sha256(path).startswith(SHA256_START)
    state = read_state(path)  # before the checksum: a damaged file is told as damaged
    check_published("inception", path, published, unverified)
    net = _build(state, path).to(device).eval()
    return InceptionExtractor(net, device, weights_hash(state), verified=published)


def _build(state: dict[str, Tensor], path: Path) -> nn.Module:
    """torch-fidelity's network with our tensors. It asks a function of its module for weights; we are that function, so
    its own loading, which unpickles, is never reached."""
    with _network_module() as module:
        setattr(module, "load_state_dict_from_url", lambda *_, **__: state)  # noqa: B010  a module attribute of theirs
        try:
            return module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
        except RuntimeError as error:
            raise CorruptError(
                f"the weights in {path} do not fit the Inception network; expected the layout of {FILE}: get that file."
            ) from error


@contextmanager
def _network_module() -> Iterator[ModuleType]:
    """A private copy of torch-fidelity's module with the network.

    Importing torch-fidelity as a whole imports torchvision, whose wheel is often built for another torch and then
    fails. The network does not need it, so its module is imported below an empty package of the same name.
    """
    package = "torch_fidelity"
    spec = importlib.util.find_spec(package) if package not in sys.modules else sys.modules[package].__spec__
    if spec is None or spec.submodule_search_locations is None:
        raise MissingWeights(
            "the Inception network comes from the package torch-fidelity, which is not installed; "
            "expected it: run `pip install --no-deps torch-fidelity`."
        )
    ours = lambda name: name == package or name.startswith(f"{package}.")  # noqa: E731
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if ours(name)}
    bare = ModuleType(package)
    bare.__path__ = list(spec.submodule_search_locations)
    sys.modules[package] = bare
    try:
        yield importlib.import_module(f"{package}.feature_extractor_inceptionv3")
    finally:
        for name in [name for name in sys.modules if ours(name)]:
            del sys.modules[name]
        sys.modules.update(before)
