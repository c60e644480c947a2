"""OpenAI's guided-diffusion (the ADM paper's code) as a contender, from a folder that the caller brings.

Only its modules unet, nn, fp16_util and what they import are loaded.
"""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peers import training
from peers.cases import Case, Contender, copy_pairs, inputs, layers, wake

EMA_RATE = 0.9999  # its default
UNKNOWN = "unknown"
NET = "guided_diffusion/unet.py"


def commit(folder: Path) -> str:
    """Of the folder, by its file COMMIT or as a checkout of its own, not as a part of another repository."""
    note = folder / "COMMIT"
    if note.exists():
        return note.read_text().strip()
    asked = ["git", "-C", str(folder), "rev-parse", "--show-toplevel", "HEAD"]
    found = subprocess.run(asked, capture_output=True, text=True).stdout.split("\n")
    return found[1] if len(found) > 1 and Path(found[0]).resolve() == folder.resolve() else UNKNOWN


def load(folder: Path, module: str) -> Any:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return import_module(f"guided_diffusion.{module}")


def build(folder: Path, case: Case, *, fp16: bool = False) -> nn.Module:
    return load(folder, "unet").UNetModel(
        image_size=case.size,
        in_channels=3,
        model_channels=case.width,
        out_channels=3,
        num_res_blocks=case.blocks,
        attention_resolutions=tuple(case.size // side for side in case.attention),
        channel_mult=case.multipliers,
        num_head_channels=case.head_channels,
        use_scale_shift_norm=True,
        resblock_updown=case.residual,
        use_new_attention_order=True,
        use_fp16=fp16,
    )


def copy_into(ours: nn.Module, peer: Any) -> None:
    """The peer's weights into our net."""
    theirs = [layer for block in peer.input_blocks for layer in block][1:]
    theirs += [layer for block in (peer.middle_block, *peer.output_blocks) for layer in block]
    pairs: list[tuple[Any, Any]] = [
        (ours.first, peer.input_blocks[0][0]),
        (ours.embed_noise.hidden, peer.time_embed[0]),  # type: ignore[union-attr]
        (ours.embed_noise.out, peer.time_embed[2]),  # type: ignore[union-attr]
        (ours.norm, peer.out[0]),
        (ours.last, peer.out[2]),
    ]
    for a, b in zip(layers(ours), theirs, strict=True):
        if hasattr(b, "in_layers"):
            pairs += [
                (a.norm_in, b.in_layers[0]),
                (a.conv_in, b.in_layers[2]),
                (a.modulation, b.emb_layers[1]),
                (a.norm_out, b.out_layers[0]),
                (a.conv_out, b.out_layers[3]),
            ]
            if isinstance(b.skip_connection, nn.Conv2d):
                pairs.append((a.skip, b.skip_connection))
        elif hasattr(b, "qkv"):
            pairs += [(a.norm, b.norm), (a.qkv, b.qkv), (a.out, b.proj_out)]
        else:
            pairs.append((a.conv, b.conv if hasattr(b, "conv") else b.op))
    copy_pairs(pairs)


def in_bf16(net: Any) -> nn.Module:
    """What its fp16 is: weights of the convolutions in all blocks; norms, embedding and last layer stay in float32."""
    for module in (*net.input_blocks.modules(), *net.middle_block.modules(), *net.output_blocks.modules()):
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            module.bfloat16()
    net.dtype = torch.bfloat16
    return net


def contender(folder: Path, case: Case, device: torch.device, mode: str) -> Contender:
    """``mode``: "documented" (float32, its own fp16 on a GPU), "best" (bf16 autocast, channels-last, fused AdamW),
    "compiled" (the same, compiled), or one of ``training.FORWARD_ONLY``."""
    documented = mode == "documented"
    fp16 = documented and device.type == "cuda"
    net = build(folder, case, fp16=fp16)
    util, nn_util = (load(folder, module) for module in ("fp16_util", "nn"))
    wake(net)
    if mode in training.FORWARD_ONLY:
        return training.cast_once("guided-diffusion", in_bf16(net), case, device, mode, lambda run, x, t: run(x, t))
    net.to(device)
    if not documented:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, told, target = inputs(case, device)
    amp = torch.autocast(device.type, torch.bfloat16, enabled=not documented)
    trainer = util.MixedPrecisionTrainer(model=net, use_fp16=fp16, fp16_scale_growth=1e-3, initial_lg_loss_scale=10.0)
    optimizer = torch.optim.AdamW(trainer.master_params, lr=1e-4, fused=None if documented else True)
    averages = [p.detach().clone() for p in trainer.master_params]
    run: Any = torch.compile(net) if mode == "compiled" else net

    def train() -> None:
        trainer.zero_grad()
        with amp:  # around the backward pass too: its attention is computed again there, always
            out = run(x, told)
            trainer.backward((out.float() - target).square().mean())
        trainer.optimize(optimizer)
        if documented:
            nn_util.update_ema(averages, trainer.master_params, rate=EMA_RATE)
        else:
            torch._foreach_lerp_(averages, [p.detach() for p in trainer.master_params], 1 - EMA_RATE)

    @torch.no_grad()
    def forward() -> object:
        with amp:
            return run(x, told)

    name = "fp16" if fp16 else training.MODES[mode]
    return Contender(f"guided-diffusion, {name}", train, forward, net, case.batch)
