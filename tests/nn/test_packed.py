"""Packed layers compute what torch's do, see every change of their weights, and step aside where they must."""

from __future__ import annotations

import copy
import warnings
from typing import TypeVar

import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from cdm.nn import packed
from cdm.nn.packed import Conv2d, Linear

needs_packing = pytest.mark.skipif(not packed.works(), reason="torch is built without oneDNN")


def conv(channels: int, out: int, kernel: int = 3, stride: int = 1) -> Conv2d:
    torch.manual_seed(channels)
    return frozen(Conv2d(channels, out, kernel, stride, padding=kernel // 2).bfloat16())


Kind = TypeVar("Kind", Conv2d, Linear)


def frozen(layer: Kind) -> Kind:
    layer.requires_grad_(False).freeze()
    return layer


def image(*shape: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).bfloat16().to(memory_format=torch.channels_last)


def by_torch(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    kind = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
    return kind.forward(layer, x)  # type: ignore[arg-type]


@needs_packing
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (1, 1), (3, 2)])
@pytest.mark.parametrize(("channels", "out"), [(3, 32), (32, 64), (100, 36), (192, 3)])
@torch.no_grad()
def test_a_packed_convolution_is_torchs(channels: int, out: int, kernel: int, stride: int) -> None:
    """To the last bit, also of other shapes than it was packed for."""
    layer = conv(channels, out, kernel, stride)
    for shape in ((4, 16, 16), (1, 4, 4), (7, 8, 8), (3, 33, 5)):
        x = image(shape[0], channels, *shape[1:])
        assert layer.packed(x) is not None
        y = layer(x)
        assert torch.equal(y, by_torch(layer, x))
        assert y.is_contiguous(memory_format=torch.channels_last)


@needs_packing
@torch.no_grad()
def test_a_packed_linear_layer_is_torchs() -> None:
    layer = frozen(Linear(48, 100).bfloat16())
    for shape in ((16, 48), (1, 48), (2, 64, 48), (2, 3, 5, 48)):
        x = torch.randn(shape).bfloat16()
        assert layer.packed(x) is not None
        assert torch.equal(layer(x), by_torch(layer, x))


@needs_packing
@torch.no_grad()
def test_a_sum_after_a_layer_is_rounded_once() -> None:
    layer, linear = conv(32, 64), frozen(Linear(32, 64).bfloat16())
    x, other = image(3, 32, 8, 8), image(3, 64, 8, 8, seed=2)
    pixels, rest = (t.permute(0, 2, 3, 1).flatten(1, 2) for t in (x, other))
    for each, given, added in ((layer, x, other), (linear, pixels, rest)):
        want = by_torch(copy.deepcopy(each).double(), given.double()) + added.double()
        half_a_step = 1.001 * 2**-8 * want.abs() + 1e-5
        assert torch.equal(added, rest if added is rest else image(3, 64, 8, 8, seed=2))  # not written to
        assert ((each.plus(given, added).double() - want).abs() <= half_a_step).all()
        assert ((added + each(given)).double() - want).abs().gt(half_a_step).any()  # twice


@needs_packing
@torch.no_grad()
def test_written_moved_and_copied_weights_are_packed_anew() -> None:
    layer, x = conv(16, 16), image(2, 16, 8, 8)
    first = layer(x)
    layer.weight.mul_(2)
    layer.bias.zero_()  # type: ignore[union-attr]
    assert torch.equal(layer(x), by_torch(layer, x)) and not torch.equal(layer(x), first)
    other = conv(17, 16)
    other.load_state_dict({"weight": torch.randn(16, 17, 3, 3).bfloat16(), "bias": torch.zeros(16).bfloat16()})
    assert torch.equal(other(image(2, 17, 8, 8)), by_torch(other, image(2, 17, 8, 8)))
    layer.load_state_dict({name: 2 * t for name, t in layer.state_dict().items()}, assign=True)
    assert torch.equal(layer(x), by_torch(layer, x))
    layer.load_state_dict({name: t / 4 for name, t in layer.state_dict().items()}, assign=True)
    assert torch.equal(layer(x), by_torch(layer, x))
    layer.weight = nn.Parameter(3 * layer.weight, requires_grad=False)
    assert torch.equal(layer(x), by_torch(layer, x))
    for factor in (1, 2):
        swapped = {"weight": factor * layer.weight, "bias": layer.bias}
        assert torch.equal(functional_call(layer, swapped, x), by_torch(layer, x) * factor)  # bias is 0
    layer.bias.data = layer.bias.float()  # type: ignore[union-attr]
    assert layer.packed(x) is None
    layer.to(torch.float32).to(torch.bfloat16)
    assert layer._packed is None
    layer(x)
    twin = copy.deepcopy(layer)
    twin.weight.mul_(3)
    assert torch.equal(twin(x), by_torch(twin, x)) and torch.equal(layer(x), by_torch(layer, x))
    assert list(layer.state_dict()) == ["weight", "bias"] and layer.state_dict()._metadata[""]["version"] == 1
    layer.train()
    assert layer.packed(x) is None


@needs_packing
def test_in_inference_mode() -> None:
    layer = conv(16, 16)
    with torch.inference_mode():
        x = image(2, 16, 8, 8)
        assert layer.packed(x) is not None and torch.equal(layer(x), by_torch(layer, x))
        other = conv(17, 16)
        assert other.packed(image(2, 17, 8, 8)) is None  # nobody counts what is written to it
    with torch.no_grad():
        assert torch.equal(layer(image(2, 16, 8, 8)), by_torch(layer, x))


@needs_packing
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # in torch's own jvp
def test_where_a_layer_is_torchs() -> None:
    """With gradients, in other precisions, for nothing at all, and where operations are counted or recorded."""
    layer, x = conv(16, 16), image(2, 16, 8, 8)
    assert layer.packed(x) is None  # gradients are on
    with torch.no_grad():
        assert layer.packed(x) is not None
        assert layer(x[:0]).shape == (0, 16, 8, 8)
        with FlopCounterMode(display=False) as counter:
            layer(x)
        assert counter.get_total_flops() == 2 * 2 * 64 * 16 * 16 * 9
        recorded = make_fx(lambda x: layer.plus(x, x))(x)
        torch.testing.assert_close(recorded(2 * x), 2 * x + layer(2 * x))
        assert copy.deepcopy(layer).to("meta")(x.to("meta")).shape == x.shape
        assert conv(16, 16).float().packed(x.float()) is None
        assert Conv2d(16, 16, 3).bfloat16().packed(x) is None  # not frozen
        assert torch.equal(vmap(layer)(x[:, None])[:, 0], by_torch(layer, x))
        _, slope = jvp(layer, (x,), (x,))
        torch.testing.assert_close(slope, by_torch(layer, x) - layer.bias.view(-1, 1, 1), atol=0.02, rtol=0.02)
        for wrong in (x[0, :, :, 0], x[:, :8], x.float(), x.int()):
            assert layer.packed(wrong) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x.float()).dtype == torch.bfloat16 and layer.packed(x.float()) is not None
        with torch.autocast("cpu", torch.float16):
            assert layer.packed(x) is None
        for odd in (Conv2d(16, 16, 3, padding="same"), Conv2d(16, 16, 3, padding=1, padding_mode="circular")):
            odd = frozen(odd.bfloat16())
            assert odd.packed(x) is None and torch.equal(odd(x), by_torch(odd, x))
    trained, x = conv(16, 16).requires_grad_(), image(2, 16, 8, 8)
    trained.plus(x, x).float().sum().backward()
    assert trained.weight.grad is not None


@needs_packing
@torch.no_grad()
def test_sums_broadcast_and_hooks_are_called_as_torch_does() -> None:
    layer, x, called = conv(16, 16), image(2, 16, 8, 8), []
    linear = frozen(Linear(16, 24).bfloat16())
    for other in (image(1, 16, 8, 8), image(1, 16, 1, 1), torch.tensor(2.0), image(4, 16, 8, 8)[::2]):
        torch.testing.assert_close(layer.plus(x, other), other + layer(x), atol=0.02, rtol=0.02)
    torch.testing.assert_close(linear.plus(x[:, :, 0].mT, torch.ones(24).bfloat16()), 1.0 + linear(x[:, :, 0].mT))
    layer.register_forward_hook(lambda *_: called.append(1))
    layer.plus(x, x)
    assert called


@needs_packing
@torch.no_grad()
def test_another_size_is_packed_for_anew() -> None:
    layer = conv(16, 16)
    kept = [layer.packed(image(b, 16, side, side)) for b, side in ((4, 8), (2, 8), (1, 4))]
    assert kept[0] is kept[1] and kept[1] is not kept[2]


@torch.no_grad()
def test_without_onednn_layers_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        pass

    monkeypatch.setattr(packed, "ops", Nothing())
    packed.works.cache_clear()
    try:
        assert not packed.works()
        layer, x = conv(16, 16), image(2, 16, 8, 8)
        assert torch.equal(layer.plus(x, x), x + by_torch(layer, x))
    finally:
        packed.works.cache_clear()


def test_the_check_draws_no_randomness() -> None:
    before = torch.get_rng_state()
    packed.works.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        packed.works()
    assert torch.equal(torch.get_rng_state(), before)
