"""Device, precision and threads: chosen by themselves, or as asked, or refused in one sentence."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

from cdm.errors import UserError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CGROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Where Linux tells a container's limit, what is used, and how much of it are files it would forget (version 2, 1)."""
CPU_QUOTAS = (
    ("/sys/fs/cgroup/cpu.max",),
    ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)
"""Where it tells microseconds of CPU time that a container may use in each period, and the period."""
MOST_THREADS = 4
"""Per core. More only slow each other down, and far more crash the process."""


def cache_folder() -> Path:
    """``$CDM_CACHE``, or ``$XDG_CACHE_HOME/cdm``, or ``~/.cache/cdm``."""
    own = os.environ.get("CDM_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cdm"


def choose_device(asked: str | None = None) -> torch.device:
    """``asked`` as torch spells it; None: CUDA where it is there, else the CPU; to each process that ``torchrun``
    starts its own GPU. One with a number becomes torch's current one, which streams and recordings go to.

    Apple's MPS is refused: it has no float64, which noise levels are computed in.
    """
    if asked in (None, "auto"):
        if not torch.cuda.is_available():
            return torch.device("cpu")
        if "LOCAL_RANK" not in os.environ:
            return torch.device("cuda")
        asked = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise UserError(f"unknown device {asked!r}; expected cpu, cuda or cuda:N.") from error
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
    }.get(device.type, False)
    if not there:
        raise UserError(f"device {asked!r} is not available here; expected one that torch can use: try --device cpu.")
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def is_eager(*tensors: torch.Tensor) -> bool:
    """Whether a call on these is computed at once by torch: nothing records, counts, transforms or compiles it, and all
    of them have a memory. Kernels that torch does not know, or whose cost it does not count, are for such calls only.
    """
    return (
        all(type(each) in (torch.Tensor, torch.nn.Parameter) for each in tensors)  # no fake ones
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and _get_current_dispatch_mode() is None
        and torch._C._functorch.peek_interpreter_stack() is None  # pyright: ignore[reportAttributeAccessIssue]  # vmap
        and forward_ad._current_level < 0
    )


def cpu_flags() -> str:
    """What the CPU can do, in the words of Linux; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 is native: CUDA from Ampere on, CPUs with AMX or AVX512-BF16. Elsewhere it is emulated."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        return bool({"amx_bf16", "avx512_bf16"} & set(cpu_flags().split()))
    return False


def choose_dtype(
    asked: str, device: torch.device, *, training: bool = False, say: Callable[[str], None] = warnings.warn
) -> torch.dtype:
    """``auto``: bf16 where it is fast, float32 elsewhere. fp16 falls back to that, and ``say`` is told, on a CPU and in
    ``training``."""
    usual = torch.bfloat16 if has_fast_bf16(device) else torch.float32
    if asked == "auto":
        return usual
    if asked not in PRECISIONS:
        known = [name for name in PRECISIONS if not (training and name == "fp16")]
        raise UserError(f"unknown precision {asked!r}; expected auto, {', '.join(known)}.")
    if asked == "fp16" and (training or device.type == "cpu"):
        why = "gradients underflow in it" if training else "this is a CPU"
        say(f"precision fp16 is not supported here, for {why}: going on with {precision_name(usual)}")
        return usual
    return PRECISIONS[asked]


def precision_name(dtype: torch.dtype) -> str:
    return next(name for name, known in PRECISIONS.items() if known == dtype)


def total_memory(device: torch.device) -> int:
    """Bytes of the accelerator; for a CPU those of the machine, or of the container around us if these are fewer."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder, limit, *_ in CGROUPS:
        with suppress(OSError, ValueError):  # no such file, or "max"
            found.append(int(Path(folder, limit).read_text()))
    return min(found)


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on ``device``: of a CPU what the machine and a container's limit leave. None: not told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = _named_number(Path("/proc/meminfo"), "MemAvailable:")  # in kB
    left = [] if available is None else [1024 * available]
    for folder, limit, used, cache in CGROUPS:
        try:
            most, now = (int(Path(folder, name).read_text()) for name in (limit, used))
        except (OSError, ValueError):  # none, or "max"
            continue
        left.append(most - now + (_named_number(Path(folder, "memory.stat"), cache) or 0))
    return min(left, default=None)


def _named_number(path: Path, name: str) -> int | None:
    """The number behind ``name`` at the start of a line."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(name + " ")), None)


def cpu_quota() -> float | None:
    """Cores that a container around us may keep busy; None: no limit. torch counts the machine's instead."""
    for files in CPU_QUOTAS:
        with suppress(OSError, ValueError):  # no such file, or "max"
            quota, period = map(int, " ".join(Path(file).read_text() for file in files).split())
            if quota > 0 and period > 0:
                return quota / period
    return None


def usable_cores() -> int:
    """Cores that this process may keep busy, rounded up: of the machine, of its own set, of a container's limit."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(mine, math.ceil(cpu_quota() or mine)))


def set_threads(asked: int | None) -> int:
    """Set torch's CPU threads; None leaves torch's own choice, but for a container's limit (``OMP_NUM_THREADS`` is
    above both). Returns the number in force."""
    if asked is None and not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    if asked is not None:
        if asked < 1:
            raise UserError(f"got {asked} threads; expected at least 1.")
        most = MOST_THREADS * (os.cpu_count() or 1)
        if asked > most:
            raise UserError(f"got {asked} threads; expected at most {most} on this machine: leave --threads out.")
        torch.set_num_threads(asked)
    return torch.get_num_threads()
