"""The next batch is gathered while the device works on this one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from jaxtyping import Int64
from torch import Tensor

from cdm.rng import Rng
from cdm.types import Batch

T = TypeVar("T")


class Ahead(Generic[T]):
    """A source of batches that gathers on a thread what comes next in the stream. What it gives does not hang on that:
    where something else is asked for, as after a roll-back, it is gathered then.

    gather: from the random numbers and positions of a batch to what ``place`` makes a batch of, in the calling thread.
    """

    def __init__(self, gather: Callable[[Rng, Int64[Tensor, " b"]], T], place: Callable[[T], Batch]) -> None:
        self._gather, self._place = gather, place
        self._thread = ThreadPoolExecutor(1, "next batch")
        self._next: tuple[Rng, Int64[Tensor, " b"], Future[T]] | None = None

    def __call__(self, rng: Rng, positions: Int64[Tensor, " b"]) -> Batch:
        expected, self._next = self._next, None
        if expected is not None and expected[0] == rng and expected[1].equal(positions):
            gathered = expected[2].result()
        else:
            if expected is not None:
                expected[2].exception()  # nothing gathers twice at once
            gathered = self._gather(rng, positions)
        later = positions + len(positions)
        self._next = rng, later, self._thread.submit(self._gather, rng, later)
        return self._place(gathered)
