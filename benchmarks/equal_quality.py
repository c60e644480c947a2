"""Wall-clock to equal quality: our default net against guided-diffusion's, both in our trainer.

    python benchmarks/equal_quality.py --peer PATH --data TRAIN.zip --val VAL.zip --work DIR [--minutes 8]

A base at 16 pixels is trained for ``--minutes`` with the peer's ``UNetModel`` (64 channels, multipliers 1, 2, 2, two
blocks, attention at 16 and 8), in float32 as documented and, where the machine is fast at it, in bf16 (autocast,
channels-last); and with the net of the recipe ``small`` for shares of that time. Everything else is the same: data,
trainer, optimiser, batch size, learning rate, averages. Then the Fréchet distance on domain features of images made
from the same seeds by 32 steps of DPM-Solver++, and the ratios of the distances with a paired bootstrap. Ours is ahead
by the inverse of the smallest share at which it is no worse.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from contextlib import contextmanager
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.bounds import matmul_peak
from peers.guided_diffusion import NET, commit
from peers.timing import counted
from record import check_out, made, one_sentence, save
from torch import Tensor, nn

import cdm.stage
from cdm.artifacts import make_folder, read_log
from cdm.cascade import image_seed
from cdm.cli.main import main as cdm_main
from cdm.cli.progress import counting_progress
from cdm.config import NetConfig
from cdm.evaluate.frechet import frechet_estimate
from cdm.evaluate.frechet_ratio import frechet_ratio
from cdm.nn.unet import UNet
from cdm.pipeline.evaluate_request import EvaluateRequest
from cdm.pipeline.generate import to_bytes
from cdm.pipeline.judge import Judge, open_judge
from cdm.runtime import choose_device, choose_dtype, has_fast_bf16, set_threads

SCRIPT, PEER = "equal_quality.py", "guided-diffusion"
SIZE, BLOCK, STEPS = 16, 128, 32


class PeerNet(UNet):
    """guided-diffusion's UNetModel where our trainer expects a net. Its ends and embeddings are registered under the
    names that our trainer looks for, so the same optimiser goes to the same kinds of weights; its attention's matrices,
    which are one-dimensional convolutions, go to AdamW with them."""

    def __init__(self, config: NetConfig, build: Callable[[NetConfig], Any]) -> None:
        nn.Module.__init__(self)  # none of our layers
        inner = build(config)
        self.first, self.last = inner.input_blocks[0], inner.out
        self.embed_noise, self.embed_label = inner.time_embed, inner.label_emb
        self.embed_attention = nn.ModuleList(m for m in inner.modules() if isinstance(m, nn.Conv1d))
        self.inner = inner
        self.checkpointing = False

    def forward(
        self, x: Tensor, noise_input: Tensor, labels: Tensor | None, aug_input: Tensor | None, dropout: Any = None
    ) -> Tensor:
        return self.inner(x, noise_input, labels)


def peer_net(folder: Path, width: int, *, autocast: bool = False) -> Callable[[NetConfig], nn.Module]:
    """``autocast``: its attention is not computed once more in the backward pass, which would be without autocast."""
    import sys

    sys.path.insert(0, str(folder.resolve()))
    unet: Any = import_module("guided_diffusion.unet")

    def build(config: NetConfig) -> Any:
        net = unet.UNetModel(
            image_size=config.image_size, in_channels=config.in_channels, model_channels=width,
            out_channels=config.out_channels, num_res_blocks=2, attention_resolutions=(1, 2), channel_mult=(1, 2, 2),
            num_head_channels=min(width, 64), num_classes=config.num_labels or None, use_scale_shift_norm=True,
            resblock_updown=True, use_new_attention_order=True,
        )  # fmt: skip
        for module in net.modules():
            if autocast and isinstance(module, unet.AttentionBlock):
                module.forward = module._forward
        return net

    return lambda config: PeerNet(config, build)


@contextmanager
def nets_by(build: Callable[[NetConfig], nn.Module] | None) -> Any:
    """While it lasts, stages are built with these nets; None: with ours."""
    own: Any = cdm.stage.UNet
    cdm.stage.UNet = build or own  # type: ignore[misc]
    try:
        yield
    finally:
        cdm.stage.UNet = own  # type: ignore[misc]


def train(run: Path, data: str, minutes: float, precision: str, threads: int | None, more: list[str]) -> None:
    command = ["train", data, "--out", str(run), "--sizes", str(SIZE), "--minutes", f"{minutes:g}"]
    command += ["--precision", precision, *more]
    if threads is not None:
        command += ["--threads", str(threads)]
    code = cdm_main(command)
    if code:
        raise SystemExit(f"training ended with {code}: cdm {' '.join(command)}")


@torch.no_grad()
def features(judge: Judge, count: int, seed: int) -> np.ndarray:
    cascade, rows = judge.cascade, []
    settings = cascade.settings(sampler="dpmpp", steps=(STEPS,))
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        labels = None if judge.labels is None else judge.labels[start:stop].tolist()
        seeds = [image_seed(seed, i) for i in range(start, stop)]
        made = cascade.sample(labels, seeds, settings=settings, batch_size=BLOCK).images[0]
        rows.append(judge.extractor(to_bytes(made, "samples")).by_name()["main"].numpy())
    return np.concatenate(rows)


def measure(run: Path, options: argparse.Namespace, progress: Any) -> tuple[Judge, np.ndarray]:
    asked = EvaluateRequest(
        subject=str(run), data=options.val, train_data=options.data, out=make_folder(run / "judged"), num=options.n,
        seed=options.seed,
    )  # fmt: skip
    judge = open_judge(asked, progress, print)
    return judge, features(judge, options.n, options.seed)


def shares(text: str) -> tuple[float, ...]:
    try:
        found = tuple(map(float, text.split(",")))
    except ValueError:
        found = ()
    if not found or not all(0 < share <= 1 for share in found):
        raise argparse.ArgumentTypeError(f"{text!r} has no shares of the peer's time; expected numbers of 0 to 1")
    return found


def work_of(judge: Judge, run: Path, precision: str) -> dict[str, Any]:
    """Images seen, and the share of the matrix product's peak in the same precision that their arithmetic reaches."""
    stage = judge.cascade.stages[0]
    rows = read_log(run / stage.name / "log.jsonl")
    net, x, told = deepcopy(stage.net).float(), torch.zeros(1, *stage.shape), torch.zeros(1)
    labels = torch.zeros(1, dtype=torch.long) if stage.config.net.num_labels else None
    flops = counted(lambda: net(x, told, labels, None))[1]
    dtype = torch.float32 if precision == "fp32" else choose_dtype("auto", judge.cascade.device)
    rate = float(np.median([row["images_per_s"] for row in rows if row["images_per_s"]]))
    peak = matmul_peak(judge.cascade.device, dtype)
    return {"images": rows[-1]["images_seen"], "images_per_s": rate, "flops_of_an_image": flops,
            "share_of_matmul_peak": 3 * flops * rate / peak}  # fmt: skip


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--peer", type=Path, help="a checkout of github.com/openai/guided-diffusion")
    parser.add_argument("--data", help="training images")
    parser.add_argument("--val", help="real images kept from training")
    parser.add_argument("--work", type=Path, default=Path("runs/equal-quality"))
    parser.add_argument("--minutes", type=float, default=8.0, help="of the peer's net")
    parser.add_argument("--shares", type=shares, default=(0.5, 0.25), help="of that time, for ours: 0.5,0.25")
    parser.add_argument("--width", type=int, default=64, help="channels of the peer's net")
    parser.add_argument("--threads", type=int)
    parser.add_argument("-n", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--train-options", default="", help="more options of cdm train, for both")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/equal-quality.json"))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    if None in (options.peer, options.data, options.val):
        print("equal_quality is skipped: it needs --peer, --data and --val.")
        return
    if not (options.peer / NET).exists():
        print(f"equal_quality is skipped: {options.peer} has no {NET}.")
        return
    with one_sentence(SCRIPT):
        run_all(options, made(SCRIPT, argv))


def run_all(options: argparse.Namespace, how: dict[str, Any]) -> None:
    check_out(options.out)
    set_threads(options.threads)
    more = options.train_options.split()
    arms = [(f"{PEER}, float32", peer_net(options.peer, options.width), options.minutes, "fp32")]
    if has_fast_bf16(choose_device()):
        arms.append((f"{PEER}, bf16", peer_net(options.peer, options.width, autocast=True), options.minutes, "bf16"))
    arms += [(f"ours, {share:g} of the time", None, options.minutes * share, "auto") for share in options.shares]
    rows, found = {}, {}
    for name, net, minutes, precision in arms:
        run = options.work / name.replace(", ", "-").replace(" ", "-")
        with nets_by(net), counting_progress() as progress:
            train(run, options.data, minutes, precision, options.threads, more)
            judge, rows[name] = measure(run, options, progress)
            work = work_of(judge, run, precision)
        real = judge.reference(SIZE)
        distance = frechet_estimate(real, rows[name], judge.labels)
        others = [other for other in rows if net is None and other.startswith(PEER)]
        ratios = {other: frechet_ratio(real, rows[name], rows[other], judge.labels) for other in others}
        found[name] = {
            "minutes": minutes,
            **work,
            "parameters": sum(p.numel() for p in judge.cascade.stages[0].net.parameters()),
            "distance": [distance.value, distance.low, distance.high],
            "ratios": {other: [ratio.value, ratio.low, ratio.high] for other, ratio in ratios.items()},
        }
        print(json.dumps({name: found[name]}), flush=True)
    peer_commit, data = commit(options.peer), Path(options.data).name
    told = {"peer_commit": peer_commit, "data": data, "images": options.n, "cores": os.cpu_count(), "arms": found}
    save(options.out, told, how)


if __name__ == "__main__":
    main()
