import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cdm.config import ConfigError, NetConfig
from cdm.errors import UserError
from cdm.nn.unet import UNet
from cdm.rng import Purpose, Rng

SMALL = NetConfig(
    image_size=16,
    in_channels=3,
    out_channels=3,
    width=8,
    multipliers=(1, 2, 2),
    num_blocks=1,
    attention=(8,),
    head_channels=4,
    dropout=0.2,
    num_labels=5,
)
SR = replace(SMALL, in_channels=6, has_aug_level=True)

# Configurations as in guided-diffusion's README: MODEL_FLAGS of the 64x64 model and of the 64 -> 256 upsampler.
ADM_64 = NetConfig(
    image_size=64,
    in_channels=3,
    out_channels=6,
    width=192,
    multipliers=(1, 2, 3, 4),
    num_blocks=3,
    attention=(32, 16, 8),
    head_channels=64,
    dropout=0.1,
    num_labels=1000,
)
ADM_UPSAMPLER = NetConfig(
    image_size=256,
    in_channels=6,
    out_channels=6,
    width=192,
    multipliers=(1, 1, 2, 2, 4, 4),
    num_blocks=2,
    attention=(32, 16, 8),
    num_heads=4,
    num_labels=1000,
)


def awake(config: NetConfig, seed: int = 0) -> UNet:
    """A net with nothing left at zero, so that every path matters."""
    torch.manual_seed(seed)
    net = UNet(config)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
    return net


def call(net: UNet, x: torch.Tensor, dropout=None, **change):
    b = len(x)
    told = {
        "noise_input": torch.linspace(-3, 3, b),
        "labels": torch.arange(b) % 5 if net.config.num_labels else None,
        "aug_input": torch.linspace(0, 5, b) if net.config.has_aug_level else None,
    }
    return net(x, **{**told, **change}, dropout=dropout)


def keyed_dropout(x: torch.Tensor, layer: int, p: float) -> torch.Tensor:
    """Masks as training draws them: a pure function of sample and layer."""
    u = Rng(1).uniform(Purpose.DROPOUT, torch.arange(len(x)), tuple(x.shape[1:]), step=layer)
    return x * (u >= p).to(x.dtype) / (1 - p)


@pytest.mark.parametrize(("name", "config"), [("adm64", ADM_64), ("adm_upsampler", ADM_UPSAMPLER)])
def test_matches_guided_diffusion_parameter_by_parameter(name: str, config: NetConfig) -> None:
    """The lists were made by building guided-diffusion's modules (commit 22e0df8) and printing names and shapes."""
    theirs = json.loads((Path(__file__).parent / f"{name}_shapes.json").read_text())
    with torch.device("meta"):
        ours = [(key, list(p.shape)) for key, p in UNet(config).named_parameters()]
    assert len(ours) == len(theirs)
    for (our_name, our_shape), (their_name, their_shape) in zip(ours, theirs, strict=True):
        pointwise = ".qkv." in their_name or ".proj_out." in their_name  # 1-D convolutions there, linear layers here
        expected = their_shape[:2] if pointwise else their_shape
        assert our_shape == expected, f"{our_name} is {our_shape}, {their_name} is {their_shape}"


@pytest.mark.parametrize(
    "config", [SMALL, SR, replace(SMALL, resample="strided"), replace(SR, norm="layer", patch=2, direct=True)]
)
def test_output_starts_at_exactly_zero(config: NetConfig) -> None:
    torch.manual_seed(0)
    net = UNet(config)
    out = call(net, torch.randn(3, config.in_channels, 16, 16))
    assert out.shape == (3, 3, 16, 16)
    assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize("config", [replace(SMALL, direct=True), replace(SR, direct=True, patch=2)])
def test_direct_path_is_a_sum_of_filters_with_gains_of_the_noise_level(config: NetConfig) -> None:
    """The rest of the net is silent at the start. x_t alone at first; then against a convolution written out."""
    torch.manual_seed(0)
    net = UNet(config)
    direct = net.direct
    assert direct is not None and isinstance(direct.filters, torch.nn.Conv2d)
    x, labels = torch.randn(3, config.in_channels, 16, 16), torch.tensor([1, 1, 1])
    levels = torch.tensor([100.0, -300.0, 100.0])
    aug = torch.tensor([5.0, 5.0, 5.0]) if config.has_aug_level else None
    with torch.no_grad():
        direct.gains.bias[:3] = 0.25
        torch.testing.assert_close(net(x, levels, labels, aug), 0.25 * x[:, :3])
        torch.nn.init.normal_(direct.filters.weight)
        torch.nn.init.normal_(direct.gains.weight)
        out = net(x, levels, labels, aug)
        embedding = net.embed_noise(levels) + net.embed_label(labels)  # type: ignore[misc]
        embedding = torch.nn.functional.silu(embedding + (0 if aug is None else net.embed_aug(aug)))  # type: ignore[misc]
        gains = direct.gains(embedding).view(3, 4, 3)
        kernels = direct.filters.weight.view(4, 3, config.in_channels, 5, 5)
    inner = torch.einsum("nkc,kciyx,niyx->nc", gains, kernels, x[:, :, 3:8, 6:11])
    torch.testing.assert_close(out[:, :, 5, 8], inner, rtol=1e-4, atol=1e-3)
    assert not torch.allclose(out[0] / x[0, :3], out[1] / x[1, :3])


def test_blocks_start_as_skips() -> None:
    """Zero-initialised ends: at the start the middle of the net is the identity."""
    torch.manual_seed(0)
    net = UNet(SMALL)
    x, embedding = torch.randn(2, 16, 4, 4), torch.randn(2, 32)
    for block in net.middle:
        assert torch.equal(block(x, embedding, None), x)


@pytest.mark.parametrize("resample", ["residual", "strided"])
@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_shapes(resample: str, norm: str, channels: int) -> None:
    config = replace(SR, in_channels=2 * channels, out_channels=2 * channels, resample=resample, norm=norm)
    out = call(awake(config), torch.randn(2, 2 * channels, 16, 16))
    assert out.shape == (2, 2 * channels, 16, 16)
    assert out.isfinite().all() and out.std() > 0


def test_crops() -> None:
    net = awake(SR)
    assert call(net, torch.randn(2, 6, 8, 12)).shape == (2, 3, 8, 12)
    with pytest.raises(UserError, match="sides divisible by 4"):
        call(net, torch.randn(2, 6, 6, 16))


def test_labels_matter_after_one_step() -> None:
    torch.manual_seed(0)
    net = UNet(SMALL)
    x = torch.randn(4, 3, 16, 16)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    other = torch.tensor([1, 2, 3, 4])
    assert torch.equal(call(net, x), call(net, x, labels=other))
    for _ in range(2):  # the first step moves only the last convolution
        optimizer.zero_grad()
        (call(net, x) - x).square().mean().backward()
        optimizer.step()
    assert not torch.allclose(call(net, x), call(net, x, labels=other))


def test_every_input_matters_per_sample() -> None:
    net = awake(SR)
    x = torch.randn(3, 6, 16, 16)
    base = call(net, x)
    for change in (
        {"noise_input": torch.tensor([-3.0, 1.0, 3.0])},
        {"aug_input": torch.tensor([0.0, 1.0, 5.0])},
        {"labels": torch.tensor([0, 3, 2])},
    ):
        moved = (call(net, x, **change) - base).abs().amax(dim=(1, 2, 3))
        assert moved[1] > 1e-3, change
        assert moved[0] < 1e-5 and moved[2] < 1e-5, change


def test_conditioning_that_the_net_lacks_or_needs_is_refused() -> None:
    x = torch.randn(1, 3, 16, 16)
    level = torch.zeros(1)
    with pytest.raises(UserError, match="needs labels"):
        UNet(SMALL)(x, level, None, None)
    with pytest.raises(UserError, match="does not take an augmentation level"):
        UNet(SMALL)(x, level, torch.zeros(1, dtype=torch.int64), level)
    with pytest.raises(ConfigError, match="heads"):
        UNet(replace(SMALL, num_heads=3))


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_checkpointing_gives_identical_gradients_with_dropout(norm: str) -> None:
    net = awake(replace(SR, norm=norm))
    x = torch.randn(4, 6, 16, 16)
    results = []
    for net.checkpointing in (False, True):
        net.zero_grad()
        out = call(net, x, keyed_dropout)
        out.square().mean().backward()
        results.append((out.detach(), [p.grad.clone() for p in net.parameters()]))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_dropout_is_asked_for_each_block_under_its_own_number() -> None:
    net = awake(SMALL)
    x = torch.randn(2, 3, 16, 16)
    layers: list[int] = []

    def spy(h: torch.Tensor, layer: int, p: float) -> torch.Tensor:
        layers.append(layer)
        assert p == 0.2
        return h

    assert torch.equal(call(net, x, spy), call(net, x))
    assert layers == list(range(len(layers))) and len(layers) == 3 + 2 + 2 + 6 + 2
    assert not torch.allclose(call(net, x, keyed_dropout), call(net, x))


def test_batch_rows_do_not_see_each_other() -> None:
    net = awake(SMALL)
    x = torch.randn(5, 3, 16, 16)
    level, labels = torch.linspace(-3, 3, 5), torch.arange(5)
    whole = net(x, level, labels, None)
    for i in range(5):
        alone = net(x[i : i + 1], level[i : i + 1], labels[i : i + 1], None)
        torch.testing.assert_close(alone[0], whole[i], atol=1e-5, rtol=1e-5)


def test_memory_format_does_not_change_the_output() -> None:
    net = awake(SMALL)
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(call(net, x), call(net, x.to(memory_format=torch.channels_last)))


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_bfloat16_autocast_is_near_float32(norm: str) -> None:
    """Some 200 roundings of 2^-9 that add up at random are 0.03; twice that is the limit, for output and gradient."""
    net = awake(replace(SMALL, norm=norm, width=16, dropout=0.0))
    x = torch.randn(4, 3, 16, 16)
    results = []
    for enabled in (False, True):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = call(net, x).float()
        (out - x).square().mean().backward()
        results.append((out.detach(), torch.cat([p.grad.flatten() for p in net.parameters()])))
    for exact, rounded in zip(*results, strict=True):
        assert (rounded - exact).norm() / exact.norm() < 0.06
