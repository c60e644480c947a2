"""Images per second of one network, ours and peers', in training and in sampling.

    python benchmarks/throughput.py --peer guided-diffusion=PATH [--cases base64-32px] [--compile] [--out FILE]

PATH is a checkout of github.com/openai/guided-diffusion, which the caller brings; diffusers is measured where it is
installed. First a check that the nets are the same: the peer's weights are loaded into ours, and outputs, parameters
and FLOPs are compared; a difference ends the run. Then all take turns, in one process: every round times each contender
once, and the ratios are of one round's pairs, so a busy moment hits both.

Training: forward, backward, clipping of gradients, AdamW, one average of the weights. Ours is the whole update of
``cdm train`` (it draws levels and noise too); a peer gets them ready-made. Sampling: one forward pass, no gradients.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peers import diffusers_unet, guided_diffusion, ours
from peers.cases import CASES, Case, Contender, inputs, wake
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cdm.nn.unet import UNet
from cdm.runtime import choose_device, choose_dtype, precision_name, set_threads

SAME_OUTPUT, SAME_FLOPS = 1e-5, 0.01


# ---- the same network ------------------------------------------------------------------------------------------------


@torch.no_grad()
def check_same(case: Case, peer: nn.Module, copy_into: Callable[[nn.Module, Any], None]) -> dict[str, float]:
    """Relative difference of the outputs in float32, parameters and FLOPs of an image; raises where they differ."""
    net = ours.with_groups(UNet(ours.net_config(case)))
    wake(peer)
    copy_into(net, peer)
    x, told, _ = inputs(case, torch.device("cpu"))
    x, told = x[:1], told[:1]

    def counted(call: Callable[[], Any]) -> tuple[Any, int]:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            out = call()
        return out, counter.get_total_flops()

    mine, own_flops = counted(lambda: net(x, told, None, None))
    theirs, flops = counted(lambda: peer(x, told))
    theirs = theirs if isinstance(theirs, torch.Tensor) else theirs.sample
    parameters = [sum(p.numel() for p in each.parameters()) for each in (net, peer)]
    difference = float((mine - theirs).norm() / theirs.norm())
    assert difference < SAME_OUTPUT, f"{case.name}: outputs differ by {difference:.1e}"
    assert parameters[0] == parameters[1], f"{case.name}: {parameters} parameters"
    assert abs(own_flops / flops - 1) < SAME_FLOPS, f"{case.name}: {own_flops} and {flops} FLOPs"
    return {"output_difference": difference, "parameters": parameters[0], "flops": own_flops, "peer_flops": flops}


# ---- timing ----------------------------------------------------------------------------------------------------------


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(call: Callable[[], object], count: int, device: torch.device) -> float:
    """Seconds of ``count`` calls."""
    synchronise(device)
    begin = time.perf_counter()
    for _ in range(count):
        call()
    synchronise(device)
    return time.perf_counter() - begin


def alternate(
    contenders: list[Contender], what: str, rounds: int, seconds: float, device: torch.device
) -> dict[str, list[float]]:
    """Images per second of each round; ``seconds`` of each contender in each."""
    calls = {c.name: getattr(c, what) for c in contenders}
    counts = {}
    for name, call in calls.items():
        timed(call, 5, device)  # compiles, records, fills caches
        counts[name] = max(1, round(seconds / (timed(call, 2, device) / 2)))
    rates: dict[str, list[float]] = {c.name: [] for c in contenders}
    for _ in range(rounds):
        for c in contenders:
            rates[c.name].append(counts[c.name] * c.batch / timed(calls[c.name], counts[c.name], device))
    return rates


def spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


# ---- bounds ----------------------------------------------------------------------------------------------------------


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs per second of the fastest of a few large matrix products on random data."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    timed(lambda: a @ b, 3, device)
    return max(2 * side**3 / timed(lambda: a @ b, 3, device) * 3 for _ in range(3))


def convolutions_alone(case: Case, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Images per second if nothing but the net's convolutions and linear layers ran, each timed by itself with its own
    shapes, channels-last: forward alone, and forward with backward (no input gradient at the first)."""
    net = ours.build(case, device, torch.float32).net
    met: dict[Any, list[Any]] = {}

    def note(module: nn.Module, given: tuple[Any, ...], _: Any) -> None:
        weight: Any = module.weight
        kind = (tuple(given[0].shape), tuple(weight.shape), getattr(module, "stride", None))
        met.setdefault(kind, [module, given[0], 0])[2] += 1

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(note)
    x, told, _ = inputs(case, device)
    with torch.no_grad():
        net(x, told, None, None)
    forward = both = 0.0
    for module, given, count in list(met.values()):
        module._forward_hooks.clear()
        module.to(dtype)
        x = given.detach().to(dtype)
        x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
        x.requires_grad_(True)
        with torch.no_grad():
            out = module(x)
        grad = torch.randn_like(out)

        def step(module: nn.Module = module, x: torch.Tensor = x, grad: torch.Tensor = grad) -> None:
            module(x).backward(grad)

        @torch.no_grad()
        def passed(module: nn.Module = module, x: torch.Tensor = x) -> None:
            module(x)

        for call, which in ((passed, 0), (step, 1)):
            timed(call, 2, device)
            repeats = max(3, round(0.1 / (timed(call, 2, device) / 2 + 1e-9)))
            best = min(timed(call, repeats, device) / repeats for _ in range(3)) * count
            forward, both = (forward + best, both) if which == 0 else (forward, both + best)
    return {"forward": case.batch / forward, "train": case.batch / both}


# ---- the whole -------------------------------------------------------------------------------------------------------


def build_contenders(
    case: Case, device: torch.device, peer: Path | None, compiled: bool
) -> Iterator[Callable[[], Contender]]:
    dtype = choose_dtype("auto", device)
    yield lambda: ours.contender(case, device, dtype)
    if peer is not None:
        for mode in ("documented", "best"):
            yield lambda mode=mode: guided_diffusion.contender(peer, case, device, mode)
    if find_spec("diffusers"):
        for mode in ("documented", "best", *(("compiled",) if compiled else ())):
            yield lambda mode=mode: diffusers_unet.contender(case, device, mode)


def measure(case: Case, device: torch.device, peer: Path | None, options: argparse.Namespace) -> dict[str, Any]:
    print(f"\n{case.name}: {case.size} pixels, batch {case.batch}", flush=True)
    same: dict[str, Any] = {}
    if peer is not None:
        same["guided-diffusion"] = check_same(case, guided_diffusion.build(peer, case), guided_diffusion.copy_into)
    if find_spec("diffusers"):
        same["diffusers"] = check_same(case, diffusers_unet.build(case), diffusers_unet.copy_into)
    contenders = [make() for make in build_contenders(case, device, peer, options.compile)]
    mine = contenders[0].name
    dtype = choose_dtype("auto", device)
    peak = matmul_peak(device, dtype)
    flops = next(iter(same.values()))["flops"] if same else 0
    result: dict[str, Any] = {"same": same, "batch": case.batch, "matmul_peak_tflops": peak / 1e12}
    if device.type == "cpu":
        result["convolutions_alone"] = convolutions_alone(case, device, dtype)
    for what in ("train", "forward"):
        rates = alternate(contenders, what, options.rounds, options.seconds, device)
        result[what] = {"images_per_s": {name: spread(values) for name, values in rates.items()}, "ratio": {}}
        own = statistics.median(rates[mine])
        result[what]["share_of_matmul_peak"] = own * flops * (3 if what == "train" else 1) / peak
        if device.type == "cpu":
            result[what]["share_of_convolutions_alone"] = own / result["convolutions_alone"][what]
        for name, values in rates.items():
            ratio = spread([a / b for a, b in zip(rates[mine], values, strict=True)])
            line = f"  {what:8}{name:45}{statistics.median(values):10.1f} images/s"
            if name != mine:
                result[what]["ratio"][name] = ratio
                line += f"   ours is {ratio['median']:.2f} times ({ratio['min']:.2f} to {ratio['max']:.2f})"
            print(line, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--peer", action="append", default=[], metavar="guided-diffusion=PATH")
    parser.add_argument("--cases", default="base64-32px,base32-16px", help=", ".join(c.name for c in CASES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each contender in each round")
    parser.add_argument("--compile", action="store_true", help="compiled diffusers too (minutes)")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/throughput.json"))
    options = parser.parse_args()
    device, threads = choose_device(options.device), set_threads(options.threads)
    brought = dict(each.split("=", 1) for each in options.peer)
    peer = Path(brought["guided-diffusion"]).resolve() if "guided-diffusion" in brought else None
    names = options.cases.split(",")
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": threads,
        "torch": torch.__version__,
        "precision": precision_name(choose_dtype("auto", device)),
        "guided_diffusion_commit": guided_diffusion.commit(peer) if peer else None,
        "rounds": options.rounds,
        "cases": {},
    }
    for case in (c for c in CASES if c.name in names):
        results["cases"][case.name] = measure(case, device, peer, options)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    main()
