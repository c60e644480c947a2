"""Batches: chosen from the memory, halved when it runs out, one stage's activations at a time, weights that take turns.

A CPU stands for the accelerator: what is moved when, and what is alive when, can be seen on it; that the memory of a
GPU is free afterwards is told by ``tests/cuda``.
"""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from tests.fakes import random_cascade, stage_config
from torch.utils._python_dispatch import TorchDispatchMode

import cdm.batching
from cdm.batching import Batches, bytes_per_image, choose_batch_size, fit_together, free
from cdm.cascade import Cascade, Samples, _whole
from cdm.errors import UserError, is_out_of_memory
from cdm.nn.unet import UNet
from cdm.stage import Stage

CPU = torch.device("cpu")
OUT_OF_MEMORY = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 9 bytes."),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "host": MemoryError(),
}


@pytest.fixture(scope="module")
def cascade() -> Cascade:
    return random_cascade(stage_config(8), stage_config(16, 8), stage_config(32, 16))


def sampled(cascade: Cascade, count: int = 10, **options: Any) -> Samples:
    return cascade.sample(seeds=range(count), settings=cascade.settings(steps=[3, 2, 2], sampler="ddpm"), **options)


def equal(one: Samples, other: Samples) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.images, other.images, strict=True))


@pytest.fixture
def full(request: pytest.FixtureRequest, cascade: Cascade) -> Any:
    """``full(stage, most)``: for one test the net of ``stage`` has no room for more than ``most`` images. Returns the
    batch sizes that are tried."""

    def make(stage: int, most: int, error: Exception = OUT_OF_MEMORY["cuda"]) -> list[int]:
        seen: list[int] = []

        def check(net: UNet, inputs: tuple[Any, ...]) -> None:
            seen.append(len(inputs[0]))
            if len(inputs[0]) > most:
                raise error

        request.addfinalizer(cascade.stages[stage].net.register_forward_pre_hook(check).remove)
        return seen

    return make


# ---- out of memory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
def test_a_batch_too_large_is_halved_and_the_images_are_those_of_the_smaller_one(cascade, full, error):
    wanted, said = sampled(cascade, batch_size=2), []
    tried = full(0, 2, error)
    got = sampled(cascade, batch_size=8, say=said.append)
    assert equal(got, wanted) and got.batch_size == 2
    assert said == [
        "the memory does not suffice for 8 images at once in stage 0: going on with 4",
        "the memory does not suffice for 4 images at once in stage 0: going on with 2",
    ]
    assert tried == [8, 4] + 5 * 3 * [2]


def test_what_lower_stages_and_earlier_batches_made_is_not_made_again(cascade, full):
    """The top stage runs out: the images are those of its own smaller batches on the large ones below."""
    below = sampled(cascade, batch_size=8, stop_after=1)
    first, calls = full(0, 100), []
    full(2, 4)
    got = sampled(cascade, batch_size=8, progress=lambda *call: calls.append((call[0], len(call[3]))))
    assert equal(below, Samples(got.images[:2], None, got.seeds, (), (), 0)) and got.batch_size == 4
    assert first == 3 * [8] + 3 * [2]
    assert [call for call in calls if call[0] == 2] == 2 * [(2, 4)] + 2 * [(2, 4)] + 2 * [(2, 2)]


def test_a_short_batch_is_halved_below_its_own_length_at_once(cascade, full):
    full(0, 5)
    said: list[str] = []
    assert sampled(cascade, count=6, batch_size=64, say=said.append).batch_size == 4
    assert said == ["the memory does not suffice for 6 images at once in stage 0: going on with 4"]


def test_no_room_for_one_image_is_one_sentence(cascade, full):
    tried, said = full(1, 0), []
    with pytest.raises(UserError, match=r"does not suffice for one image in stage 1; expected room .* --offload"):
        sampled(cascade, batch_size=4, say=said.append)
    assert tried == [4, 2, 1] and len(said) == 2


def test_other_errors_pass(cascade, full):
    tried = full(0, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        sampled(cascade, batch_size=4)
    assert tried == [4] and not is_out_of_memory(UserError("lower --batch-size: out of memory"))


def test_before_the_smaller_batch_everything_of_the_larger_is_freed():
    """The error holds the frames that hold its tensors, so it must be gone by then, without the garbage collector."""
    alive: list[weakref.ref[torch.Tensor]] = []

    def make(rows: slice) -> int:
        large = torch.zeros(rows.stop - rows.start)
        alive.append(weakref.ref(large))
        if len(large) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return len(large)

    freed = []
    gc.disable()
    try:
        batches = Batches(8, lambda: freed.append([ref() is None for ref in alive]))
        assert batches.run(4, make, "stage 0") == [2, 2]
    finally:
        gc.enable()
    assert freed == [[True]]


# ---- one stage at a time ---------------------------------------------------------------------------------------------


class Storages(TorchDispatchMode):
    """Remembers every tensor that is made while it is on, views of ``known`` ones left out."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._known = {x.untyped_storage().data_ptr() for x in known}
        self.made: list[weakref.ref[Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, torch.Tensor) and one.untyped_storage().data_ptr() not in self._known:
                self.made.append(weakref.ref(one.untyped_storage()))
        return out

    def bytes(self) -> int:
        return sum({id(s): s.nbytes() for ref in self.made if (s := ref()) is not None}.values())


def test_when_a_stage_begins_nothing_of_the_net_before_is_alive(cascade, monkeypatch):
    """Every tensor that a net made, inside of it or as its result, is gone; and the check sees them where they are."""
    of_stage: dict[int, Storages] = {k: Storages(stage.net.parameters()) for k, stage in enumerate(cascade.stages)}
    within, at_begin = [], {}

    def watched(stage: Stage) -> Any:
        forward = stage.net.forward

        def run(*inputs: Any) -> Any:
            for below in range(stage.index):
                at_begin.setdefault((stage.index, below), of_stage[below].bytes())
            with of_stage[stage.index]:
                out = forward(*inputs)
            within.append(of_stage[stage.index].bytes())
            return out

        return run

    for stage in cascade.stages:
        monkeypatch.setattr(stage.net, "forward", watched(stage))
    sampled(cascade, batch_size=4)
    assert at_begin == {(1, 0): 0, (2, 0): 0, (2, 1): 0}
    assert min(within) > 0 and all(len(storages.made) > 100 for storages in of_stage.values())


# ---- offloading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hand_over", ["non_truncated", "truncated"])
def test_offloaded_weights_take_turns_and_change_no_image(cascade, monkeypatch, hand_over):
    """All batches of a stage in one turn, and no other stage is on the accelerator meanwhile."""
    settings = cascade.settings(steps=[4, 3, 2], hand_over=hand_over)
    request: dict[str, Any] = {"seeds": range(7), "settings": settings, "batch_size": 3}
    wanted = cascade.sample(**request)
    accelerator = torch.device("cpu")
    offloaded, there, seen = Cascade(cascade.config, cascade.stages, accelerator, offload=True), set(), []
    moves: list[tuple[int, str]] = []
    to = Stage.to

    def moved(stage: Stage, device: Any, dtype: torch.dtype) -> Stage:
        (there.add if device is accelerator else there.discard)(stage.index)
        moves.append((stage.index, "in" if device is accelerator else "out"))
        return to(stage, device, dtype)

    monkeypatch.setattr(Stage, "to", moved)
    monkeypatch.setattr(offloaded, "device", accelerator)
    got = offloaded.sample(**request, progress=lambda stage, *_: seen.append((stage, set(there))))
    assert equal(got, wanted)
    assert moves == [(0, "in"), (0, "out"), (1, "in"), (1, "out"), (2, "in"), (2, "out")]
    assert all(here == {stage} for stage, here in seen) and len(seen) > 3 * 3


def test_an_offloaded_stage_goes_back_also_after_an_error(cascade, monkeypatch, full):
    full(1, 0)
    offloaded, moves, to = Cascade(cascade.config, cascade.stages, CPU, offload=True), [], Stage.to

    def moved(stage: Stage, device: Any, dtype: torch.dtype) -> Stage:
        moves.append(stage.index)
        return to(stage, device, dtype)

    monkeypatch.setattr(Stage, "to", moved)
    with pytest.raises(UserError, match="one image in stage 1"):
        sampled(offloaded)
    assert moves == [0, 0, 1, 1]


def test_weights_that_the_accelerator_has_no_room_for_are_one_sentence(cascade, monkeypatch):
    def no_room(*_: Any) -> Stage:
        raise OUT_OF_MEMORY["cuda"]

    monkeypatch.setattr(Stage, "to", no_room)
    with pytest.raises(UserError, match="does not suffice for the weights of stage 0; expected room for that much"):
        sampled(Cascade(cascade.config, cascade.stages, CPU, offload=True))


def test_recordings_are_freed_when_a_stage_is_left_if_not_all_fit(cascade, monkeypatch):
    forgotten: list[int] = []
    for stage in cascade.stages:
        monkeypatch.setattr(stage.denoiser, "forget", lambda k=stage.index: forgotten.append(k))
    sampled(cascade, batch_size=4)
    assert forgotten == []  # small nets, all fit
    monkeypatch.setattr(cdm.batching, "total_memory", lambda device: 0)
    sampled(cascade, batch_size=4)
    assert forgotten == [0, 1, 2]
    free(cascade.stages, CPU)
    assert forgotten == [0, 1, 2] * 2


# ---- the choice ------------------------------------------------------------------------------------------------------


def with_memory(monkeypatch: pytest.MonkeyPatch, total: int, available: int | None = None) -> None:
    monkeypatch.setattr(cdm.batching, "total_memory", lambda device: total)
    monkeypatch.setattr(cdm.batching, "free_memory", lambda device: total if available is None else available)


def test_the_batch_is_the_largest_power_of_two_that_the_hungriest_stage_has_room_for(cascade, monkeypatch):
    most = max(map(bytes_per_image, cascade.stages))
    assert most == bytes_per_image(cascade.stages[2]) > bytes_per_image(cascade.stages[0])
    weights = [sum(4 * p.numel() for p in stage.net.parameters()) for stage in cascade.stages]
    for count in (1, 2, 3, 16, 40, 63, 64, 500):
        with_memory(monkeypatch, sum(weights) + 4 * count * most)
        size = choose_batch_size(cascade.stages, CPU)
        assert size == min(64, 2 ** (count.bit_length() - 1))
        assert cascade.auto_batch_size() == size == sampled(cascade, count=1).batch_size
        with_memory(monkeypatch, max(weights) + 4 * count * most)  # of offloaded weights the largest count
        assert choose_batch_size(cascade.stages, CPU, offload=True) == size
    with_memory(monkeypatch, 0)
    assert choose_batch_size(cascade.stages, CPU) == 1  # tried, though it may not fit
    with_memory(monkeypatch, sum(weights) + 64 * most)
    assert cascade.auto_batch_size(0) == min(64, 16 * most // bytes_per_image(cascade.stages[0])) > 16


def test_what_is_free_at_the_moment_matters_only_where_it_is_little(cascade, monkeypatch):
    """So the same call on the same machine makes the same batches."""
    most = max(map(bytes_per_image, cascade.stages))
    for available, wanted in ((10**12, 64), (2 * 64 * most, 64), (2 * 10 * most, 8)):
        with_memory(monkeypatch, 10**12, available)
        assert choose_batch_size(cascade.stages, CPU) == wanted
    with_memory(monkeypatch, 10**12, 0)
    cuda = torch.device("cuda")  # only named: a GPU that runs out says so
    assert choose_batch_size(cascade.stages, cuda) == 256 and fit_together(cascade.stages, cuda, 256)


def test_a_batch_size_below_one_is_refused_and_the_default_is_chosen(cascade):
    with pytest.raises(UserError, match=re.escape("got batch_size 0; expected a whole number, at least 1")):
        sampled(cascade, batch_size=0)
    assert sampled(cascade, count=2).batch_size == cascade.auto_batch_size() == 64


@pytest.mark.parametrize("value", ["0", "auto", 1.5, True, None, [1], 0, 4, 2**70])
def test_what_is_no_whole_number_in_the_range_is_one_sentence(value):
    """Called itself, as types are checked before the cascade's methods in tests."""
    assert [_whole("n", good, "1 to 3", 1, 3) for good in (1, np.int64(3))] == [1, 3]
    with pytest.raises(UserError, match=re.escape(f"got n {value!r}; expected a whole number, 1 to 3.")):
        _whole("n", value, "1 to 3", 1, 3)
