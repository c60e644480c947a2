"""Device, precision and threads: as asked, or refused in one sentence."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

import cdm.runtime
from cdm.errors import UserError
from cdm.runtime import (
    PRECISIONS,
    choose_device,
    choose_dtype,
    cpu_quota,
    free_memory,
    has_fast_bf16,
    precision_name,
    set_threads,
    total_memory,
    usable_cores,
)

CPU = torch.device("cpu")


def test_devices_are_chosen_by_themselves_or_as_asked():
    assert choose_device() == choose_device("auto") == torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize(("rank", "number"), [("0", 0), ("1", 1), ("3", 1)])
def test_processes_of_torchrun_have_a_gpu_each(monkeypatch, rank, number):
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert choose_device() == torch.device("cuda") and not current
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert choose_device() == choose_device("auto") == torch.device("cuda", number)
    assert current == [torch.device("cuda", number)] * 2


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("gpu", "unknown device 'gpu'; expected cpu, cuda or cuda:N"),
        ("cuda:99", "device 'cuda:99' is not available here"),
        ("mps", "device 'mps' is not available here"),
        ("meta", "device 'meta' is not available here"),
    ],
)
def test_devices_that_are_not_there(asked, message):
    with pytest.raises(UserError, match=re.escape(message)):
        choose_device(asked)


def test_precision_is_chosen_by_speed():
    assert choose_dtype("auto", CPU) == (torch.bfloat16 if has_fast_bf16(CPU) else torch.float32)
    assert choose_dtype("fp32", CPU) == torch.float32 and choose_dtype("bf16", CPU) == torch.bfloat16
    assert all(precision_name(dtype) == name for name, dtype in PRECISIONS.items())


def test_a_precision_that_is_not_known_is_refused():
    with pytest.raises(UserError, match="unknown precision 'int8'; expected auto, fp32, bf16, fp16\\."):
        choose_dtype("int8", CPU)
    with pytest.raises(UserError, match="unknown precision 'int8'; expected auto, fp32, bf16\\."):
        choose_dtype("int8", CPU, training=True)


@pytest.mark.parametrize(("training", "why"), [(False, "this is a CPU"), (True, "gradients underflow in it")])
def test_a_precision_that_cannot_be_had_falls_back_and_it_is_said(training, why):
    said = []
    usual = choose_dtype("auto", CPU)
    assert choose_dtype("fp16", CPU, training=training, say=said.append) == usual
    assert said == [f"precision fp16 is not supported here, for {why}: going on with {precision_name(usual)}"]
    with pytest.warns(UserWarning, match="going on with"):
        choose_dtype("fp16", CPU, training=training)
    assert choose_dtype("bf16", CPU, training=training, say=said.append) == torch.bfloat16 and len(said) == 1


def test_threads():
    before = torch.get_num_threads()
    try:
        assert set_threads(None) == before and set_threads(1) == torch.get_num_threads() == 1
        with pytest.raises(UserError, match="got 0 threads; expected at least 1"):
            set_threads(0)
        with pytest.raises(UserError, match=r"got 100000000 threads; expected at most \d+ on this machine"):
            set_threads(100_000_000)
        assert set_threads(4 * (os.cpu_count() or 1)) >= 4
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("texts", "cores"),
    [
        (["150000 100000"], 1.5),
        (["max 100000"], None),
        (["400000\n", "100000\n"], 4),
        (["-1\n", "100000\n"], None),
        ([], None),
    ],
)
def test_threads_are_no_more_than_a_container_may_use(texts, cores, tmp_path, monkeypatch):
    """Of 8 that torch would take, rounded up."""
    files = tuple(str(tmp_path / str(k)) for k in range(len(texts)))
    for file, text in zip(files, texts, strict=True):
        Path(file).write_text(text)
    monkeypatch.setattr(cdm.runtime, "CPU_QUOTAS", (("/no/such",), files))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cdm.runtime.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(8)
        assert cpu_quota() == cores
        assert set_threads(None) == {1.5: 2, 4: 4, None: 8}[cores]
        torch.set_num_threads(8)
        assert usable_cores() == {1.5: 2, 4: 4, None: 8}[cores]
        monkeypatch.setenv("OMP_NUM_THREADS", "")
        assert set_threads(None) == usable_cores()
        torch.set_num_threads(8)
        monkeypatch.setenv("OMP_NUM_THREADS", "8")
        assert set_threads(None) == 8
        assert set_threads(3) == 3
    finally:
        torch.set_num_threads(before)


def test_memory_is_the_machines_or_what_its_container_may_use(tmp_path, monkeypatch):
    monkeypatch.setattr(cdm.runtime, "CGROUPS", ())
    machine, free = total_memory(CPU), free_memory(CPU)
    assert free is not None and 2**28 < free <= machine
    limits = {"none": "max\n", "small": "300000000\n", "more than there is": "9223372036854771712\n"}
    for name, text in limits.items():
        (tmp_path / name).write_text(text)
        here = (str(tmp_path), name, "used", "cache")
        monkeypatch.setattr(cdm.runtime, "CGROUPS", ((str(tmp_path), "missing", "used", "cache"), here))
        assert total_memory(CPU) == (300_000_000 if name == "small" else machine)
