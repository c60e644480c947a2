"""The GPU kernels of the norm: on a GPU, or in Triton's interpreter on a CPU, which is slow, but the same program."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from tests.nn import test_cpu_norm
from tests.nn.test_cpu_norm import check_against_float64, truth
from tests.oracles import require

from cdm.nn import cpu_norm, gpu_norm, plain_norm
from cdm.nn.fused_norm import group_norm_act, modulated_norm_act

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the interpreter is chosen in tests/conftest.py


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    require("triton", "make install-oracles")
    monkeypatch.setattr(gpu_norm, "KINDS", (DEVICE,))
    monkeypatch.setattr(gpu_norm, "devices", lambda: (DEVICE,))
    monkeypatch.setattr(cpu_norm, "can_run", lambda *_: False)
    gpu_norm.works.cache_clear()
    yield
    gpu_norm.works.cache_clear()
    gpu_norm.given_up.clear()


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype, mean: float = 0.0) -> list[torch.Tensor]:
    return [t.to(DEVICE) for t in test_cpu_norm.make_inputs(shape, dtype, mean)]


# one tile; tails of groups, channels and pixels; many tiles in parts, the last one short; one group, one channel
SHAPES = [((3, 64, 8, 8), 16), ((2, 44, 5, 7), 11), ((2, 24, 41, 40), 6), ((1, 8, 129, 67), 2), ((1, 6, 1, 3), 1),
          ((5, 1, 4, 4), 1), ((1, 640, 9, 7), 32)]  # fmt: skip


@pytest.mark.parametrize("act", [True, False])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 3e-6), (torch.bfloat16, 0.006)])
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_they_are_group_norm_with_its_gradients(
    shape: tuple[int, ...], groups: int, dtype: torch.dtype, limit: float, act: bool, kernels: None
) -> None:
    """Against torch's operations in float64. Triton's interpreter cuts bfloat16 off at 2^-8."""
    inputs = make_inputs(shape, dtype)
    assert gpu_norm.can_run(*inputs, groups)
    check_against_float64(inputs, groups, act, limit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scaled", [True, False])
def test_scale_and_shift_inside_the_kernel_are_those_outside(scaled: bool, dtype: torch.dtype, kernels: None) -> None:
    x, more, _ = make_inputs((2, 24, 41, 40), dtype)
    weight, bias = (t[0].to(dtype) for t in make_inputs((1, 24, 1, 1), dtype)[1:])
    scale_shift = torch.cat([more, more.flip(1)], 1).to(dtype) if scaled else None
    called = []
    folded = gpu_norm.folded
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(gpu_norm, "folded", lambda *given: called.append(1) or folded(*given))
        inside = modulated_norm_act(x, weight, bias, scale_shift, 6, act=True)
        patch.setattr(gpu_norm, "devices", tuple)
        outside = modulated_norm_act(x.float(), weight, bias, scale_shift, 6, act=True)
    assert called == [1]
    assert (inside.float() - outside).norm() <= (1e-6 if dtype == torch.float32 else 0.006) * outside.norm()


def test_a_sample_is_the_same_in_any_batch(kernels: None) -> None:
    x, weight, bias = make_inputs((3, 24, 41, 40), torch.bfloat16)
    whole = group_norm_act(x, weight, bias, 6, act=True)
    for i in range(3):
        assert torch.equal(group_norm_act(x[i : i + 1], weight[i : i + 1], bias[i : i + 1], 6, act=True)[0], whole[i])


def test_a_mean_far_off_costs_no_precision(kernels: None) -> None:
    x, weight, bias = make_inputs((1, 8, 64, 65), torch.float32, mean=1000.0)
    want = truth(x.double(), weight.double(), bias.double(), 8, False)
    got = group_norm_act(x, weight, bias, 8, act=False)
    assert (got.double() - want).norm() <= 1e-3 * want.norm()


def test_tiles_of_other_means_are_put_together(kernels: None) -> None:
    """More tiles than parts, so each part looks at several; brightness rises down the image."""
    inputs = make_inputs((1, 8, 160, 140), torch.float32)
    inputs[0] += torch.linspace(-5, 5, 160, device=DEVICE)[:, None]
    call = gpu_norm._Call(inputs[0].permute(0, 2, 3, 1).flatten(1, 2), 2)
    assert call._looks == 2 and call._tiles == 2 * call._parts
    check_against_float64(inputs, 2, True, 3e-6)


def test_saturated_activations_stay_finite_and_what_is_not_stays_in_its_group(kernels: None) -> None:
    x = torch.full((1, 8, 4, 4), 7.0, device=DEVICE).to(memory_format=torch.channels_last).requires_grad_()
    bias = torch.tensor([[-1e30, -300.0, -90.0, -80.0, 80.0, 90.0, 300.0, 1e30]], device=DEVICE)
    weight = torch.ones_like(bias)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy, of the interpreter, on the way to infinity
        y = group_norm_act(x, weight, bias, 2, act=True)
        torch.testing.assert_close(y[0, :, 0, 0].detach(), F.silu(bias[0]), atol=1e-6, rtol=1e-6)
        assert torch.isfinite(torch.autograd.grad(y.sum(), x)[0]).all()
        x, weight, bias = make_inputs((2, 16, 41, 40), torch.float32)
        x[1, 5, 2, 2] = float("nan")
        y = group_norm_act(x, weight, bias, 4, act=True)
    assert torch.isnan(y[1, 5, 2, 2])
    assert torch.isfinite(y[0]).all() and torch.isfinite(y[1, :4]).all() and torch.isfinite(y[1, 8:]).all()


def spoil(name: str, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
    """The call fails, or gives twice the numbers."""
    right = getattr(gpu_norm, name)

    def wrong(*given: object) -> object:
        if error is not None:
            raise error
        result = right(*given)
        return tuple(2 * t for t in result) if isinstance(result, tuple) and name == "_backward" else 2 * result

    monkeypatch.setattr(gpu_norm, name, wrong)


def with_gradients(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    leaves = [t.clone().requires_grad_() for t in inputs]
    y = group_norm_act(*leaves, 4, act=True)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves)]


@pytest.mark.parametrize("name", ["_backward", "_folded"])
def test_wrong_kernels_are_said_once_and_left(name: str, kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs((2, 16, 8, 8), torch.float32)
    want = with_gradients(inputs)
    gpu_norm.works.cache_clear()
    spoil(name, monkeypatch)
    with pytest.warns(UserWarning, match="the GPU kernel of the norm is wrong as Triton builds it: going on without"):
        got = with_gradients(inputs)
    with_gradients(inputs)  # a second warning would be an error
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("late", [False, True], ids=["at first", "of a later shape"])
@pytest.mark.parametrize("name", ["_forward", "_backward", "_folded"])
def test_kernels_that_fail_are_said_once_and_left(
    name: str, late: bool, kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = make_inputs((2, 16, 8, 8), torch.float32)
    x, weight, bias = inputs
    want = with_gradients(inputs)
    assert gpu_norm.is_there(DEVICE)
    if not late:
        gpu_norm.works.cache_clear()
    spoil(name, monkeypatch, OSError("no room\nfatal: the disk is full\nsee above"))
    said = r"norm could not be built \(OSError: fatal: the disk is full\): going on without, which is slower"
    with pytest.warns(UserWarning, match=said):
        if name == "_folded":
            with torch.no_grad():
                got = [modulated_norm_act(x, weight[0], bias[0], None, 4, act=True)]
            want = [group_norm_act(x, weight[:1].expand(2, -1), bias[:1].expand(2, -1), 4, act=True)]
        else:
            got = with_gradients(inputs)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    with_gradients(inputs)  # a second warning would be an error
    assert not gpu_norm.is_there(DEVICE)


def test_a_missing_compiler_is_named() -> None:
    error = subprocess.CalledProcessError(1, ["gcc", "-I", "a" * 400])
    assert gpu_norm._told(error).startswith("the C compiler that Triton needs failed")
    assert gpu_norm._told(RuntimeError("")) == "RuntimeError: "
    assert len(gpu_norm._told(RuntimeError("x" * 999))) < 250


def test_memory_that_ran_out_says_nothing_of_the_kernels(kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    inputs = make_inputs((2, 16, 8, 8), torch.float32)
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(gpu_norm, "_forward", run_out)
        gpu_norm.can_run(*inputs, 4)
    assert gpu_norm.can_run(*inputs, 4)


def test_others_go_without(kernels: None) -> None:
    x, weight, bias = make_inputs((2, 16, 8, 8), torch.float32)
    assert gpu_norm.can_run(x, weight, bias, 4)
    for spoilt in (
        (x.double(), weight, bias, 4), (x, weight.double(), bias, 4), (x, weight[:, :8], bias, 4), (x, weight, bias, 3),
        (x, weight, bias, 0), (x[:0], weight[:0], bias[:0], 4), (x.to("meta"), weight, bias, 4),
    ):  # fmt: skip
        assert not gpu_norm.can_run(*spoilt)
    wide = gpu_norm.WIDEST + 1
    assert not gpu_norm.can_run(*make_inputs((1, wide, 1, 1), torch.float32), wide)
    assert not gpu_norm.can_fold(x, weight[0], bias[0], weight, 4)  # scale, but no shift
    assert not gpu_norm.can_fold(x, weight[0].double(), bias[0], None, 4)


def test_without_triton_torch_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_norm, "find_spec", lambda name: None)
    gpu_norm.devices.cache_clear()
    try:
        assert gpu_norm.devices() == ()
        assert not gpu_norm.can_run(*make_inputs((2, 16, 8, 8), torch.float32), 4)
    finally:
        gpu_norm.devices.cache_clear()


@pytest.mark.parametrize("module", [cpu_norm, plain_norm])
def test_the_check_sees_what_is_wrong(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    if module is cpu_norm and not cpu_norm.works():
        pytest.skip("no compiler: no kernel of the norm")
    assert plain_norm.agrees(module, torch.bfloat16, True, "cpu")
    right = module.backward
    wrong = ModuleType("wrong")
    wrong.forward = module.forward
    for spoilt in range(3):
        wrong.backward = lambda *given, s=spoilt: [2 * t if i == s else t for i, t in enumerate(right(*given))]
        assert not plain_norm.agrees(wrong, torch.bfloat16, True, "cpu")


def test_sums_are_float32_whatever_torch_makes_by_default(kernels: None) -> None:
    inputs = make_inputs((2, 24, 41, 40), torch.float32)
    want = group_norm_act(*inputs, 6, act=True)
    torch.set_default_dtype(torch.float16)
    try:
        assert torch.equal(group_norm_act(*inputs, 6, act=True), want)
    finally:
        torch.set_default_dtype(torch.float32)


def test_programs_stand_along_one_axis(kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA has room for 65,535 along any other; 1024 x 1024 pixels of 384 channels are 65,536 tiles."""
    from cdm.nn import gpu_norm_kernels

    grids = []

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            grids.append(grid)
            return lambda *_, **__: None

    for name in ("moments", "normalise", "sums", "gradient"):
        monkeypatch.setattr(gpu_norm_kernels, name, Kernel())
    pixels = torch.empty(1, 1, 1).expand(2, 1024 * 1024, 384)
    call = gpu_norm._Call(pixels, 32)
    for name in ("moments", "normalise", "sums", "gradient"):
        call(name, pixels)
    assert grids == [(2 * 16,), (2 * 65536,)] * 2


def test_a_compiler_takes_them_as_well(tmp_path: Path) -> None:
    """For a card that need not be there; what the interpreter runs, the compiler may refuse."""
    require("triton", "make install-oracles")
    script = Path(__file__).with_name("build_gpu_norm.py")
    settings = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    settings |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(gpu_norm.__file__).parents[2])}
    done = subprocess.run([sys.executable, script], env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built = [line.split() for line in done.stdout.splitlines()]
    in_parts, whole = ["moments", "normalise", "sums", "gradient", "moments", "normalise"], ["normalise", "gradient"]
    assert [name for name, _ in built] == [*in_parts, *whole, "normalise"] and all(
        int(size) > 1000 for _, size in built
    )
