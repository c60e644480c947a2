"""The benchmark against peers: the nets are the same, and the timing runs. Its figures are made by hand."""

import json
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks.throughput import by_flops, check_same, compared
from peers import bounds, diffusers_unet, guided_diffusion, roster
from peers.cases import CASES, Case
from peers.ours import net_config
from peers.timing import counted, parameters
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import throughput
from cdm.nn.layers import Attention
from cdm.nn.unet import UNet

TINY = Case("tiny", 16, 2, 32, (1, 2), 1, (8,), head_channels=32)

diffusers = pytest.importorskip("diffusers", reason="diffusers is only an oracle: install the extra [dev]")


@pytest.mark.parametrize("case", [TINY, replace(TINY, residual=True), *CASES[:2]], ids=lambda case: case.name)
def test_diffusers_weights_in_our_net_give_its_outputs(case: Case) -> None:
    same = check_same(case, diffusers_unet.build(case), diffusers_unet.copy_into)
    assert same["output_difference"] < 2e-6 and same["flops"] == same["peer_flops"]


def test_another_network_is_told() -> None:
    peer = diffusers_unet.build(TINY)

    def copy_wrongly(ours: torch.nn.Module, peer: torch.nn.Module) -> None:
        diffusers_unet.copy_into(ours, peer)
        with torch.no_grad():
            ours.last.weight *= 1.01  # type: ignore[union-attr]

    with pytest.raises(AssertionError, match="outputs differ"):
        check_same(TINY, peer, copy_wrongly)


def measure(tmp_path: Path, *more: str) -> dict[str, Any]:
    out = tmp_path / "throughput.json"
    throughput.main([*"--cases tiny --rounds 2 --seconds 0.01 --device cpu --out".split(), str(out), *more])
    return json.loads(out.read_text())["cases"]["tiny"]


@pytest.fixture(autouse=True)
def tiny_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "CASES", (TINY,))


@pytest.fixture(autouse=True)
def small_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "SIDES", {"cpu": 128})


def test_it_times_all_in_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = measure(tmp_path)
    assert case["same"].keys() == {"diffusers"}
    for what, count in (("train", 2), ("forward", 3)):  # weights cast once: forward only
        rates = case[what]["images_per_s"]
        assert all(0 < each["min"] <= each["median"] <= each["max"] for each in rates.values())
        assert len(rates) == count + 1 and len(case[what]["ratio"]) == count
        for bound in ("matmul_peak", "convolutions_alone"):
            share = case[what][f"share_of_{bound}"]
            assert 0 < share["min"] <= share["median"] <= share["max"]
    assert "guided-diffusion is skipped: no --peer" in capsys.readouterr().out


def test_layers_alone_do_all_of_the_arithmetic_but_attention() -> None:
    alone = bounds.convolutions_alone(TINY, torch.device("cpu"), torch.float32)
    net, size = throughput.own_size(TINY)
    attentions = sum(isinstance(module, Attention) for module in net.modules())
    products = attentions * 2 * 2 * 64**2 * 64  # scores and sums over 64 pixels of 64 channels
    wanted = TINY.batch * (size["flops"] - products)
    assert alone.train is not None and counted(alone.forward)[1] == wanted
    with FlopCounterMode(display=False) as counter:
        alone.train()
    assert counter.get_total_flops() == 3 * wanted  # nobody leaves the gradient of its input out


def test_weights_cast_once_are_the_same_net() -> None:
    contenders = [diffusers_unet.contender(TINY, torch.device("cpu"), mode) for mode in ("documented", "best", "cast")]
    exact, autocast, cast = (each.forward().float() for each in contenders)  # type: ignore[attr-defined]
    assert {p.dtype for p in contenders[-1].net.parameters()} == {torch.bfloat16} and contenders[-1].train is None
    scale = exact.square().mean().sqrt()
    for rounded in (autocast, cast):
        assert 1e-5 < float((rounded - exact).square().mean().sqrt() / scale) < 0.03


def test_guided_diffusion_is_cast_as_its_own_fp16() -> None:
    """A stand-in with its parts: convolutions of the blocks only."""
    nn = torch.nn
    net = nn.Module()
    for name in ("input_blocks", "middle_block", "output_blocks"):
        setattr(net, name, nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1), nn.Linear(4, 4), nn.Conv1d(4, 4, 1)))
    net.out = nn.Conv2d(4, 3, 1)
    guided_diffusion.in_bf16(net)
    assert net.dtype == torch.bfloat16
    for name, p in net.named_parameters():
        convolution = name.split(".")[1] in ("1", "3") and not name.startswith("out.")
        assert p.dtype == (torch.bfloat16 if convolution else torch.float32), name


def test_ratios_are_of_one_round_and_shares_of_arithmetic() -> None:
    rates = {"ours": [2.0, 8.0, 3.0], "theirs": [1.0, 2.0, 6.0]}
    told = compared(rates, "ours", ["theirs"])
    assert told["ratio"] == {"theirs": {"min": 0.5, "median": 2.0, "max": 4.0}}
    more = by_flops(told, "ours", {"ours": 10**9, "theirs": 4 * 10**9}, passes=3)
    assert more["gflop_per_s"]["ours"]["median"] == 9 and more["gflop_per_s"]["theirs"]["median"] == 24
    assert more["ratio_of_gflop_per_s"] == {"theirs": {"min": 0.125, "median": 0.5, "max": 1.0}}


OWN_NET = """
from torch import nn
from torchvision import transforms, utils

class Unet(nn.Module):
    def __init__(self, dim, dim_mults, flash_attn):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(a, b, 1) for a, b in ((3, dim), (dim, dim), (dim, 3))))

    def forward(self, x, time):
        return self.layers(x)
"""


def test_peers_with_other_nets_have_a_table_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stand-ins for both: one that names torchvision and works, one that cannot be imported."""
    for name, text in (("denoising_diffusion_pytorch", OWN_NET), ("imagen_pytorch", "raise RuntimeError('no op\\nx')")):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.setitem(sys.modules, name, None)  # so that it is taken out again
        del sys.modules[name]
    for name in ("transformers", "datasets"):  # imagen-pytorch's
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(T5Config=type("T5Config", (), {"from_pretrained": 0})))
    monkeypatch.syspath_prepend(tmp_path)
    own = measure(tmp_path)["own_architecture"]
    assert "imagen-pytorch is skipped: it cannot be imported (RuntimeError: no op).\n" in capsys.readouterr().out
    assert "torchvision" not in sys.modules
    ((name, size),) = own["sizes"].items()
    width, wanted = size["width"], parameters(UNet(net_config(TINY)))

    def count(width: int) -> int:
        return width * width + 8 * width + 3

    assert name == "denoising-diffusion-pytorch" and size["parameters"] == count(width) and width % 8 == 0
    assert abs(count(width) - wanted) <= min(abs(count(width - 8) - wanted), abs(count(width + 8) - wanted))
    assert size["flops"] == 2 * 16 * 16 * (width * width + 6 * width)
    for what, count in (("train", 2), ("forward", 3)):
        assert len(own[what]["ratio"]) == len(own[what]["ratio_of_gflop_per_s"]) == count


def compiler(how: str) -> Callable[[torch.nn.Module], Any]:
    """One that only traces, which takes seconds, or one that fails at the first call."""
    if how == "works":
        return partial(torch.compile, backend="eager")

    def fails(*_: object) -> None:
        raise RuntimeError("no C++ compiler\nwith details")

    return lambda net: fails


@pytest.mark.filterwarnings("ignore:Dynamo detected a call")
@pytest.mark.parametrize(("how", "names"), [("works", ()), ("fails", ()), ("works", ("diffusers",))])
def test_a_compiler_that_fails_is_done_without(
    how: str,
    names: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch, "compile", compiler(how))
    monkeypatch.setattr(throughput, "CASES", (TINY, replace(TINY, name="tiny again")))
    rates = measure(tmp_path, "--compile", *names, "--cases", "tiny,tiny again")["train"]["images_per_s"]
    said = "diffusers, bf16, compiled is left out from here on: it fails (RuntimeError: no C++ compiler).\n"
    assert ("diffusers, bf16, compiled" in rates) == (how == "works")
    out = capsys.readouterr().out
    assert out.count(said) == (how == "fails")
    assert bool(re.search("cdm, \\w+, compiled", out)) == (not names)  # tried: dynamo fails at what checks types here


class Block(torch.nn.Module):
    """In the way of guided-diffusion's: each is compiled by itself, for what it does cannot be joined to the next."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(width, width + 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return self.linear(x)


@pytest.mark.parametrize("whole", [True, False])
def test_all_blocks_of_a_peer_are_compiled(whole: bool) -> None:
    compiled = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    net = torch.nn.Sequential(*map(Block, range(2, 26)))
    with torch.no_grad(), throughput.compiled_whole() if whole else nullcontext():
        torch.compile(net, backend=backend, dynamic=False)(torch.ones(1, 2))
    torch._dynamo.reset()
    assert (len(compiled) == len(net)) == whole


def test_a_peer_that_is_not_wanted_is_left_out(tmp_path: Path) -> None:
    case = measure(tmp_path, "--without", "diffusers")
    assert case["same"] == {} and len(case["train"]["images_per_s"]) == 1


def test_a_file_keeps_what_is_not_measured_again_and_never_loses_a_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(throughput, "CASES", (TINY, replace(TINY, name="other")))
    first = measure(tmp_path)
    measure(tmp_path, "--without", "diffusers", "--cases", "other")
    told = json.loads((tmp_path / "throughput.json").read_text())
    assert told["cases"]["tiny"] == first and told["cases"]["other"]["same"] == {}
    assert "--without diffusers" in told["cases"]["other"]["made"]["command"] != first["made"]["command"]
    with pytest.raises(SystemExit) as ended:
        measure(tmp_path, "--without", "diffusers")
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "has diffusers for tiny, which this call would not measure; expected" in said
    monkeypatch.setattr(throughput, "machine", lambda device: "another")
    with pytest.raises(SystemExit):
        measure(tmp_path)
    assert "this is another; expected another --out" in capsys.readouterr().err
    assert json.loads((tmp_path / "throughput.json").read_text()) == told


def test_a_peer_that_cannot_be_built_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gd" / "guided_diffusion").mkdir(parents=True)
    (tmp_path / "gd" / "guided_diffusion" / "unet.py").write_text("class UNetModel: pass\n")
    names = [each for each in sys.modules if each.startswith("guided_diffusion")]
    kept = {name: sys.modules.pop(name) for name in names}
    path = list(sys.path)
    try:
        case = measure(tmp_path, "--peer", f"guided-diffusion={tmp_path / 'gd'}")
    finally:
        sys.path[:] = path
        for name in [each for each in sys.modules if each.startswith("guided_diffusion")]:
            del sys.modules[name]
        sys.modules.update(kept)
    said = capsys.readouterr().out
    assert "guided-diffusion is left out from here on: it fails (TypeError: UNetModel() takes no arguments)." in said
    assert f"the commit of guided-diffusion is unknown: {tmp_path / 'gd'} is no git checkout" in said
    assert case["same"].keys() == {"diffusers"}


def test_a_folder_without_the_peer_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = measure(tmp_path, "--peer", f"guided-diffusion={tmp_path}")
    assert f"guided-diffusion is skipped: {tmp_path} has no guided_diffusion/unet.py.\n" in capsys.readouterr().out
    assert case["same"].keys() == {"diffusers"}


def test_a_package_that_is_not_installed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(roster, "find_spec", lambda name: None)
    case = measure(tmp_path)
    said = capsys.readouterr().out
    for name in ("diffusers", "denoising-diffusion-pytorch", "imagen-pytorch"):
        assert f"{name} is skipped: it is not installed.\n" in said
    assert (
        case["same"] == {} and list(case["train"]["images_per_s"]) and case["train"]["share_of_matmul_peak"]["min"] > 0
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--cases tiny,large", "unknown case 'large' in --cases; expected some of tiny"),
        ("--peer mine=.", "--peer is 'mine=.'; expected guided-diffusion=PATH"),
        ("--peer guided-diffusion", "--peer is 'guided-diffusion'; expected guided-diffusion=PATH"),
        ("--rounds 0", "got --rounds 0 and --seconds 1; expected at least 1 and above 0"),
        ("--seconds nan", "got --rounds 7 and --seconds nan; expected at least 1 and above 0"),
        ("--compile cdm,diffuser", "unknown name 'diffuser' in --compile; expected some of cdm, guided-diffusion,"),
        ("--without diffuser", "unknown peer 'diffuser' in --without; expected some of guided-diffusion, diffusers,"),
        ("--device abacus", "unknown device 'abacus'"),
    ],
)
def test_bad_options_are_one_sentence(options: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        throughput.main(["--cases", "tiny", *options.split()])
    said = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and len(said) == 1 and said[0].startswith("throughput: ") and words in said[0]
