"""One stage of a cascade: its configuration, its denoiser, and how it is conditioned."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from cdm.artifacts import load_json, load_tensors, weights_file, weights_hash
from cdm.conditioning import Augmented, augment_at
from cdm.config import ConfigError, StageConfig, from_dict
from cdm.denoiser import NetDenoiser
from cdm.errors import UserError
from cdm.nn import packed
from cdm.nn.unet import UNet
from cdm.noise.schedule import AUG_LOGSNR_MAX, aug_level_to_logsnr
from cdm.rng import Purpose, Rng
from cdm.types import Cond, Image, Labels


class Stage:
    """A denoiser at one resolution. Stages count from 0, the base, everywhere."""

    def __init__(self, config: StageConfig, index: int, net: UNet, *, num_classes: int, levels: int = 256) -> None:
        self.config = config
        self.index = index
        self.net = net
        self.num_classes = num_classes
        self.levels = levels  # intensity steps of a saved image: 256, or the width of the window plus 1
        self.denoiser = NetDenoiser(net, config)
        self.hash = ""  # of the weights, set by load

    @property
    def name(self) -> str:
        """Its folder in the run: index and size, as in ``1-64``."""
        return f"{self.index}-{self.config.size}"

    @property
    def null_label(self) -> int:
        """The label that stands for "any class"; trained where ``label_dropout`` > 0."""
        return self.num_classes

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.config.channels, self.config.size, self.config.size)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Stage:
        """Move the network to ``device`` and compute in ``dtype`` (weights stay as they are: see ``for_sampling``)."""
        self.net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
        self.denoiser.dtype = dtype
        self.denoiser.forget()
        return self

    def for_sampling(self) -> Stage:
        """Weights of convolutions and linear layers once in the precision that the net computes in, instead of at each
        evaluation, for a net that is not trained further. The same numbers to the last bit where gradients are on;
        where they are off a CPU packs weights of bfloat16 (cdm.nn.packed), and sums are rounded once less."""
        self.net.eval().requires_grad_(False)
        for module in self.net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):  # what autocast casts
                module.to(self.denoiser.dtype)
            if isinstance(module, packed.Conv2d | packed.Linear):
                module.freeze()
        return self

    def check_labels(self, labels: Labels | None, count: int) -> Labels | None:
        """Labels as the net wants them: None without classes, null labels where none are given."""
        if self.config.net.num_labels == 0:
            return None
        if labels is None:
            if self.config.net.num_labels <= self.num_classes:
                raise UserError(
                    f"stage {self.index} was trained without label dropout and needs a class for every image; "
                    "got none: name one with --class (labels=... in Python)."
                )
            return torch.full((count,), self.null_label, dtype=torch.int64)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.config.net.num_labels:
            raise UserError(
                f"got labels from {int(labels.min())} to {int(labels.max())}; expected 0 to {self.num_classes - 1}"
                + (f", or {self.null_label} for any class." if self.config.net.num_labels > self.num_classes else ".")
            )
        return labels

    def aug_logsnr(self, aug_level: float) -> float | None:
        """Log-SNR of an augmentation level, or None for a stage without Gaussian augmentation."""
        if not self.config.augmentation.has_noise:
            return None
        if not 0 <= aug_level <= 1:
            raise UserError(f"augmentation level {aug_level} is out of range; expected 0 (none) to 1 (only noise).")
        return float(aug_level_to_logsnr(self.config.augmentation, torch.tensor([aug_level], dtype=torch.float64))[0])

    def condition(
        self, low_res: Image, labels: Labels | None, aug_logsnr: float | None, rng: Rng, index: Int64[Tensor, " b"]
    ) -> tuple[Cond, Augmented]:
        """Clean ``low_res`` ``[B, C, h, w]`` to conditioning at a fixed level (the non-truncated hand-over).

        The noise is drawn once per image, so both halves of a guided denoiser see the same.
        """
        told, eps = None, None
        if aug_logsnr is not None:
            told = torch.full((len(low_res),), aug_logsnr, dtype=torch.float32, device=low_res.device)
            eps = torch.zeros_like(low_res)
            if aug_logsnr < AUG_LOGSNR_MAX:
                eps = rng.normal(Purpose.HAND_OVER_NOISE, index.to(low_res.device), tuple(low_res.shape[1:]))
        augmented = augment_at(self.config.augmentation, low_res, self.config.size, told, eps)
        return Cond(labels, augmented.up, augmented.aug_logsnr), augmented


def build_stage(
    config: StageConfig, index: int, *, num_classes: int, levels: int = 256, seed: int | None = None
) -> Stage:
    """A stage with fresh weights, drawn from ``seed`` (None: whatever torch's generator gives, to be loaded over)."""
    if seed is None:
        net = UNet(config.net)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(Rng(seed, index).torch_seed(Purpose.INIT))
            net = UNet(config.net)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
    return Stage(config, index, net, num_classes=num_classes, levels=levels)


def check_config(config: StageConfig, folder: Path) -> None:
    """Refuse a stage folder whose ``config.json``, if it has one, is not ``config``: it comes from another run."""
    path = folder / "config.json"
    if not path.exists():
        return
    own = from_dict(StageConfig, load_json(path).get("config", {}), str(path))
    odd = [field.name for field in fields(StageConfig) if getattr(own, field.name) != getattr(config, field.name)]
    if odd:
        raise ConfigError(
            f"{path} and cascade.json differ in {odd[0]!r}; expected the same: "
            "put back the stage folder that belongs to this run."
        )


def load_weights(stage: Stage, folder: Path, weights: str = "ema") -> Stage:
    """Read ``weights`` of a stage folder into ``stage``: ``ema`` (the first EMA profile), ``raw``, or a profile's
    sigma_rel such as ``0.100``."""
    if weights == "raw":
        path = folder / weights_file()
    elif weights == "ema":
        profiles = stage.config.optim.ema_sigma_rel
        path = folder / weights_file(profiles[0] if profiles else None)
    else:
        name = weights
        with suppress(ValueError):  # 0.05 names 0.050
            name = f"{float(weights):.3f}"
        path = folder / f"ema-{name}.safetensors"
        profiles = [file.stem.removeprefix("ema-") for file in sorted(folder.glob("ema-*.safetensors"))]
        if profiles and name not in profiles:
            raise UserError(f"unknown weights {weights!r} in {folder}; expected ema, raw or {' or '.join(profiles)}.")
    if not path.exists():
        raise UserError(
            f"stage {stage.index} ({stage.config.size} pixels) has no weights at {path}; "
            "expected a trained stage: run `cdm train` again with the same options to finish it."
        )
    tensors, _ = load_tensors(path)
    load_tensors_into(stage.net, tensors, str(path))
    stage.hash = weights_hash(tensors)
    return stage


def load_tensors_into(net: torch.nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Copy tensors into a net; names and shapes must be the net's own."""
    own = dict(net.named_parameters()) | dict(net.named_buffers())
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())[0]
        raise ConfigError(f"{where} does not fit its config.json: {odd!r} is in one of them only; use matching files.")
    with torch.no_grad():
        for name, tensor in tensors.items():
            if own[name].shape != tensor.shape:
                raise ConfigError(
                    f"{where} does not fit its config.json: {name} has shape {tuple(tensor.shape)}, "
                    f"expected {tuple(own[name].shape)}; use matching files."
                )
            own[name].copy_(tensor)
