"""Several processes on one evaluation, started by ``torchrun``: who does which block, and when to wait."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

PATIENCE = timedelta(days=7)  # the first process computes alone for as long as it takes


@dataclass(frozen=True)
class Processes:
    """This process is number ``rank`` of ``count``."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """The one that talks, trains and computes."""
        return self.rank == 0

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            dist.barrier()

    def owns(self, block: int) -> bool:
        """Blocks are dealt in turn: who does one depends on nothing but its number."""
        return block % self.count == self.rank


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that ``torchrun`` started with this one; alone without it."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or "RANK" not in os.environ:
        yield Processes()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gloo on a machine whose name does not resolve falls back and says so
        dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
