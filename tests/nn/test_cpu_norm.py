import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import TypeCheckError
from tests.nn.conftest import forget
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from cdm.nn import cpu_norm
from cdm.nn.fused_norm import group_norm_act

needs_kernel = pytest.mark.skipif(not cpu_norm.works(), reason="no compiler: no kernel of the norm")


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype, mean: float = 0.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) + mean * torch.randn(1, shape[1], 1, 1, generator=generator)
    weight, bias = torch.randn(2, *shape[:2], generator=generator)
    return [x.to(dtype).to(memory_format=torch.channels_last), weight, bias]


def truth(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, act: bool) -> torch.Tensor:
    y = F.group_norm(x, groups) * weight[:, :, None, None] + bias[:, :, None, None]
    return F.silu(y) if act else y


def check_against_float64(inputs: list[torch.Tensor], groups: int, act: bool, limit: float) -> None:
    """The norm and its three gradients."""
    x = inputs[0]
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.device, x.dtype)
    results = []
    for leaves, function in (([t.double() for t in inputs], truth), (inputs, group_norm_act)):
        leaves = [t.clone().requires_grad_() for t in leaves]
        y = function(*leaves, groups, act=act)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))])
    assert results[1][0].dtype == x.dtype
    assert results[1][0].is_contiguous(memory_format=torch.channels_last)
    for want, got in zip(*results, strict=True):
        assert (got.double() - want).norm() <= limit * want.norm() + 1e-6


@needs_kernel
@pytest.mark.parametrize("act", [True, False])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-6), (torch.bfloat16, 0.0035)])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((3, 64, 32, 32), 16), ((2, 44, 5, 7), 11), ((1, 6, 1, 3), 1), ((2, 3, 9, 1), 3), ((5, 1, 4, 4), 1),
     ((2, 640, 40, 3), 32)],
)  # fmt: skip
def test_the_kernel_is_group_norm_with_its_gradients(
    shape: tuple[int, ...], groups: int, dtype: torch.dtype, limit: float, act: bool
) -> None:
    """Against torch's operations in float64, on tails of channels and of pixels too. bfloat16 rounds at 2^-9."""
    inputs = make_inputs(shape, dtype)
    assert cpu_norm.can_run(*inputs, groups)
    check_against_float64(inputs, groups, act, limit)


def with_gradients(*inputs: torch.Tensor) -> list[torch.Tensor]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = group_norm_act(*leaves, 16, act=True)
    dy = torch.linspace(-1, 1, y.numel()).view(y.shape).sin().to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy[:1].expand(y.shape))]


@needs_kernel
def test_a_sample_is_the_same_in_any_batch_and_by_any_number_of_threads() -> None:
    inputs = make_inputs((5, 64, 32, 24), torch.bfloat16)
    inputs = [t[:1].repeat(5, *[1] * (t.ndim - 1)) * torch.arange(1, 6).view(5, *[1] * (t.ndim - 1)) for t in inputs]
    inputs[0] = inputs[0].to(memory_format=torch.channels_last)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = with_gradients(*inputs)
        torch.set_num_threads(3)
        for _ in range(5):
            assert all(torch.equal(a, b) for a, b in zip(with_gradients(*inputs), whole, strict=True))
    finally:
        torch.set_num_threads(threads)
    x, weight, bias = inputs
    for i in range(5):
        one = group_norm_act(x[i : i + 1], weight[i : i + 1], bias[i : i + 1], 16, act=True)
        assert torch.equal(one[0], whole[0][i])


@needs_kernel
def test_one_row_of_weights_may_serve_all_samples() -> None:
    x, weight, bias = make_inputs((4, 32, 8, 8), torch.float32)
    rows = [t[:1].expand(4, -1) for t in (weight, bias)]
    assert torch.equal(
        group_norm_act(x, *rows, 8, act=True), group_norm_act(x, *(t.contiguous() for t in rows), 8, act=True)
    )
    gaps = [torch.stack([t, t], dim=2)[:, :, 0] for t in (weight, bias)]
    assert torch.equal(group_norm_act(x, *gaps, 8, act=True), group_norm_act(x, weight, bias, 8, act=True))


def layouts(x: torch.Tensor) -> list[torch.Tensor]:
    """The same numbers laid out otherwise: channels first, a channel slice, a crop of every other pixel, negated."""
    b, c, h, w = x.shape
    wide, tall = x.new_zeros(b, c + 3, h, w), x.new_zeros(b, c, h + 2, 2 * w)
    wide, tall = (t.to(memory_format=torch.channels_last) for t in (wide, tall))
    wide[:, 2:-1], tall[:, :, 1:-1, ::2] = x, x
    return [x.contiguous(), wide[:, 2:-1], tall[:, :, 1:-1, ::2], torch._neg_view(-x)]


@pytest.mark.parametrize("has_kernel", [True, False])
@pytest.mark.parametrize("side", [8, 32])
def test_any_layout_will_do(side: int, has_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_kernel:
        monkeypatch.setattr(cpu_norm, "can_run", lambda *_: False)
    inputs = make_inputs((2, 16, side, side), torch.bfloat16)
    want = with_gradients(*inputs)
    for x in layouts(inputs[0]):
        got = with_gradients(x, *inputs[1:])
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)


@needs_kernel
@pytest.mark.parametrize(
    "spoil",
    [lambda x, w, b, g: (x, w[:, :8], b, g), lambda x, w, b, g: (x, w, b, 17), lambda x, w, b, g: (x, w, b, 3),
     lambda x, w, b, g: (x, w, b, 0), lambda x, w, b, g: (x, w, b.to("meta"), g)],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_torch(spoil: Callable[..., tuple]) -> None:
    *inputs, groups = spoil(*make_inputs((2, 16, 8, 8), torch.float32), 4)
    assert not cpu_norm.can_run(*inputs, groups)
    with pytest.raises((RuntimeError, ZeroDivisionError, TypeCheckError)):
        group_norm_act(*inputs, groups, act=True)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_of_other_dtypes_go_without(dtype: torch.dtype) -> None:
    x, weight, bias = make_inputs((2, 16, 8, 8), torch.float32)
    assert not cpu_norm.can_run(x, weight, bias.to(dtype), 4)
    assert not cpu_norm.can_run(x, weight.to(dtype), bias, 4)


@needs_kernel
@pytest.mark.parametrize(("dtype", "mean", "limit"), [(torch.float32, 1000.0, 1e-3), (torch.bfloat16, 30.0, 5e-3)])
def test_statistics_hold_where_the_mean_is_far_off(dtype: torch.dtype, mean: float, limit: float) -> None:
    """By one group for each channel, so that no difference between channels hides what is lost."""
    x, weight, bias = make_inputs((2, 32, 24, 24), dtype, mean)
    want = truth(x.double(), weight.double(), bias.double(), 32, False)
    got = group_norm_act(x, weight, bias, 32, act=False)
    assert (got.double() - want).norm() <= limit * want.norm()


@needs_kernel
def test_flat_images_and_saturated_activations_stay_finite() -> None:
    x = torch.full((1, 8, 4, 4), 7.0).to(memory_format=torch.channels_last).requires_grad_()
    weight, bias = torch.ones(1, 8), torch.tensor([[-1e30, -300.0, -90.0, -80.0, 80.0, 90.0, 300.0, 1e30]])
    y = group_norm_act(x, weight, bias, 2, act=True)
    torch.testing.assert_close(y[0, :, 0, 0].detach(), F.silu(bias[0]), atol=1e-6, rtol=1e-6)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.isfinite(dx).all()


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so_in_its_group(bad: float, dtype: torch.dtype) -> None:
    x, weight, bias = make_inputs((2, 16, 4, 4), dtype)
    x[1, 5, 2, 2] = bad
    y = group_norm_act(x, weight, bias, 4, act=True)
    assert torch.isnan(y[1, 5, 2, 2])
    assert torch.isfinite(y[0]).all() and torch.isfinite(y[1, :4]).all() and torch.isfinite(y[1, 8:]).all()


def test_fake_and_foreign_tensors_go_without() -> None:
    x, weight, bias = make_inputs((2, 16, 4, 4), torch.float32)
    assert not cpu_norm.can_run(x.double(), weight.double(), bias.double(), 4)
    assert not cpu_norm.can_run(x.to("meta"), weight.to("meta"), bias.to("meta"), 4)
    assert not cpu_norm.can_run(x[:0], weight[:0], bias[:0], 4)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(t) for t in (x, weight, bias)]
        assert group_norm_act(*fakes, 4, act=True).shape == x.shape
        assert group_norm_act(x, weight, bias, 4, act=True).shape == x.shape


@needs_kernel
def test_what_records_operations_records_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = make_inputs((2, 16, 4, 4), torch.float32), make_inputs((2, 16, 4, 4), torch.float32, mean=2.0)

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        return group_norm_act(*inputs, 4, act=True)

    want = run(*second)
    torch.testing.assert_close(make_fx(run)(*first)(*second), want, atol=1e-5, rtol=1e-5)
    for module, name in ((torch.jit, "is_tracing"), (torch.compiler, "is_compiling")):
        assert cpu_norm.can_run(*first, 4)
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda: True)
            assert not cpu_norm.can_run(*first, 4)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-15, 1e-3, 1e17])
def test_any_scale_is_normalised(scale: float, dtype: torch.dtype) -> None:
    """The smallest drown in epsilon, the largest have squares near the end of float32."""
    x, weight, bias = make_inputs((2, 16, 24, 24), dtype)
    want = truth((scale * x).double(), weight.double(), bias.double(), 4, False)
    got = group_norm_act(scale * x, weight, bias, 4, act=False)
    assert (got.double() - want).norm() <= (1e-5 if dtype == torch.float32 else 0.0035) * want.norm()


@needs_kernel
def test_one_pixel_far_off_costs_no_precision() -> None:
    x = 0.01 * torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    x[:, :, 0, 0] = 1000
    weight, bias = torch.ones(1, 4), torch.zeros(1, 4)
    want = truth(x.double(), weight.double(), bias.double(), 4, False)
    got = group_norm_act(x.to(memory_format=torch.channels_last), weight, bias, 4, act=False)
    assert (got.double() - want).norm() <= 1e-5 * want.norm()


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_silu_and_its_slope_wherever_the_norm_ends_up(dtype: torch.dtype) -> None:
    """From where nothing comes through to where everything does, and far beyond, each value of its own."""
    far = [1e4, -1e4, 1e30, -1e30] + [3e38, -3e38] * (dtype == torch.bfloat16)
    z = torch.cat([torch.linspace(-60, 60, 4800), torch.tensor(far).repeat(16)])
    x = torch.tensor([1.0, -1.0]).expand(1, len(z), 1, 2).to(dtype).to(memory_format=torch.channels_last)
    weight, bias = z[None].clone().requires_grad_(), torch.zeros(1, len(z), requires_grad=True)
    y = group_norm_act(x, weight, bias, len(z), act=True, eps=0.0)
    (slope,) = torch.autograd.grad(y[..., 0].sum(), bias)
    wide = z.double().requires_grad_()
    want = F.silu(wide)
    (want_slope,) = torch.autograd.grad(want.sum(), wide)
    rounding = 2e-4 + (2**-8 if dtype == torch.bfloat16 else 0)
    torch.testing.assert_close(y[0, :, 0, 0].double(), want.detach(), rtol=rounding, atol=1e-7)
    torch.testing.assert_close(slope[0].double(), want_slope, rtol=rounding, atol=1e-5)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


@needs_kernel
def test_the_first_call_may_be_anywhere(unbuilt: Path) -> None:
    """The check of the kernel leaves no trace in what is recorded around it, and takes no defaults from there."""
    inputs = [t.requires_grad_() for t in make_inputs((2, 16, 8, 8), torch.float32)]
    y = checkpoint(lambda *t: group_norm_act(*t, 4, act=True), *inputs, use_reentrant=False)
    y.sum().backward()
    for context in (torch.inference_mode(), default_dtype(torch.bfloat16), default_dtype(torch.float64)):
        cpu_norm.works.cache_clear()
        with context:
            assert cpu_norm.works()
            torch.testing.assert_close(group_norm_act(*inputs, 4, act=True), y)
    cpu_norm.works.cache_clear()
    with torch.device("meta"):
        assert cpu_norm.works()


@pytest.mark.parametrize("compiler", ["none", "/no/such/c++ -O1"])
def test_without_a_compiler_nothing_is_said(unbuilt: Path, monkeypatch: pytest.MonkeyPatch, compiler: str) -> None:
    monkeypatch.setenv("CXX", compiler)
    inputs = make_inputs((2, 16, 4, 4), torch.float32)
    want = truth(*inputs, 4, True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(group_norm_act(*inputs, 4, act=True), want, atol=1e-5, rtol=1e-5)
    assert not cpu_norm.works()


def test_a_compiler_that_fails_is_told_once(unbuilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_compiler(unbuilt, monkeypatch, "echo 'error: no space left' >&2; echo stopped >&2; exit 1")
    inputs = make_inputs((2, 16, 4, 4), torch.float32)
    with pytest.warns(UserWarning, match=r"could not be built or loaded \(error: no space left\): going on") as told:
        group_norm_act(*inputs, 4, act=True)
        group_norm_act(*inputs, 4, act=True)
    assert len(told) == 1


def fake_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    compiler = folder / "compiler"
    compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0\n{body}\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))


@pytest.mark.parametrize(
    ("body", "told"),
    [("exit 1", "exit status 1"), ("echo >&2; exit 1", "CalledProcessError"), ("exit 0", "No such file"),
     (r"printf '\377 error\n' >&2; exit 1", "error")],
)  # fmt: skip
def test_odd_compilers_are_told(unbuilt: Path, monkeypatch: pytest.MonkeyPatch, body: str, told: str) -> None:
    fake_compiler(unbuilt, monkeypatch, body)
    with pytest.warns(UserWarning, match=told):
        assert not cpu_norm.works()


@pytest.mark.parametrize("compiler", ['"', " "])
def test_odd_names_of_compilers_end_nothing(unbuilt: Path, monkeypatch: pytest.MonkeyPatch, compiler: str) -> None:
    monkeypatch.setenv("CXX", compiler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cpu_norm.works()


@needs_kernel
@pytest.mark.parametrize(
    ("right", "wrong"),
    [("uint32_t(bits) << 16", "uint32_t(bits) << 17"), ("z * sigmoid(z) : z;", "z * sigmoid(z) : 0;"),
     ("return k * chunk;", "return 0;")],
)  # fmt: skip
def test_a_kernel_that_is_wrong_is_not_used(
    unbuilt: Path, monkeypatch: pytest.MonkeyPatch, right: str, wrong: str
) -> None:
    source = unbuilt / "cpu_norm.cpp"
    text = cpu_norm.SOURCE.read_text()
    assert right in text
    source.write_text(text.replace(right, wrong))
    monkeypatch.setattr(cpu_norm, "SOURCE", source)
    with pytest.warns(UserWarning, match="is wrong as this compiler builds it"):
        assert not cpu_norm.works()
    assert not cpu_norm.can_run(*make_inputs((2, 16, 4, 4), torch.float32), 4)


@needs_kernel
def test_it_is_built_once(unbuilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu_norm.works()
    (built,) = (unbuilt / "kernels").iterdir()
    cpu_norm.kernel.cache_clear()
    commands = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **more: (commands.append(command), run(command, **more))[1])
    assert cpu_norm.kernel() is not None
    assert [command[1:] for command in commands] == [("--version",)]
    assert list((unbuilt / "kernels").iterdir()) == [built]


@needs_kernel
@pytest.mark.parametrize("length", [0, 20000])
def test_a_damaged_file_is_built_anew(unbuilt: Path, length: int) -> None:
    assert cpu_norm.works()
    (built,) = (unbuilt / "kernels").iterdir()
    whole = built.read_bytes()
    built.unlink()  # the process still has it
    built.write_bytes(whole[:length])
    forget()
    assert cpu_norm.works()
    assert [path.stat().st_size > length for path in (unbuilt / "kernels").iterdir()] == [True]


@needs_kernel
def test_other_arguments_of_the_compiler_are_another_file(unbuilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for compiler in ("c++", "c++ -O1"):
        monkeypatch.setenv("CXX", compiler)
        cpu_norm.kernel.cache_clear()
        assert cpu_norm.kernel() is not None
    assert len(list((unbuilt / "kernels").iterdir())) == 2
