"""What training a stage needs of memory, without needing it: an update and a look at held-out images are run on fake
tensors, which have shapes and no numbers, and every storage is counted from its making to its end."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cdm.config import StageConfig
from cdm.losses import Noised, noised_loss
from cdm.nn.layers import Attention
from cdm.nn.unet import UNet
from cdm.stage import Stage
from cdm.train.step import Trainee
from cdm.train.step_graph import can_record
from cdm.types import Batch, Cond


def training_memory(config: StageConfig, device: torch.device, dtype: torch.dtype, looks: Sequence[int] = ()) -> int:
    """Largest sum of bytes of all tensors while a stage trains: weights, gradients, optimiser, EMA profiles, the copy
    that is looked at, batch, activations kept and passing, gradients on their way back.

    The library itself (on CUDA also its context and the workspaces of convolutions) and what an allocator keeps beyond
    the tensors come on top, as do the data.

    Args:
        device: of the training; nothing is done on it, so it need not be there.
        dtype: that the network computes in.
        looks: numbers of whole images, neither cropped nor kept for gradients, that validation and previews put through
            the network at once. On a CPU the largest counts; on CUDA each of them is recorded and keeps its memory.
    """
    counter = LiveBytes()
    recorded = can_record(config, device)
    fake = FakeTensorMode(allow_non_fake_inputs=True)  # tables of noise levels are real
    stage, shadow = (_fake_stage(config, device, dtype, fake) for _ in range(2))
    shadow.net.eval().requires_grad_(False)
    with fake, counter:
        for net in (stage.net, shadow.net):
            counter.add(list(net.parameters()))
        trainee = Trainee(stage)
        for p in trainee.params:
            p.grad = torch.empty_like(p)
        trainee.apply(torch.zeros(()))  # the moments are made
        trainee.ema.update(trainee.params, 1, 2)
        state = counter.live
        apart = [_peak_of(counter, lambda n=n: _look(shadow, n)) - state for n in looks]
        _accumulate(trainee, recorded)
    if device.type == "cuda":
        kept = sum(4 * p.numel() for p in trainee.params) if recorded else 0  # gradients from before the recording
        return counter.peak + kept + sum(apart)
    return counter.peak


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages made while it is entered: those alive, and their largest sum so far.

    Where a number is asked of a tensor, the answer is 1: fake tensors have none, and memory does not depend on it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def add(self, tensors: Any) -> None:
        """Count the storages in a tree of tensors that were not counted yet."""
        for x in tree_leaves(tensors):
            if isinstance(x, Tensor) and (place := (storage := x.untyped_storage())._cdata) not in self._known:
                self._known.add(place)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._remove, place, storage.nbytes())
        self.peak = max(self.peak, self.live)

    def _remove(self, place: int, count: int) -> None:
        self._known.discard(place)
        self.live -= count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(args[0] if args else None, FakeTensor):
            if func is torch.ops.prim.device.default:  # half of all calls, and slow further down
                return args[0].fake_device
            if func is torch.ops.aten._local_scalar_dense.default:
                return 1.0
        out = func(*args, **(kwargs or {}))
        self.add(out)
        return out


def _peak_of(counter: LiveBytes, work: Callable[[], None]) -> int:
    """Largest sum of bytes while ``work`` runs."""
    before, counter.peak = counter.peak, counter.live
    work()
    peak, counter.peak = counter.peak, max(before, counter.peak)
    return peak


def _fake_stage(config: StageConfig, device: torch.device, dtype: torch.dtype, fake: FakeTensorMode) -> Stage:
    """A stage whose weights are fake tensors; fake ones of CUDA need CUDA, so all are those of a CPU, and only the
    choice of the attention's kernel is that of ``device``."""
    with torch.device("meta"):
        net = UNet(config.net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
    stage = Stage(config, 0 if config.is_base else 1, net, num_classes=config.net.num_labels)
    stage.denoiser.dtype = dtype
    with fake:
        for layer in net.modules():
            for name, weight in list(layer.named_parameters(recurse=False)):
                setattr(layer, name, torch.nn.Parameter(torch.empty_like(weight, device="cpu")))
            if isinstance(layer, Attention) and device.type != "cpu":
                layer.plain_up_to = 0
    return stage


def _accumulate(trainee: Trainee, recorded: bool) -> None:
    """Forward and backward of one micro-batch; where it is not the first, gradients are there already."""
    optim = trainee.stage.config.optim
    count = min(optim.micro_batch or optim.batch_size, optim.batch_size)
    size = optim.crop_size or trainee.stage.config.size
    if count == optim.batch_size:
        for p in trainee.params:
            p.grad = None
    whole = [_batch(trainee.stage, optim.batch_size, size) for _ in range(2 if recorded else 1)]  # a recording's own
    noised = _noised(trainee.stage, count, size)
    dropout = _dropout if trainee.stage.config.net.dropout else None
    rows = slice(0, count)
    part = Batch(whole[0].x0[rows], noised.cond.labels, whole[0].index[rows])
    noised_loss(trainee.stage, part, noised, dropout).loss.sum().backward()


@torch.no_grad()
def _look(shadow: Stage, count: int) -> None:
    """A forward pass of whole images, as validation does."""
    size = shadow.config.size
    held, noised = _batch(shadow, count, size), _noised(shadow, count, size)
    raw, _ = shadow.denoiser.raw(noised.x_t, noised.logsnr, noised.cond)
    (raw - held.x0).square()


def _images(stage: Stage, count: int, size: int) -> Tensor:
    return torch.empty(count, stage.config.channels, size, size)


def _batch(stage: Stage, count: int, size: int) -> Batch:
    return Batch(_images(stage, count, size), _labels(stage, count), torch.empty(count, dtype=torch.int64))


def _labels(stage: Stage, count: int) -> Tensor | None:
    return torch.empty(count, dtype=torch.int64) if stage.config.net.num_labels else None


def _noised(stage: Stage, count: int, size: int) -> Noised:
    config = stage.config
    low_res = None if config.is_base else _images(stage, count, size)
    cond = Cond(_labels(stage, count), low_res, torch.empty(count) if config.net.has_aug_level else None)
    return Noised(_images(stage, count, size), _images(stage, count, size), torch.empty(count), cond, None)


def _dropout(x: Tensor, layer: int, probability: float) -> Tensor:
    """Keeps what ``make_dropout``'s keeps."""
    return x * torch.empty_like(x, dtype=torch.bool).to(x.dtype) * (1 / (1 - probability))
