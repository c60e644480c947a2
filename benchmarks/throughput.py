"""Images per second of one network, ours and peers', in training and in sampling.

    python benchmarks/throughput.py --peer guided-diffusion=PATH [--cases base64-32px] [--compile] [--out FILE]

PATH is a checkout of github.com/openai/guided-diffusion, which the caller brings; diffusers,
denoising-diffusion-pytorch and imagen-pytorch are measured where they are installed. What is missing or fails is
skipped by name. First a check that our net and those of guided-diffusion and diffusers are the same: the peer's weights
are loaded into ours, and outputs, parameters and FLOPs are compared; a difference ends the run. The other two keep
their own architecture with about as many parameters, and have a table of their own. Then all take turns, in one
process: every round times each contender once, and the ratios are of one round's pairs, so a busy moment hits both.
What bounds us takes turns as well: a large matrix product and, on a CPU, our convolutions and linear layers alone.
Memory is kept for all of them as the command ``cdm`` keeps it (cdm.heap).

Training: forward, backward, clipping of gradients, AdamW, one average of the weights. Ours is the whole update of
``cdm train`` (it draws levels and noise too); a peer gets them ready-made. Sampling: one forward pass, no gradients;
of peers under autocast and with weights cast once, as ours are.
GFLOP/s: images per second times the GFLOPs of the net's forward pass on an image, three times that in training.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from peers import guided_diffusion, ours, training
from peers.bounds import convolutions_alone, matrix_product
from peers.cases import CASES, Case, Contender, inputs, wake
from peers.roster import PEERS, OtherPeer, Present, folders, present, release, short
from peers.timing import alternate, counted, parameters, spread
from record import check_out, machine, made, save, short_name
from torch import nn

from cdm.artifacts import load_json
from cdm.cli.say import say
from cdm.errors import UserError
from cdm.heap import keep_memory
from cdm.nn.unet import UNet
from cdm.runtime import choose_device, choose_dtype, precision_name, set_threads

SCRIPT = "throughput.py"
OURS = "cdm"
COMPILABLE = (OURS, *PEERS)
T = TypeVar("T")
SAME_OUTPUT, SAME_FLOPS = 1e-5, 0.01
PASSES = {"train": 3, "forward": 1}  # a backward pass costs two forward passes


# ---- the same network ------------------------------------------------------------------------------------------------


def own_size(case: Case) -> tuple[UNet, dict[str, int]]:
    """Our net on the CPU; its parameters, and FLOPs of an image."""
    net = ours.with_groups(UNet(ours.net_config(case)))
    return net, {"parameters": parameters(net), "flops": image_flops(case, net, None, None)}


def image_flops(case: Case, net: nn.Module, *more: None) -> int:
    x, told, _ = inputs(case, torch.device("cpu"))
    return counted(lambda: net(x[:1], told[:1], *more))[1]


@torch.no_grad()
def check_same(case: Case, peer: nn.Module, copy_into: Callable[[nn.Module, Any], None]) -> dict[str, float]:
    """Relative difference of the outputs in float32, parameters and FLOPs of an image; raises where they differ."""
    net, size = own_size(case)
    wake(peer)
    copy_into(net, peer)
    x, told, _ = inputs(case, torch.device("cpu"))
    mine, theirs = net(x[:1], told[:1], None, None), peer(x[:1], told[:1])
    theirs = theirs if isinstance(theirs, torch.Tensor) else theirs.sample
    sizes, flops = [size["parameters"], parameters(peer)], [size["flops"], image_flops(case, peer)]
    difference = float((mine - theirs).norm() / theirs.norm())
    assert difference < SAME_OUTPUT, f"{case.name}: outputs differ by {difference:.1e}"
    assert sizes[0] == sizes[1], f"{case.name}: {sizes} parameters"
    assert abs(flops[0] / flops[1] - 1) < SAME_FLOPS, f"{case.name}: {flops} FLOPs"
    return {"output_difference": difference, "parameters": sizes[0], "flops": flops[0], "peer_flops": flops[1]}


# ---- the whole -------------------------------------------------------------------------------------------------------


def attempt(label: str, make: Callable[[], T], left_out: set[str]) -> list[T]:
    """A net, or a contender that was called once; nothing where that fails, which is said once for all cases."""
    if label in left_out:
        return []
    try:
        made = make()
        if isinstance(made, Contender):
            for call in (made.train, made.forward):
                if call is not None:
                    call()
    except Exception as error:  # a foreign net or a compiler may raise anything
        left_out.add(label)
        say(f"{label} is left out from here on: it fails ({short(error)}).")
        return []
    return [made]


def compared(rates: dict[str, list[float]], mine: str, names: Sequence[str]) -> dict[str, Any]:
    """Images per second of ours and those of these peers that were timed, and ours over theirs, round by round."""
    names = [name for name in names if name in rates]
    return {
        "images_per_s": {name: spread(rates[name]) for name in (mine, *names)},
        "ratio": {name: spread(quotients(rates[mine], rates[name])) for name in names},
    }


def quotients(rates: list[float], others: list[float]) -> list[float]:
    """Of one round each."""
    return [a / b for a, b in zip(rates, others, strict=True)]


def tell(what: str, mine: str, told: dict[str, Any]) -> None:
    for name, rate in told["images_per_s"].items():
        line = f"  {what:8}{name:55}{rate['median']:10.1f} images/s"
        if "gflop_per_s" in told:
            line += f"{told['gflop_per_s'][name]['median']:10.1f} GFLOP/s"
        if name != mine:
            for ratio, which in (("ratio", "ours is"), ("ratio_of_gflop_per_s", "by FLOPs")):
                if ratio in told:
                    each = told[ratio][name]
                    line += f"   {which} {each['median']:.2f} times ({each['min']:.2f} to {each['max']:.2f})"
        print(line, flush=True)


def by_flops(told: dict[str, Any], mine: str, flops: dict[str, int], passes: int) -> dict[str, Any]:
    """The same with the arithmetic that each net does in a second. flops: of each contender's pass on an image."""

    def times(figures: dict[str, float], factor: float) -> dict[str, float]:
        return {name: value * factor for name, value in figures.items()}

    return told | {
        "gflop_per_s": {n: times(v, passes * flops[n] / 1e9) for n, v in told["images_per_s"].items()},
        "ratio_of_gflop_per_s": {n: times(v, flops[mine] / flops[n]) for n, v in told["ratio"].items()},
    }


@dataclass(frozen=True)
class LineUp:
    """All that take turns, ours first. same: names of those with our net. sizes: of peers with a net of their own.
    flops: of a pass on an image, of ours and of each contender with a net of its own."""

    contenders: list[Contender]
    same: list[str]
    sizes: dict[str, dict[str, int]]
    flops: dict[str, int]


def own_architecture(
    peer: OtherPeer, case: Case, wanted: int, device: torch.device, mode: str, sizes: dict[str, dict[str, int]]
) -> Contender:
    net, countable, width = peer.build(case, wanted)
    sizes[peer.name] = {"width": width, "parameters": parameters(net), "flops": image_flops(case, countable)}
    return training.contender(peer.name, net, case, device, mode, lambda out: out, mixed=True)


def line_up(case: Case, device: torch.device, peers: Present, own: dict[str, int], left_out: set[str]) -> LineUp:
    dtype = choose_dtype("auto", device)
    contenders = [ours.contender(case, device, dtype)]
    if OURS in peers.compiled:
        compiled = partial(ours.contender, case, device, dtype, compiled=True)
        contenders += attempt(f"{contenders[0].name}, compiled", compiled, left_out)
    for peer in peers.same:
        for mode in peer.modes:
            make = partial(peer.contender, case, device, mode)
            contenders += attempt(f"{peer.name}, {training.MODES[mode]}", make, left_out)
    names = [c.name for c in contenders[1:]]
    sizes: dict[str, dict[str, int]] = {}
    flops = {contenders[0].name: own["flops"]}
    for peer in peers.others:
        for mode in training.modes(peer.name in peers.compiled):
            make = partial(own_architecture, peer, case, own["parameters"], device, mode, sizes)
            made = attempt(f"{peer.name}, {training.MODES[mode]}", make, left_out)
            contenders += made
            flops |= {c.name: sizes[peer.name]["flops"] for c in made}
    return LineUp(contenders, names, sizes, flops)


def measure(
    case: Case, device: torch.device, peers: Present, left_out: set[str], options: argparse.Namespace
) -> dict[str, Any]:
    print(f"\n{case.name}: {case.size} pixels, batch {case.batch}", flush=True)
    own, dtype = own_size(case)[1], choose_dtype("auto", device)
    built = {peer: net for peer in peers.same for net in attempt(peer.name, partial(peer.build, case), left_out)}
    same = {peer.name: check_same(case, net, peer.copy_into) for peer, net in built.items()}
    peers = replace(peers, same=list(built))
    line = line_up(case, device, peers, own, left_out)
    mine, *others = line.flops
    product = matrix_product(device, dtype)
    alone = [convolutions_alone(case, device, dtype)] if device.type == "cpu" else []
    result: dict[str, Any] = {"own": own, "same": same, "batch": case.batch}
    if others:
        result["own_architecture"] = {"sizes": line.sizes}
    for what, passes in PASSES.items():
        rates = alternate([*line.contenders, product, *alone], what, options.rounds, options.seconds, device)
        result[what] = compared(rates, mine, line.same)
        flops = [rate * own["flops"] * passes for rate in rates[mine]]
        result[what]["matmul_peak_tflops"] = spread([peak / 1e12 for peak in rates[product.name]])
        result[what]["share_of_matmul_peak"] = spread(quotients(flops, rates[product.name]))
        for bound in alone:
            result[what]["convolutions_alone"] = spread(rates[bound.name])
            result[what]["share_of_convolutions_alone"] = spread(quotients(rates[mine], rates[bound.name]))
        tell(what, mine, result[what])
        if others:
            told = by_flops(compared(rates, mine, others), mine, line.flops, passes)
            result["own_architecture"][what] = told
            tell(what, mine, told)
    return result


def chosen(names: str) -> list[Case]:
    known = {case.name: case for case in CASES}
    unknown = [name for name in names.split(",") if name not in known]
    if unknown:
        raise UserError(f"unknown case {unknown[0]!r} in --cases; expected some of {', '.join(known)}.")
    return [case for name, case in known.items() if name in names.split(",")]


def without(peers: Present, names: list[str]) -> Present:
    for name in names:
        if name not in PEERS:
            raise UserError(f"unknown peer {name!r} in --without; expected some of {', '.join(PEERS)}.")
    return replace(
        peers,
        same=[peer for peer in peers.same if peer.name not in names],
        others=[peer for peer in peers.others if peer.name not in names],
    )


def kept(out: Path, device: str, cases: list[Case], peers: Present) -> dict[str, Any]:
    """What the file has of cases that are not measured now.

    Raises:
        UserError: it is another machine's, or has peers that this call would drop.
    """
    if not out.exists():
        return {}
    told = load_json(out)
    if told["device"] != device:
        raise UserError(f"{out} is of {told['device']}, this is {device}; expected another --out.")
    names, measured = {peer.name for peer in (*peers.same, *peers.others)}, told["cases"]
    for case in cases:
        before = measured.get(case.name, {})
        had = {*before.get("same", {}), *before.get("own_architecture", {}).get("sizes", {})}
        if lost := sorted(had - names):
            raise UserError(
                f"{out} has {', '.join(lost)} for {case.name}, which this call would not measure; expected the same "
                "peers and more, or another --out."
            )
    return {name: case for name, case in measured.items() if name not in [case.name for case in cases]}


def compiled_whole() -> AbstractContextManager[object]:
    """By default dynamo compiles one function 8 times at most. The blocks of guided-diffusion share theirs, with other
    weights and widths each, so the rest of them would stay as they are."""
    from torch._dynamo import config

    return config.patch(recompile_limit=1000, accumulated_recompile_limit=10_000)


def run(options: argparse.Namespace, argv: list[str] | None) -> None:
    if options.rounds < 1 or not 0 < options.seconds < math.inf:
        raise UserError(
            f"got --rounds {options.rounds} and --seconds {options.seconds:g}; expected at least 1 and above 0."
        )
    cases, brought = chosen(options.cases), folders(options.peer)
    device, threads = choose_device(options.device), set_threads(options.threads)
    keep_memory()
    compiled = options.compile.split(",") if options.compile else []
    if unknown := [name for name in compiled if name not in COMPILABLE]:
        raise UserError(f"unknown name {unknown[0]!r} in --compile; expected some of {', '.join(COMPILABLE)}.")
    peers = without(present(brought, compiled, say), options.without.split(",") if options.without else [])
    guided = brought["guided-diffusion"] if "guided-diffusion" in [peer.name for peer in peers.same] else None
    out = options.out or Path(f"benchmarks/results/throughput-{short_name(device)}.json")  # as readme_table.py reads it
    commit = guided_diffusion.commit(guided) if guided else None
    if commit == guided_diffusion.UNKNOWN:
        say(f"the commit of guided-diffusion is unknown: {guided} is no git checkout and has no file COMMIT.")
    how, left_out = made(SCRIPT, argv, device), set[str]()
    how |= {
        "threads": threads, "precision": precision_name(choose_dtype("auto", device)),
        "guided_diffusion_commit": commit,
        "versions": {peer.name: release(peer.name) for peer in (*peers.same, *peers.others)},
    }  # fmt: skip
    results: dict[str, Any] = {"device": machine(device), "rounds": options.rounds, "cases": {}}
    results["cases"] = kept(check_out(out), results["device"], cases, peers)
    with compiled_whole() if compiled else nullcontext():
        for case in cases:
            results["cases"][case.name] = {"made": how, **measure(case, device, peers, left_out, options)}
            save(out, results, how)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--peer", action="append", default=[], metavar="guided-diffusion=PATH")
    parser.add_argument("--without", metavar="PEER,..", help="not these: all of the largest case need over 24 GB")
    parser.add_argument("--cases", default="base64-32px,base32-16px", help=", ".join(c.name for c in CASES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each contender in each round")
    parser.add_argument(
        "--compile", nargs="?", const=",".join(COMPILABLE), default="", metavar="NAME,..",
        help=f"these compiled too, minutes each; without names all ({', '.join(COMPILABLE)})",
    )  # fmt: skip
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/throughput-DEVICE.json")
    try:
        run(parser.parse_args(argv), argv)
    except UserError as error:
        print(f"throughput: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
