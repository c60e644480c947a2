"""On a GPU: the same numbers as on a CPU, updates and forward passes as recorded graphs, a run from end to end."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.fakes import random_cascade
from tests.fakes import stage_config as stage_config_of
from tests.train.tiny import Images, awake, make_stage, stage_config

import cdm.batching
from cdm.artifacts import load_tensors
from cdm.batching import bytes_per_image, free
from cdm.cascade import Cascade
from cdm.cli.main import main
from cdm.data.pixels import to_float, to_float_on
from cdm.denoiser import NetDenoiser
from cdm.rng import Purpose, Rng
from cdm.stage import Stage
from cdm.train.step import Trainee
from cdm.train.step_graph import StepGraph
from cdm.types import Batch, Cond

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
GPU = torch.device("cuda")
RNG = Rng(5)


def on_gpu(batch: Batch) -> Batch:
    return Batch(batch.x0.to(GPU), None if batch.labels is None else batch.labels.to(GPU), batch.index.to(GPU))


def batch(step: int, size: int = 8, nan: set[Any] | None = None) -> Batch:
    return on_gpu(Images(size, nan or set())(RNG, torch.arange(8 * step, 8 * step + 8)))


def stage(dtype: torch.dtype = torch.float32, **config: Any) -> Stage:
    return awake(make_stage(stage_config(**config))).to(GPU, dtype)


def test_random_numbers_are_those_of_a_cpu() -> None:
    index = torch.arange(100)
    for draw in (
        lambda i: RNG.bits(Purpose.TRAIN_NOISE, i, 33, 2),
        lambda i: RNG.uniform(Purpose.BLUR, i, (2,)),
        lambda i: RNG.normal(Purpose.TRAIN_NOISE, i, (3, 5, 5)),
    ):
        assert torch.equal(draw(index), draw(index.to(GPU)).cpu())


@pytest.mark.parametrize(("dtype", "window"), [(np.uint8, (0, 255)), (np.uint16, (1000, 41000)), (np.uint8, (3, 99))])
def test_intensities_are_those_of_a_cpu(dtype: type, window: tuple[int, int]) -> None:
    images = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (7, 3, 8, 8), endpoint=True).astype(dtype)
    assert torch.equal(to_float(images, window), to_float_on(GPU, images, window).cpu())


@pytest.mark.parametrize("config", [{}, {"size": 16, "low": 8}, {"optimizer": "muon", "dropout": 0.3}], ids=str)
def test_a_recorded_update_is_the_update(config: dict[str, Any]) -> None:
    """Weights, averages, moments and counters, a step that is not finite among them, at rates that change."""
    recorded, plain = (Trainee(stage(**config)) for _ in range(2))
    assert isinstance(recorded._run, StepGraph)
    plain._run = plain._compute
    size = recorded.stage.config.size
    for step in range(10):
        given = batch(step, size, {(0, 48)})  # the seventh, played from the recording
        for trainee in (recorded, plain):
            trainee.step(given, RNG, 1e-3 / (1 + step))
    assert recorded._run._graph is not None
    states, wanted = recorded.state(), plain.state()
    assert states[1] == wanted[1] and wanted[1]["skipped"] == 1
    for name, value in wanted[0].items():
        torch.testing.assert_close(states[0][name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert recorded.read_means() == pytest.approx(plain.read_means(), rel=1e-5)


def test_a_new_attempt_is_recorded_anew() -> None:
    recorded, plain = (Trainee(stage()) for _ in range(2))
    plain._run = plain._compute
    for step in range(12):
        rng = Rng(5, 0, step // 6)
        for trainee in (recorded, plain):
            trainee.step(batch(step), rng, 1e-3)
    for a, b in zip(recorded.params, plain.params, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_recorded_forward_pass_is_the_forward_pass() -> None:
    made = stage(size=16, low=8)
    made.net.eval().requires_grad_(False)
    denoiser = made.denoiser
    assert isinstance(denoiser, NetDenoiser)
    for step in range(8):
        b = 3 + step % 2  # two shapes take turns
        x = torch.randn(b, 1, 16, 16, device=GPU)
        cond = Cond(
            torch.randint(0, 3, (b,), device=GPU), torch.randn(b, 1, 16, 16, device=GPU), torch.randn(b, device=GPU)
        )
        logsnr = torch.randn(b, device=GPU)
        with torch.no_grad():
            before = denoiser.raw(x, logsnr, cond)[0]
            kept = before.clone()
            denoiser.raw(x + 1, logsnr, cond)
        assert torch.equal(before, kept)  # not written over
        wanted = denoiser.raw(x, logsnr, cond)[0]  # with autograd: kernel by kernel
        torch.testing.assert_close(before, wanted, rtol=1e-4, atol=1e-5)


def tower() -> Cascade:
    """Two stages of random weights on the GPU, 8 to 32 pixels."""
    made = random_cascade(stage_config_of(8), stage_config_of(32, 8))
    for each in made.stages:
        each.to(GPU, torch.float32)
    return Cascade(made.config, made.stages, GPU)


def on_a_gpu(cascade: Cascade) -> list[int]:
    """Stages with a weight there."""
    return [each.index for each in cascade.stages if any(p.device.type == "cuda" for p in each.net.parameters())]


def test_offloaded_stages_are_on_the_gpu_in_their_turn_only_and_change_no_image() -> None:
    usual = tower()
    request: dict[str, Any] = {"seeds": range(10), "steps": [4, 4], "batch_size": 4}
    wanted = usual.sample(**request).images
    for each in usual.stages:
        each.to("cpu", torch.float32)
    offloaded, there = Cascade(usual.config, usual.stages, GPU, offload=True), []
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    made = offloaded.sample(**request, progress=lambda stage, *_: there.append((stage, on_a_gpu(offloaded))))
    assert {(stage, tuple(here)) for stage, here in there} == {(0, (0,)), (1, (1,))}
    assert on_a_gpu(offloaded) == [] and all(images.device.type == "cpu" for images in made.images)
    assert torch.cuda.memory_allocated() <= before + 2**20  # tables of the random numbers stay
    for one, other in zip(wanted, made.images, strict=True):
        assert float((one.cpu() - other).abs().mean()) < 1e-3


def test_when_a_stage_is_left_its_recordings_are_freed_if_not_all_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    cascade = tower()
    request: dict[str, Any] = {"seeds": range(4), "steps": [4, 4], "batch_size": 4}

    def recordings() -> list[int]:
        cascade.sample(**request)
        return [len(each.denoiser._graphs._kept) for each in cascade.stages]

    assert recordings() == [1, 1]
    monkeypatch.setattr(cdm.batching, "total_memory", lambda device: 0)
    assert recordings() == [0, 0]


def test_when_a_gpu_runs_out_the_batch_is_halved_and_the_images_are_the_same() -> None:
    """Real: the allocator is given little more than 16 images need, and 2,048 are asked for at once."""
    cascade, said = tower(), []
    request: dict[str, Any] = {"seeds": range(2048), "steps": [4, 4]}
    torch.cuda.reset_peak_memory_stats()
    wanted = cascade.sample(**request, batch_size=16).images
    limit = torch.cuda.max_memory_reserved() + 64 * 2**20
    free([*cascade.stages], GPU)
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(GPU).total_memory)
    try:
        made = cascade.sample(**request, batch_size=2048, say=said.append)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 16 <= made.batch_size < 2048
    assert len(said) == 11 - made.batch_size.bit_length() + 1 and "2048 images at once in stage" in said[0]
    for one, other in zip(wanted, made.images, strict=True):
        assert float((one - other).abs().mean()) < 0.02


def test_the_batch_that_is_chosen_fits_and_takes_no_more_than_was_told() -> None:
    """Of the nets alone: two stages, 256 at once, kernel by kernel and recorded."""
    cascade = tower()
    size = cascade.auto_batch_size()
    assert size == 256
    free([*cascade.stages], GPU)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    cascade.sample(seeds=range(size), steps=[4, 4])
    told = size * sum(map(bytes_per_image, cascade.stages))
    assert torch.cuda.max_memory_allocated() - before < 2 * told + 2**28  # and what libraries take for themselves


def test_a_run_of_its_own_and_its_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Interrupted or not, a run ends with the same weights; its samples are those of a CPU but for rounding."""
    arguments = ["train", "builtin:letters", "--recipe", "demo", "--images", "3200", "--checkpoint-images", "640"]
    for name in ("whole", "parts"):
        command = [*arguments, "--out", str(tmp_path / name)]
        if name == "parts":  # one stage, then all
            assert main([*command, "--stage", "1"]) == 0
        assert main(command) == 0
    for name in ("0-16", "1-32"):
        whole, parts = (load_tensors(tmp_path / run / name / "model.safetensors")[0] for run in ("whole", "parts"))
        far = max(float((whole[key] - parts[key]).abs().max()) for key in whole)
        assert far < 1e-2, f"{name}: {far}"
    on = [Cascade.load(tmp_path / "whole", device=device, precision="fp32") for device in ("cuda", "cpu")]
    made = [each.sample(labels=torch.arange(26), seeds=list(range(26))).images for each in on]
    for images in zip(*made, strict=True):
        assert float((images[0].cpu() - images[1]).abs().mean()) < 0.02
