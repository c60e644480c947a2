"""Where published weights lie on this machine, and reading them without running code."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from cdm.artifacts import told_by_path
from cdm.errors import CorruptError, UserError
from cdm.evaluate.extractors.base import MissingWeights


def weights_dir() -> Path:
    """``$CDM_WEIGHTS``, or ``cdm/weights`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("CDM_WEIGHTS") or cache / "cdm" / "weights")


def find_weights(name: str, asked: Path | None, file: str, source: str) -> Path:
    """The file (or folder) ``asked`` for, or ``file`` in ``weights_dir``.

    Args:
        name: of the extractor, for the message.
        source: where the weights can be had, in words.

    Raises:
        MissingWeights: it is not there.
    """
    path = weights_dir() / file if asked is None else asked.expanduser()
    if not path.exists():
        raise MissingWeights(
            f"the weights of {name} are not at {path}; expected {file} ({source}): "
            f"put it into {weights_dir()}, or give its path with --extractor-weights {name}=PATH."
        )
    return path


def file_sha256(path: Path) -> str:
    with told_by_path(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_hash(paths: Sequence[Path], recipe: str) -> str:
    """12 hex digits that name weights files and what is done with them."""
    sha = hashlib.sha256(recipe.encode())
    for path in paths:
        sha.update(file_sha256(path).encode())
    return sha.hexdigest()[:12]


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from a ``.pth`` or ``.safetensors`` file, on the CPU. Code in a pickle is refused, not run.

    Raises:
        CorruptError: damaged, or it holds more than tensors.
    """
    with told_by_path(path), open(path, "rb"):
        pass
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}
        # The publishers give a .pth; weights_only takes tensors and plain containers and runs no code.
        state = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except Exception as error:  # torch and safetensors raise many kinds of errors for a damaged file
        first_line = str(error).partition("\n")[0].rstrip(".")
        raise CorruptError(
            f"the weights file {path} is damaged or holds more than tensors ({first_line}); "
            "expected a whole file as published: get it again."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CorruptError(f"the weights file {path} is no dictionary of tensors; expected a state dict as published.")
    return state


def check_published(name: str, path: Path, published: bool, unverified: bool, cure: str = "get it again") -> None:
    """Raises ``UserError`` for weights that are not known to be the published ones, unless ``unverified``.

    Args:
        cure: how to get weights that are known to be, in words.
    """
    if not published and not unverified:
        raise UserError(
            f"the weights in {path} are not known to be the published ones of {name}; expected a file with their "
            f"checksum: {cure}, or use --unverified-weights, which marks every figure."
        )
