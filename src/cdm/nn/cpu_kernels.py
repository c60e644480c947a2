"""Builds kernels of C++ for this CPU by the user's compiler, at their first use, and keeps them in the cache folder."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from cdm.runtime import cache_folder, cpu_flags

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")


def load(source: Path, name: str, declare: Callable[[ctypes.CDLL], ctypes.CDLL]) -> ctypes.CDLL | None:
    """The kernel, built once for this source, compiler and CPU, its functions declared. None: this is not Linux, there
    is no compiler, or it fails, which is said. ``$CXX`` is the compiler; one that is not there turns kernels off."""
    try:
        compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
        if sys.platform != "linux" or shutil.which(compiler[0]) is None:
            return None
        return declare(ctypes.CDLL(str(_built(source, compiler))))
    except (AttributeError, OSError, ValueError, RuntimeError, subprocess.SubprocessError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines() or [type(error).__name__]
        say(name, f"could not be built or loaded ({next((line for line in lines if 'error' in line), lines[-1])})")
        return None


def say(name: str, what: str) -> None:
    warnings.warn(f"the CPU kernel of the {name} {what}: going on without, which is slower.", stacklevel=2)


def _built(source: Path, compiler: list[str]) -> Path:
    """The file, whose name tells what it was built from and its own hash, so that a damaged one is built anew."""
    told = (
        source.read_text(),
        *compiler,
        _run(*compiler, "--version"),
        *FLAGS,
        platform.machine(),
        cpu_flags() or platform.node(),
    )
    folder, name = cache_folder() / "kernels", f"{source.stem}-{_hash(repr(told).encode())}"
    for path in folder.glob(f"{name}-*.so"):
        if path.stem == f"{name}-{_hash(path.read_bytes())}":
            return path
        path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        made = Path(temporary) / "kernel.so"
        _run(*compiler, *FLAGS, str(source), "-o", str(made))
        with made.open("rb") as file:
            path = folder / f"{name}-{_hash(file.read())}.so"
            os.fsync(file.fileno())
        made.replace(path)  # whole at once, whoever else builds it
    return path


def _run(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=True, timeout=120, stdin=subprocess.DEVNULL
    )
    return done.stdout


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
