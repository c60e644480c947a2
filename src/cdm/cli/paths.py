"""Paths as users write them."""

from __future__ import annotations

from pathlib import Path

from cdm.errors import UserError


def user_path(text: str, option: str = "--out") -> Path:
    """``~`` is the home folder, also where a shell leaves it alone (``--out=~/x``); an empty path is refused."""
    if not text.strip():
        raise UserError(f"got an empty {option}; expected a path.")
    return Path(text).expanduser()
