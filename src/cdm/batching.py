"""How many images go through a stage at once: chosen from the memory there is, and halved when that runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import TypeVar

import torch

from cdm.denoiser import NetDenoiser
from cdm.errors import UserError, is_out_of_memory
from cdm.nn.flops import estimate_forward_memory
from cdm.runtime import free_memory, total_memory
from cdm.stage import Stage

MOST = {"cpu": 64, "cuda": 256}
"""Where more at once were measured to gain nothing (CPU), and the most that were measured (CUDA)."""
SHARE = 4
"""One batch in one stage may take this part of the memory: its recording on CUDA takes as much again, and others live
there too."""
FLOAT_IMAGES = 16
"""Float32 images per image under way, beside the network: of sampler, noise and low-res image."""

T = TypeVar("T")


def bytes_per_image(stage: Stage) -> int:
    """Of activations, in sampling. A denoiser that stands in for the stage's own counts as float32."""
    denoiser = stage.denoiser
    dtype = denoiser.dtype if isinstance(denoiser, NetDenoiser) else torch.float32
    net = estimate_forward_memory(stage.config.net, dtype)
    return net + FLOAT_IMAGES * torch.float32.itemsize * prod(stage.shape)


def room(stages: Sequence[Stage], device: torch.device, offload: bool) -> int:
    """Bytes that the activations of one batch may take beside the weights.

    Told from all memory, not from what is free at the moment: the same call on the same machine makes the same batches,
    so what it goes on with is rounded alike. Where others have taken the rest, a GPU runs out and the batch is halved;
    a process on a CPU would be killed, so there half of what is free is the limit.
    """
    weights = [_bytes_of_weights(stage, device) for stage in stages]
    taken = (max if offload else sum)(weights) if weights else 0
    share = max(0, total_memory(device) - taken) // SHARE
    if device.type != "cpu":
        return share
    left = free_memory(device)
    return share if left is None else min(share, left // 2)


def _bytes_of_weights(stage: Stage, device: torch.device) -> int:
    """Those in bfloat16 are there twice on a CPU (cdm.nn.packed)."""
    packed = device.type == "cpu"
    return sum(each.nbytes * (2 if packed and each.dtype == torch.bfloat16 else 1) for each in stage.net.parameters())


def choose_batch_size(stages: Sequence[Stage], device: torch.device, offload: bool = False) -> int:
    """A power of two: so many images that the hungriest of ``stages`` has room for, at most ``MOST``."""
    hungriest = max(map(bytes_per_image, stages), default=0)
    size, limit = MOST[device.type], room(stages, device, offload)
    while size > 1 and size * hungriest > limit:
        size //= 2
    return size


def fit_together(stages: Sequence[Stage], device: torch.device, batch_size: int) -> bool:
    """Whether there is room for the activations of all ``stages``, which recordings keep, at once."""
    return batch_size * sum(map(bytes_per_image, stages)) <= room(stages, device, offload=False)


def free(stages: Sequence[Stage], device: torch.device) -> None:
    """Give back what recordings and torch's own store hold."""
    for stage in stages:
        if isinstance(stage.denoiser, NetDenoiser):
            stage.denoiser.forget()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def enough_memory(what: str) -> Iterator[None]:
    """One sentence where the memory does not suffice for ``what``."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"the memory does not suffice for {what}; expected room for that much: end other programs, or try "
            "--offload, --precision bf16 or --device cpu."
        ) from error


class Batches:
    """Runs over images in batches of ``size``, which is halved whenever the memory runs out."""

    def __init__(self, size: int, free: Callable[[], None], say: Callable[[str], None] | None = None) -> None:
        self.size = size
        self._free, self._say = free, say

    def run(self, count: int, make: Callable[[slice], T], what: str) -> list[T]:
        """``make(rows)`` for all rows from 0 to ``count`` in order. What was made before the memory ran out stays.

        Raises:
            UserError: there is no room for a single image.
        """
        made: list[T] = []
        begin = 0
        while begin < count:
            rows = slice(begin, min(begin + self.size, count))
            one = self._attempt(make, rows, what)
            if one is None:  # the error is gone by now, and with it the tensors in its frames
                self._halve(rows.stop - rows.start, what)
            else:
                made.append(one)
                begin = rows.stop
        return made

    def _attempt(self, make: Callable[[slice], T], rows: slice, what: str) -> T | None:
        """None: the memory ran out."""
        if rows.stop - rows.start == 1:
            with enough_memory(f"one image in {what}"):
                return make(rows)
        try:
            return make(rows)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _halve(self, tried: int, what: str) -> None:
        self._free()
        while self.size >= tried:  # the last batch may be a short one
            self.size //= 2
        if self._say is not None:
            self._say(f"the memory does not suffice for {tried} images at once in {what}: going on with {self.size}")
