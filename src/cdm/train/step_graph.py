"""The update of a stage as one CUDA graph: a small net's thousands of kernels are launched as one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cdm.config import StageConfig
from cdm.rng import Rng
from cdm.types import Batch

Update = Callable[[Batch, Rng], None]
WARM_UP = 3
"""Updates run as usual before the recording: moments are made, and kernels are chosen, outside of it."""


def can_record(config: StageConfig, device: torch.device) -> bool:
    """Whether an update of such a stage may be recorded: on CUDA, with nothing copied from the host within.

    Noise tables stand in the host's memory, so stages with one run kernel by kernel.
    """
    on_host = config.schedule.kind.endswith("_table") or config.augmentation.level_map != "cosine"
    return device.type == "cuda" and not on_host


class StepGraph:
    """Calls ``update(batch, rng)``, and plays its recording from the fourth call of one kind on.

    What changes between calls must be read from the batch or from tensors written in place; ``rng`` is part of the
    recording, so another one, or another shape, is recorded anew.
    """

    def __init__(self, update: Update) -> None:
        self._update = update
        self._kind: object = None
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: Batch | None = None

    def __call__(self, batch: Batch, rng: Rng) -> None:
        with torch.cuda.device(batch.x0.device):
            self._step(batch, rng)

    def _step(self, batch: Batch, rng: Rng) -> None:
        kind = (rng, tuple(batch.x0.shape))
        if kind != self._kind:
            self._kind, self._calls, self._graph, self._batch = kind, 0, None, None
        if self._graph is None:
            self._calls += 1
            if self._calls <= WARM_UP:
                self._warm_up(batch, rng)
                return
            self._batch = Batch(*(None if x is None else x.clone() for x in _tensors(batch)))  # type: ignore[arg-type]
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._update(self._batch, rng)
        assert self._batch is not None
        for own, new in zip(_tensors(self._batch), _tensors(batch), strict=True):
            if own is not None and new is not None:
                own.copy_(new, non_blocking=True)
        self._graph.replay()

    def _warm_up(self, batch: Batch, rng: Rng) -> None:
        """On a side stream, as recording is: autograd must not tie the parameters to the stream in use."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._update(batch, rng)
        torch.cuda.current_stream().wait_stream(stream)


def _tensors(batch: Batch) -> tuple[Tensor, Tensor | None, Tensor]:
    return batch.x0, batch.labels, batch.index
