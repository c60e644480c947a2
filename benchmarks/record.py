"""Files of results: how each was made stands in it, and none is lost to a fault that shows only at the end."""

from __future__ import annotations

import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cdm.artifacts import make_folder, save_json
from cdm.errors import UserError
from cdm.evaluate.intervals import Estimate

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ("src", "benchmarks", ":!benchmarks/results")


@contextmanager
def one_sentence(script: str) -> Iterator[None]:
    """A user's mistake ends the script with its sentence."""
    try:
        yield
    except UserError as error:
        raise SystemExit(f"{script.removesuffix('.py')}: {error}") from error


def machine(device: torch.device | None = None) -> str:
    """The GPU, or the processor and its cores."""
    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor() or 'CPU'}, {os.cpu_count()} cores"


def short_name(device: torch.device) -> str:
    """In names of files: h200, cpu."""
    return torch.cuda.get_device_name(device).split()[-1].lower() if device.type == "cuda" else device.type


def commit() -> str:
    """Of the code that is measured; it is told whether that was changed since."""

    def git(*asked: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *asked], capture_output=True, text=True).stdout.strip()

    try:
        found = git("rev-parse", "HEAD")
        changed = bool(git("status", "--porcelain", "--", *MEASURED))
    except OSError:  # no git
        return "unknown"
    return f"{found or 'unknown'}{', with changes' if changed else ''}"


def command(script: str, argv: Sequence[str] | None) -> str:
    """As it was typed, but for where files lie."""
    words = sys.argv[1:] if argv is None else argv
    return shlex.join(["python", f"benchmarks/{script}", *(_without_folder(word) for word in words)])


def _without_folder(word: str) -> str:
    name, equals, path = word.rpartition("=")
    return f"{name}{equals}{Path(path).name}" if os.path.isabs(path) else word


def made(script: str, argv: Sequence[str] | None, device: torch.device | None = None) -> dict[str, Any]:
    """What stands in a file of results under "made". ``script``: file name; ``argv``: its options, None: as called."""
    return {
        "command": command(script, argv), "commit": commit(), "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(device), "torch": torch.__version__,
    }  # fmt: skip


def told(estimate: Estimate) -> dict[str, Any]:
    """A figure with its interval, as it stands in a file of results."""
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def told_ratio(log: Estimate) -> dict[str, Any]:
    """The same of a ratio whose logarithm is given."""
    return {name: None if end is None else math.exp(end) for name, end in told(log).items()}


def check_out(path: Path) -> Path:
    """Before anything is measured: whether the file can be written.

    Raises:
        UserError: it cannot.
    """
    try:
        make_folder(path.parent)
        writable = os.access(path if path.exists() else path.parent, os.W_OK) and not path.is_dir()
    except (OSError, UserError):
        writable = False
    if not writable:
        raise UserError(f"--out is {path}, where no file can be written; expected one in a folder of yours.")
    return path


def save(path: Path, result: dict[str, Any], how: dict[str, Any]) -> None:
    """how: from ``made``."""
    save_json(path, {"made": how, **result})
    print(f"written to {path}")
