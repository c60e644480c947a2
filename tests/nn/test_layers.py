import math

import pytest
import torch
import torch.nn.functional as F

from cdm.nn import cpu_norm
from cdm.nn.fused_norm import group_norm_act
from cdm.nn.layers import Norm, attend, double, halve, sinusoids
from cdm.nn.plain_norm import bf16_statistics


def plain_norm(x, weight, bias, groups, act):
    """The same by torch's operations one after the other."""
    y = F.group_norm(x, groups) * weight[:, :, None, None].to(x.dtype) + bias[:, :, None, None].to(x.dtype)
    return F.silu(y) if act else y


def norm_inputs(dtype: torch.dtype, shape: tuple[int, ...] = (3, 12, 5, 4)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) + 5 * torch.randn(shape[1], 1, 1, generator=generator)
    weight, bias = 1 + torch.randn(2, *shape[:2], generator=generator)
    wide = torch.promote_types(dtype, torch.float32)
    return [x.to(dtype).to(memory_format=torch.channels_last), weight.to(wide), bias.to(wide)]


@pytest.mark.parametrize("act", [True, False])
@pytest.mark.parametrize("groups", [1, 3, 12])
def test_fused_norm_equals_plain_operations_with_gradients(groups: int, act: bool) -> None:
    inputs = [t.requires_grad_() for t in norm_inputs(torch.float64)]
    fused, plain = group_norm_act(*inputs, groups, act=act), plain_norm(*inputs, groups, act)
    torch.testing.assert_close(fused, plain, atol=1e-12, rtol=1e-10)
    dy = torch.randn(plain.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for a, b in zip(torch.autograd.grad(fused, inputs, dy), torch.autograd.grad(plain, inputs, dy), strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("has_kernel", [True, False])
@pytest.mark.parametrize("side", [16, 32])
def test_fused_norm_in_bfloat16_is_as_near_float32_as_torch(
    side: int, has_kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Channel means five times their deviation; both round at 2^-9 relative. Without a kernel of our own, statistics
    come from other kernels at each of the two sizes."""
    if not has_kernel:
        monkeypatch.setattr(cpu_norm, "can_run", lambda *_: False)
    low = norm_inputs(torch.bfloat16, (4, 32, side, side))
    exact = [low[0].float(), *low[1:]]
    results = []
    for inputs, f in ((exact, plain_norm), (low, plain_norm), (low, lambda *a: group_norm_act(*a[:4], act=a[4]))):
        leaves = [t.clone().requires_grad_() for t in inputs]
        out = f(*leaves, 8, True)
        out.backward(torch.ones_like(out) * torch.linspace(-1, 1, side, dtype=out.dtype))
        results.append([out.detach().float(), *(t.grad.float() for t in leaves)])
    for want, torchs, ours in zip(*results, strict=True):
        error, limit = (ours - want).norm(), (torchs - want).norm()
        assert error < max(2 * limit, 0.005 * want.norm())


@pytest.mark.parametrize("shape", [(2, 24, 5, 3), (2, 24, 40, 32)])
@pytest.mark.parametrize("groups", [1, 6, 24])
def test_bfloat16_statistics_hold_where_the_mean_is_far_off(shape: tuple[int, ...], groups: int) -> None:
    """Means of 30 deviations, where a pixel of bfloat16 is a tenth of a deviation off; sums of squares that are
    rounded to bfloat16 would leave nothing."""
    x = torch.tensor([30.0, -30.0]).repeat(shape[1] // 2).view(-1, 1, 1) + torch.randn(shape)
    x = x.bfloat16().to(memory_format=torch.channels_last)
    mean, rstd = bf16_statistics(x.permute(0, 2, 3, 1).flatten(1, 2), groups, 1e-5)
    values = x.double().reshape(shape[0], groups, -1)
    torch.testing.assert_close(mean[..., 0].double(), values.mean(2), atol=1e-3, rtol=1e-5)
    want = (values.var(2, correction=0) + 1e-5).rsqrt()
    torch.testing.assert_close(rstd[..., 0].double(), want, atol=0, rtol=5e-3)


@pytest.mark.parametrize("side", [8, 32])
@pytest.mark.parametrize("value", [0.3, 10.0, 1000.0])
def test_bfloat16_statistics_of_a_flat_image(side: int, value: float) -> None:
    """No variance: rounding must neither make it negative nor blow up."""
    x = torch.full((2, 32, side, side), value).bfloat16().to(memory_format=torch.channels_last)
    mean, rstd = bf16_statistics(x.permute(0, 2, 3, 1).flatten(1, 2), 8, 1e-5)
    torch.testing.assert_close(mean, x[:, :8, :1, 0].float(), atol=0, rtol=1e-6)
    assert torch.isfinite(rstd).all() and (0 < rstd).all() and (rstd <= 1.01 * 1e-5**-0.5).all()


@pytest.mark.parametrize("kind", ["group", "layer"])
def test_norm_applies_scale_and_shift_after_its_own(kind: str) -> None:
    torch.manual_seed(0)
    norm = Norm(kind, 16)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    x, scale_shift = torch.randn(3, 16, 4, 4), torch.randn(3, 32)
    scale, shift = scale_shift[:, :, None, None].chunk(2, dim=1)
    torch.testing.assert_close(
        norm(x, scale_shift), F.silu(norm(x, act=False) * (1 + scale) + shift), atol=1e-5, rtol=1e-5
    )


def test_layer_norm_is_over_channels_of_each_pixel() -> None:
    out = Norm("layer", 16)(3 + 7 * torch.randn(2, 16, 5, 5), act=False)
    torch.testing.assert_close(out.mean(dim=1), torch.zeros(2, 5, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(dim=1, correction=0), torch.ones(2, 5, 5), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("channels", "groups"), [(192, 32), (128, 32), (64, 16), (32, 8), (48, 12), (20, 5), (6, 1)])
def test_groups_divide_the_channels_and_have_four_or_more(channels: int, groups: int) -> None:
    assert Norm("group", channels).groups == groups


@pytest.mark.parametrize("pixels", [16, 512, 513])
def test_both_attention_kernels_are_softmax_attention(pixels: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, pixels, 8, dtype=torch.float64)
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) / math.sqrt(8)
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    torch.testing.assert_close(attend(q, k, v), torch.einsum("bhnm,bhmd->bhnd", weights, v))


def test_sinusoids() -> None:
    out = sinusoids(torch.tensor([0.0, 2.0]), 8)
    torch.testing.assert_close(out[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    frequencies = [1, 0.1, 0.01, 0.001]  # 10000^(-i / 4)
    expected = [math.cos(2 * f) for f in frequencies] + [math.sin(2 * f) for f in frequencies]
    torch.testing.assert_close(out[1], torch.tensor(expected))


def test_halving_undoes_doubling() -> None:
    x = torch.randn(2, 3, 4, 6)
    assert torch.equal(halve(double(x)), x)
