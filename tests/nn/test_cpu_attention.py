"""The CPU kernel of attention is softmax attention, and is used where it can be."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cdm.nn import cpu_attention
from cdm.nn.layers import Attention

needs_kernel = pytest.mark.skipif(not cpu_attention.works(), reason="no compiler or no AVX512-BF16: no kernel")


def make_qkv(b: int, n: int, heads: int, d: int, scale: float = 2.0) -> torch.Tensor:
    return (scale * torch.randn(b, n, 3 * heads * d, generator=torch.Generator().manual_seed(n))).bfloat16()


def truth(qkv: torch.Tensor, heads: int) -> torch.Tensor:
    b, n, c = qkv.shape
    q, k, v = qkv.double().view(b, n, 3, heads, -1).permute(2, 0, 3, 1, 4)
    weights = torch.softmax(q @ k.transpose(2, 3) / (c // 3 // heads) ** 0.5, 3)
    return (weights @ v).transpose(1, 2).reshape(b, n, c // 3)


@needs_kernel
@pytest.mark.parametrize(
    ("b", "n", "heads", "d"), [(2, 16, 1, 16), (3, 64, 2, 32), (1, 256, 3, 64), (2, 144, 1, 80), (1, 1040, 1, 128)]
)
@torch.no_grad()
def test_the_kernel_is_softmax_attention(b: int, n: int, heads: int, d: int) -> None:
    """Within what bfloat16 rounds at the end, and the weights before."""
    qkv = make_qkv(b, n, heads, d)
    assert cpu_attention.can_run(qkv, heads)
    want = truth(qkv, heads)
    assert (cpu_attention.attend(qkv, heads).double() - want).norm() <= 0.0035 * want.norm()


@needs_kernel
@torch.no_grad()
def test_an_image_depends_neither_on_its_batch_nor_on_threads() -> None:
    qkv, threads = make_qkv(5, 80, 2, 32), torch.get_num_threads()
    whole = cpu_attention.attend(qkv, 2)
    for i in range(5):
        assert torch.equal(cpu_attention.attend(qkv[i : i + 1], 2)[0], whole[i])
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(cpu_attention.attend(qkv, 2), whole)
    finally:
        torch.set_num_threads(threads)


@needs_kernel
@torch.no_grad()
def test_any_layout_will_do() -> None:
    qkv = make_qkv(2, 32, 2, 16)
    want = cpu_attention.attend(qkv, 2)
    for other in (
        qkv.transpose(1, 2).contiguous().transpose(1, 2),
        torch._neg_view(-qkv),
        qkv.repeat(1, 1, 2)[..., :96],
    ):
        assert torch.equal(cpu_attention.attend(other, 2), want)


@needs_kernel
@torch.no_grad()
def test_scores_of_any_size_and_what_is_not_finite() -> None:
    """Far apart, the largest takes all; NaN stays in its head."""
    qkv = make_qkv(1, 32, 2, 16, scale=200.0)
    want = truth(qkv, 2)
    torch.testing.assert_close(
        cpu_attention.attend(qkv, 2).double(), want, rtol=0.01, atol=0.01 * want.abs().max().item()
    )
    same = torch.ones_like(qkv)
    assert torch.equal(cpu_attention.attend(same, 2), torch.ones(1, 32, 32).bfloat16())
    huge = make_qkv(2, 48, 2, 48)  # by a scale that is no power of two
    huge[..., :192] *= 1e5
    torch.testing.assert_close(cpu_attention.attend(huge, 2).double(), truth(huge, 2), rtol=0.01, atol=0.05)
    qkv[0, 3, 0] = float("nan")  # of the first head's queries
    y = cpu_attention.attend(qkv, 2)
    assert torch.isnan(y[0, 3, :16]).all() and torch.isfinite(y[0, :, 16:]).all() and torch.isfinite(y[0, :3]).all()


@needs_kernel
def test_where_torch_attends() -> None:
    """With gradients, in other precisions, for odd sizes, and where operations are counted."""
    qkv = make_qkv(1, 32, 2, 16)
    assert not cpu_attention.can_run(qkv, 2)  # gradients are on
    with torch.no_grad():
        assert cpu_attention.can_run(qkv, 2)
        for other in (qkv.float(), qkv[:, :31], qkv[:0], qkv.to("meta")):
            assert not cpu_attention.can_run(other, 2)
        assert not cpu_attention.can_run(qkv, 4)  # of 8 channels each
        with FlopCounterMode(display=False):
            assert not cpu_attention.can_run(qkv, 2)


@needs_kernel
def test_the_layer_is_the_same_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = Attention(64, 2, "group").bfloat16()
    torch.nn.init.normal_(layer.out.weight, std=0.1)
    x = torch.randn(3, 64, 8, 8).bfloat16().to(memory_format=torch.channels_last)
    trained = layer(x).detach()
    with torch.no_grad():
        sampled = layer(x)
        monkeypatch.setattr(cpu_attention, "can_run", lambda *_: False)
        for other in (trained, layer(x)):
            torch.testing.assert_close(sampled, other, rtol=0.02, atol=0.02)
        assert not torch.equal(sampled, layer(x))  # it was the kernel


@torch.no_grad()
def test_without_a_compiler_nothing_is_said(unbuilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "none")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not cpu_attention.can_run(make_qkv(1, 32, 2, 16), 2)
    assert not cpu_attention.works()


@torch.no_grad()
def test_without_the_instructions_nothing_is_built(unbuilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "cpu_flags", lambda: "flags : avx2 avx512f")
    assert not cpu_attention.works()
    assert not list(unbuilt.iterdir())


@needs_kernel
@pytest.mark.parametrize(
    ("right", "wrong"),
    [("<< 16", "<< 17"), ("1 / totals[r]", "1.1f / totals[r]"), ("j * pixel + 2 * i", "j * pixel"),
     ("j < width; j += LANES", "false; j += LANES")],
)  # fmt: skip
def test_a_kernel_that_is_wrong_is_not_used(
    unbuilt: Path, monkeypatch: pytest.MonkeyPatch, right: str, wrong: str
) -> None:
    source = unbuilt / "cpu_attention.cpp"
    text = cpu_attention.SOURCE.read_text()
    assert text.count(right) == 1
    source.write_text(text.replace(right, wrong))
    monkeypatch.setattr(cpu_attention, "SOURCE", source)
    with pytest.warns(UserWarning, match="kernel of the attention is wrong as this compiler builds it"):
        assert not cpu_attention.works()
