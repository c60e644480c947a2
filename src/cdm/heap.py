"""How the C library keeps memory that tensors on a CPU have given back."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST, MOST = 2**25, 2**30
"""Bytes: of a block that is kept, the largest that glibc itself may keep; and of all that is free at the heap's end."""


def keep_memory() -> bool:
    """Let glibc keep what tensors give back, instead of asking the kernel for fresh pages, filled with zeros, at every
    layer. A CPU is up to a tenth faster; the memory's peak is about the same, but stays with the process until its end.

    Returns whether it does so: not where the C library is another one, nor where the user has set malloc up.
    """
    own = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if own or not sys.platform.startswith("linux"):
        return False
    with suppress(OSError, AttributeError):  # no such function
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(M_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(M_TRIM_THRESHOLD, MOST))
    return False
