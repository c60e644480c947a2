"""DINOv2 and ResNet-50 of the Hugging Face hub, through transformers, from a folder or from the hub's cache."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from cdm.errors import CorruptError
from cdm.evaluate.extractors.base import Features, MissingWeights
from cdm.evaluate.extractors.pixels import as_rgb, imagenet_input
from cdm.evaluate.extractors.weights import check_published, file_sha256, files_hash, weights_dir

SIDE = 224
RESIZE = f"antialiased bicubic to {SIDE}x{SIDE}"


@dataclass(frozen=True)
class HubModel:
    """A published network.

    name: of the extractor, and of its folder in ``weights_dir``.
    repository: on the hub.
    transformers_class: that loads it.
    width: of its features, as published.
    """

    name: str
    repository: str
    transformers_class: str
    width: int


DINOV2 = HubModel("dinov2", "facebook/dinov2-large", "Dinov2Model", 1024)
RESNET50 = HubModel("resnet50", "microsoft/resnet-50", "ResNetModel", 2048)


@dataclass(frozen=True)
class HubExtractor:
    """DINOv2: the class token after the last normalisation (Stein et al. 2023). ResNet-50: the pooled last map."""

    net: nn.Module
    device: torch.device
    name: str
    hash: str
    dim: int
    verified: bool
    spatial_dim: int = 0
    num_probabilities: int = 0
    resize: str = RESIZE

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "b c h w"]) -> Features:
        x = imagenet_input(as_rgb(images, self.name).to(self.device), SIDE)
        return Features(self.net(pixel_values=x).pooler_output.flatten(start_dim=1).float().cpu())


def load_hub(model: HubModel, weights: Path | None, device: torch.device, unverified: bool) -> HubExtractor:
    """Raises ``MissingWeights``, or ``UserError`` for a damaged folder and for other weights than the published."""
    if importlib.util.find_spec("transformers") is None:
        raise MissingWeights(
            f"{model.name} needs the package transformers, which is not installed; expected it: "
            "run `pip install 'cascaded-diffusion[eval]'`."
        )
    folder = _find_folder(model, weights)
    files = [folder / "config.json", folder / "model.safetensors"]
    for file in files:
        if not file.is_file():
            raise MissingWeights(
                f"{file} is not there; expected the files config.json and model.safetensors of {model.repository}: "
                f"run {_download(model)}."
            )
    net, width = _load(model, folder)
    published = width == model.width and _is_published(model, files[1])
    check_published(model.name, folder, published, unverified, f"run {_download(model)}")
    return HubExtractor(net.to(device).eval(), device, model.name, files_hash(files, RESIZE), width, published)


def _find_folder(model: HubModel, weights: Path | None) -> Path:
    """The folder asked for, one in ``weights_dir``, or the hub's cache; the network is never asked."""
    if weights is not None:
        if not weights.expanduser().is_dir():
            raise MissingWeights(
                f"there is no folder {weights}; expected one with config.json and model.safetensors of "
                f"{model.repository}: run {_download(model)}."
            )
        return weights.expanduser()
    own = weights_dir() / model.name
    if own.is_dir():
        return own
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model.repository, "model.safetensors")
    if isinstance(cached, str):
        return Path(cached).parent
    raise MissingWeights(
        f"the weights of {model.name} are neither in {own} nor in the Hugging Face cache; expected model.safetensors "
        f"of {model.repository}: run {_download(model)}, or give a folder with "
        f"--extractor-weights {model.name}=FOLDER and --unverified-weights."
    )


def _download(model: HubModel) -> str:
    return f"`hf download {model.repository} config.json model.safetensors`, which puts them into the hub's cache"


def _is_published(model: HubModel, weights: Path) -> bool:
    """Whether the hub's cache has a file of this very SHA-256 for this very repository: it keeps each under the SHA-256
    that the hub told. A folder elsewhere says nothing of where it is from, but may be a copy of such a file."""
    from huggingface_hub import constants

    blobs = Path(constants.HF_HUB_CACHE) / f"models--{model.repository.replace('/', '--')}" / "blobs"
    return (blobs / file_sha256(weights)).is_file()


def _load(model: HubModel, folder: Path) -> tuple[nn.Module, int]:
    """The network and the width of its features."""
    import transformers

    network = getattr(transformers, model.transformers_class)
    try:
        net, info = network.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
    except Exception as error:  # transformers raises many kinds of errors for a damaged folder
        first_line = str(error).partition("\n")[0].rstrip(".")
        raise CorruptError(
            f"{folder} cannot be loaded as {model.repository} ({type(error).__name__}: {first_line}); "
            "expected whole files as published: get them again."
        ) from error
    if info["missing_keys"]:
        raise CorruptError(
            f"the weights in {folder} lack {sorted(info['missing_keys'])[0]} and do not fit {model.repository}; "
            "expected the files as published: get them again."
        )
    return net, net.config.hidden_size if model is DINOV2 else net.config.hidden_sizes[-1]
