"""A network's forward pass as CUDA graphs: in sampling, a small net's hundreds of kernels are launched as one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

KEPT = 4
"""Recordings kept, one for each shape of the inputs; each holds the memory of its activations."""

Forward = Callable[..., Tensor]


class ForwardGraphs:
    """Calls ``forward(*inputs)``, and plays a recording from the second call of inputs alike in shape and dtype on.

    For inference: ``forward`` copies nothing from the host and returns one tensor, the same function of its inputs (and
    of weights that are only written in place) each time. Inputs are tensors on CUDA, or None.
    """

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._kept: OrderedDict[object, _Recording | None] = OrderedDict()
        self._is_full = False

    def clear(self) -> None:
        """Forget all recordings and free what they hold; whether there is room for new ones is tried anew."""
        self._kept.clear()
        self._is_full = False

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        device = next(x.device for x in inputs if x is not None)
        with torch.cuda.device(device):
            return self._forward(*inputs) if self._is_full else self._play(*inputs)

    def _play(self, *inputs: Tensor | None) -> Tensor:
        kind = tuple(None if x is None else (tuple(x.shape), x.stride(), x.dtype) for x in inputs)
        if kind not in self._kept:
            self._kept[kind] = None
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return self._forward(*inputs)
        self._kept.move_to_end(kind)
        recording = self._kept[kind]
        if recording is None:
            try:
                recording = self._kept[kind] = _Recording(self._forward, inputs)
            except torch.OutOfMemoryError:  # a recording has its own memory: from here on without
                self.clear()
                self._is_full = True
                return self._forward(*inputs)
        return recording(*inputs)


class _Recording:
    def __init__(self, forward: Forward, inputs: tuple[Tensor | None, ...]) -> None:
        self._inputs = tuple(None if x is None else x.clone() for x in inputs)  # strides stay
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = forward(*self._inputs)

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        for own, new in zip(self._inputs, inputs, strict=True):
            if own is not None and new is not None:
                own.copy_(new)
        self._graph.replay()
        return self._output.clone()  # the next call writes over it
