"""Builds and calls the CPU kernel of attention (``cpu_attention.cpp``), where there is a compiler and AVX512-BF16.

torch's fused attention in bfloat16 is slow on a CPU, and plain products copy what they take and round the scores.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cdm.nn import cpu_kernels
from cdm.runtime import cpu_flags, is_eager

SOURCE = Path(__file__).with_name("cpu_attention.cpp")
LANES = 16

Qkv = Float[Tensor, "b n c3"]
Mixed = Float[Tensor, "b n c"]


def can_run(qkv: Qkv, num_heads: int) -> bool:
    """Whether the kernel is there and takes these, in sampling: it has no gradients."""
    _, n, channels = qkv.shape
    return (
        qkv.dtype == torch.bfloat16
        and not torch.is_grad_enabled()
        and qkv.device.type == "cpu"
        and qkv.numel() > 0
        and n % LANES == 0
        and channels % (3 * num_heads * LANES) == 0
        and is_eager(qkv)
        and works()
    )


def attend(qkv: Qkv, num_heads: int) -> Mixed:
    """softmax(q k^T / sqrt(d)) v in each head. Channels of ``qkv`` are q | k | v, each split into heads."""
    lib = kernel()
    assert lib is not None
    qkv = qkv.resolve_neg().contiguous()
    b, n, channels = qkv.shape
    d = channels // (3 * num_heads)
    out = qkv.new_empty(b, n, channels // 3)
    lib.attend(b, n, num_heads, d, qkv.data_ptr(), d**-0.5, out.data_ptr(), torch.get_num_threads())
    return out


@cache
@torch.no_grad()
def works() -> bool:
    """Whether the kernel is there and does what torch does: no compiler is trusted unseen. Says what is wrong, once."""
    if kernel() is None:
        return False
    b, n, heads, d = 2, 80, 3, 48  # rests of all loops
    wide = torch.linspace(0, 3000, b * n * 3 * heads * d, dtype=torch.float32, device="cpu").sin()
    qkv = (2 * wide.view(b, n, 3 * heads * d)).bfloat16()
    q, k, v = qkv.float().view(b, n, 3, heads, d).permute(2, 0, 3, 1, 4)
    want = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    if float((attend(qkv, heads).float() - want).norm()) <= 0.01 * float(want.norm()):
        return True
    cpu_kernels.say("attention", "is wrong as this compiler builds it")
    return False


@cache
def kernel() -> ctypes.CDLL | None:
    """None also where the CPU has no AVX512-BF16."""
    return cpu_kernels.load(SOURCE, "attention", _declared) if "avx512_bf16" in cpu_flags().split() else None


def _declared(lib: ctypes.CDLL) -> ctypes.CDLL:
    long, pointer = ctypes.c_long, ctypes.c_void_p
    lib.attend.argtypes = [long, long, long, long, pointer, ctypes.c_float, pointer, ctypes.c_int]
    lib.attend.restype = None
    return lib
