"""Which peers are here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cdm.errors import UserError
from peers import diffusers_unet, guided_diffusion, own_nets, training
from peers.cases import Case, Contender

BROUGHT = ("guided-diffusion",)
PEERS = (*BROUGHT, "diffusers", "denoising-diffusion-pytorch", "imagen-pytorch")


@dataclass(frozen=True)
class SamePeer:
    """A peer whose net can be made ours. build: on the CPU, in float32. copy_into: its weights into our net."""

    name: str
    build: Callable[[Case], nn.Module]
    copy_into: Callable[[nn.Module, Any], None]
    contender: Callable[[Case, torch.device, str], Contender]
    modes: tuple[str, ...]


@dataclass(frozen=True)
class OtherPeer:
    """A peer with its own architecture. build: a net with about so many parameters, one whose FLOPs can be counted, and
    its width."""

    name: str
    build: Callable[[Case, int], tuple[nn.Module, nn.Module, int]]


@dataclass(frozen=True)
class Present:
    """compiled: names of those that are timed compiled too."""

    same: list[SamePeer]
    others: list[OtherPeer]
    compiled: Sequence[str]


def folders(asked: list[str]) -> dict[str, Path]:
    """Of ``NAME=PATH``.

    Raises:
        UserError: no such form, or no such name.
    """
    found = {}
    for each in asked:
        name, equals, path = each.partition("=")
        if not (equals and path) or name not in BROUGHT:
            raise UserError(f"--peer is {each!r}; expected {' or '.join(f'{known}=PATH' for known in BROUGHT)}.")
        found[name] = Path(path).resolve()
    return found


def short(error: BaseException) -> str:
    """Kind and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def release(name: str) -> str | None:
    """Version of what is installed; None of a mere folder."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def present(brought: dict[str, Path], compiled: Sequence[str], say: Callable[[str], None]) -> Present:
    """Those that can be imported; of the others it is said why they are skipped."""

    def works(name: str, load: Callable[[], object]) -> bool:
        try:
            load()
        except Exception as error:  # a foreign import may raise anything
            say(f"{name} is skipped: it cannot be imported ({short(error)}).")
            return False
        return True

    def installed(name: str, module: str, load: Callable[[], object]) -> bool:
        if find_spec(module) is None:
            say(f"{name} is skipped: it is not installed.")
            return False
        return works(name, load)

    same: list[SamePeer] = []
    folder = brought.get("guided-diffusion")
    if folder is None:
        say("guided-diffusion is skipped: no --peer guided-diffusion=PATH names a checkout of it.")
    elif not (folder / guided_diffusion.NET).exists():
        say(f"guided-diffusion is skipped: {folder} has no {guided_diffusion.NET}.")
    elif works("guided-diffusion", partial(guided_diffusion.load, folder, "unet")):
        same.append(
            SamePeer(
                "guided-diffusion",
                partial(guided_diffusion.build, folder),
                guided_diffusion.copy_into,
                partial(guided_diffusion.contender, folder),
                training.modes("guided-diffusion" in compiled),
            )
        )
    if installed("diffusers", "diffusers", lambda: import_module("diffusers").UNet2DModel):
        modes = training.modes("diffusers" in compiled)
        same.append(
            SamePeer("diffusers", diffusers_unet.build, diffusers_unet.copy_into, diffusers_unet.contender, modes)
        )
    others = [
        OtherPeer(name, build)
        for name, load, build in (
            ("denoising-diffusion-pytorch", own_nets.denoising_diffusion, own_nets.build_denoising_diffusion),
            ("imagen-pytorch", own_nets.imagen, own_nets.build_imagen),
        )
        if installed(name, name.replace("-", "_"), load)
    ]
    return Present(same, others, compiled)
