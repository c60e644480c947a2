"""Checkpoints of one stage: the training state, of which the last few are kept, and the weights that sampling reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdm.artifacts import load_tensors, make_folder, save_tensors, told_by_path, weights_file
from cdm.errors import CorruptError, UserError


def _checkpoints(folder: str | Path) -> list[Path]:
    """Newest first: names hold ``images_seen`` with leading zeros. Other files, as copies by hand, are left alone."""
    found = (Path(folder) / "training").glob("ckpt-*.safetensors")
    return sorted((path for path in found if re.fullmatch(r"ckpt-\d{12}\.safetensors", path.name)), reverse=True)


def _images_seen(path: Path) -> int:
    return int(path.stem.removeprefix("ckpt-"))


def newest_images(folder: str | Path) -> int:
    """``images_seen`` of the newest checkpoint by its name, unread; 0 without one."""
    return max(map(_images_seen, _checkpoints(folder)), default=0)


def save_checkpoint(folder: str | Path, images_seen: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> Path:
    """Writes the training state of a stage (weights, optimiser, EMA) at ``images_seen``; whole or not at all.

    Args:
        folder: the stage's folder.
        tensors: any names, dtypes and devices.
        meta: JSON types; ``images_seen`` is added.

    Raises:
        UserError: the disk is full or the folder not writable; the checkpoints before are untouched.
    """
    path = make_folder(Path(folder) / "training") / f"ckpt-{images_seen:012d}.safetensors"
    save_tensors(path, tensors, meta | {"images_seen": images_seen})
    return path


def latest_checkpoint(
    folder: str | Path, say: Callable[[str], None], usable: Callable[[dict[str, Any]], bool] = lambda meta: True
) -> tuple[dict[str, Tensor], dict[str, Any], Path] | None:
    """The newest checkpoint that is whole and, by its meta, ``usable``; or None. A damaged one is said, and set aside
    as ``*.damaged``.

    Raises:
        UserError: made by a newer cdm, or not readable.
    """
    for path in _checkpoints(folder):
        try:
            tensors, meta = load_tensors(path)
        except CorruptError as error:
            with suppress(OSError):  # so that pruning does not count it as a good one
                path.rename(path.with_name(path.name + ".damaged"))
            say(f"Checkpoint refused, going back to the one before: {error}")
            continue
        if usable(meta):
            return tensors, meta, path
    return None


def prune(folder: str | Path, keep: int = 2, regular: Callable[[int], bool] = lambda images_seen: True) -> None:
    """Deletes all but the newest ``keep`` checkpoints, and but the newest one that is ``regular`` by its
    ``images_seen``. Those set aside as damaged are left to the user."""
    assert keep >= 1
    paths = _checkpoints(folder)
    spared = next((path for path in paths if regular(_images_seen(path))), None)
    for path in paths[keep:]:
        if path != spared:
            _delete(path)


def delete_after(folder: str | Path, images_seen: int) -> None:
    """Deletes the checkpoints beyond ``images_seen``: a roll-back has made them void."""
    for path in _checkpoints(folder):
        if _images_seen(path) > images_seen:
            _delete(path)


def _delete(path: Path) -> None:
    with told_by_path(path):
        path.unlink(missing_ok=True)


def save_weights(
    folder: str | Path,
    params: dict[str, Tensor],
    emas: dict[float, dict[str, Tensor]],
    meta: dict[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes ``model.safetensors`` and one ``ema-0.050.safetensors`` per profile into the stage's folder.

    Args:
        params: raw weights by name.
        emas: the same names for every sigma_rel.
        meta: JSON types; ``sigma_rel`` is added (null for the raw weights).
        dtype: of the stored floats, float32 or bfloat16.
    """
    make_folder(folder)
    for sigma_rel, tensors in [*emas.items(), (None, params)]:
        stored = {name: x.to(dtype) if x.is_floating_point() else x for name, x in tensors.items()}
        save_tensors(Path(folder) / weights_file(sigma_rel), stored, meta | {"sigma_rel": sigma_rel})


def mend_weights(folder: str | Path, profiles: Sequence[float], say: Callable[[str], None]) -> None:
    """Write the weights of a finished stage again from its last checkpoint, where a file of them is lost or damaged."""
    for sigma_rel in (None, *profiles):
        path = Path(folder) / weights_file(sigma_rel)
        try:
            load_tensors(path)
            continue
        except UserError as error:
            found = latest_checkpoint(folder, say)
            if found is None:
                raise
            say(f"{error} It is written again from {found[2].name}.")
        prefix = "param/" if sigma_rel is None else f"ema-{sigma_rel:.3f}/"
        tensors = {name.removeprefix(prefix): x for name, x in found[0].items() if name.startswith(prefix)}
        meta = {"images_seen": found[1]["images_seen"], "stage": Path(folder).name, "sigma_rel": sigma_rel}
        save_tensors(path, tensors, meta)


def save_snapshots(folder: str | Path, images_seen: int, emas: dict[float, dict[str, Tensor]], keep: int = 2) -> None:
    """Writes each EMA profile to ``snapshots/``, in bfloat16, and deletes all but the newest ``keep`` of each.

    Snapshots along the run are what other profiles are made of afterwards (Karras et al. 2024, section 3.2).
    """
    snapshots = make_folder(Path(folder) / "snapshots")
    for profile, tensors in emas.items():
        stem = f"ema-{profile:.3f}"
        stored = {name: x.to(torch.bfloat16) for name, x in tensors.items()}
        save_tensors(
            snapshots / f"{stem}-{images_seen:012d}.safetensors", stored,
            {"images_seen": images_seen, "sigma_rel": profile},
        )  # fmt: skip
        for old in sorted(snapshots.glob(f"{stem}-*.safetensors"), reverse=True)[keep:]:
            _delete(old)
