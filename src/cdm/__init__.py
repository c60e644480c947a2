"""Cascaded diffusion models on your own images.

``import cdm`` is cheap: what is exported here is loaded at first use, so torch comes only when it is needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cdm.cascade import Cascade
    from cdm.errors import UserError

__version__ = "0.1.0"
__all__ = ["Cascade", "UserError", "__version__"]

_HOME = {"Cascade": "cdm.cascade", "UserError": "cdm.errors"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cdm' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
