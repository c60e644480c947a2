"""Builds the GPU kernels of the norm for a card that need not be there, as test_gpu_norm.py asks in a process without
Triton's interpreter: that takes programs which the compiler refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cdm.nn import gpu_norm, gpu_norm_kernels

HOPPER = GPUTarget("cuda", 90, 32)
TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32", int: "i32", float: "fp32"}


class Built:
    """Stands for a kernel: a call of it builds it for these arguments, and runs nothing."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.build

    def build(self, *given: Any, num_warps: int, **fixed: Any) -> None:
        names = self.kernel.arg_names
        kinds = {
            n: TYPES[x.dtype if isinstance(x, torch.Tensor) else type(x)] for n, x in zip(names, given, strict=False)
        }
        source = ASTSource(
            self.kernel,
            {name: kinds.get(name, "constexpr") for name in names},
            {(names.index(name),): value for name, value in fixed.items()},
        )
        binary = triton.compile(source, target=HOPPER, options={"num_warps": num_warps}).asm["cubin"]
        print(self.kernel.fn.__name__, len(binary))


def main() -> None:
    for name in ("moments", "normalise", "sums", "gradient"):
        setattr(gpu_norm_kernels, name, Built(getattr(gpu_norm_kernels, name)))
    for n, c, groups in ((1024, 64, 16), (16, 96, 24)):
        pixels, weight = torch.empty(2, n, c, dtype=torch.bfloat16), torch.empty(2, c)
        saved = gpu_norm._forward(pixels, weight, weight, groups, 1e-5, True)[1]
        gpu_norm._backward(saved, pixels, True)
        gpu_norm._folded(pixels, weight[0], weight[0], torch.empty(2, 2 * c, dtype=torch.bfloat16), groups, 1e-5, False)


if __name__ == "__main__":
    main()
