"""The GPU kernels of the norm: on a GPU, or in Triton's interpreter on a CPU, which is slow, but the same program."""

import warnings
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from tests.nn import test_cpu_norm
from tests.nn.test_cpu_norm import truth
from tests.oracles import require

from cdm.nn import cpu_norm, gpu_norm, plain_norm
from cdm.nn.fused_norm import group_norm_act, modulated_norm_act

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the interpreter is chosen in tests/conftest.py


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    require("triton", "make install-oracles")
    monkeypatch.setattr(gpu_norm, "devices", lambda: (DEVICE,))
    monkeypatch.setattr(cpu_norm, "can_run", lambda *_: False)
    gpu_norm.works.cache_clear()
    yield
    gpu_norm.works.cache_clear()


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
    dy = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
    results = []
    for leaves, function in (([t.double() for t in inputs], truth), (inputs, group_norm_act)):
        leaves = [t.clone().requires_grad_() for t in leaves]
        y = function(*leaves, groups, act=act)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))])
    assert results[1][0].dtype == dtype
    assert results[1][0].is_contiguous(memory_format=torch.channels_last)
    for want, got in zip(*results, strict=True):
        assert (got.double() - want).norm() <= limit * want.norm() + 1e-6


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


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(lambda *_: 1 / 0, r"could not be built \(ZeroDivisionError: division by zero\)"),
     (lambda pixels, *_: (pixels + 1, ()), "is wrong as Triton builds it|could not be built")],
)  # fmt: skip
def test_kernels_that_fail_or_are_wrong_are_said_once_and_left(
    spoil: object, said: str, kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = make_inputs((2, 16, 8, 8), torch.float32)
    monkeypatch.setattr(gpu_norm, "forward", spoil)
    with pytest.warns(UserWarning, match=f"the GPU kernel of the norm ({said}).*: going on without"):
        got = group_norm_act(*inputs, 4, act=True)
    torch.testing.assert_close(got, truth(*inputs, 4, True), atol=1e-5, rtol=1e-5)
    group_norm_act(*inputs, 4, act=True)  # a second warning would be an error


def test_memory_that_ran_out_says_nothing_of_the_kernels(kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    inputs = make_inputs((2, 16, 8, 8), torch.float32)
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(gpu_norm, "forward", run_out)
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
