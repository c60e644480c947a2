"""diffusers' UNet2DModel as a contender, with the architecture of ours."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import nn

from peers import training
from peers.cases import Case, Contender, copy_pairs, layers, wake


def build(case: Case) -> nn.Module:
    diffusers: Any = import_module("diffusers")
    sides = [case.size >> level for level in range(len(case.multipliers))]
    kind, plain = ("resnet", "Resnet{}sampleBlock2D") if case.residual else ("conv", "{}Block2D")
    return diffusers.UNet2DModel(
        sample_size=case.size,
        in_channels=3,
        out_channels=3,
        freq_shift=0,
        flip_sin_to_cos=True,
        down_block_types=tuple("AttnDownBlock2D" if s in case.attention else plain.format("Down") for s in sides),
        up_block_types=tuple("AttnUpBlock2D" if s in case.attention else plain.format("Up") for s in reversed(sides)),
        block_out_channels=tuple(case.width * m for m in case.multipliers),
        layers_per_block=case.blocks,
        downsample_padding=1,
        downsample_type=kind,
        upsample_type=kind,
        attention_head_dim=case.head_channels,
        norm_num_groups=32,
        attn_norm_num_groups=32,
        norm_eps=1e-5,
        resnet_time_scale_shift="scale_shift",
    )


def copy_into(ours: nn.Module, peer: Any) -> None:
    """The peer's weights into our net."""
    theirs: list[Any] = []
    for block in peer.down_blocks:
        theirs += _layers(block, getattr(block, "downsamplers", None))
    theirs += [peer.mid_block.resnets[0], peer.mid_block.attentions[0], peer.mid_block.resnets[1]]
    for block in peer.up_blocks:
        theirs += _layers(block, getattr(block, "upsamplers", None))
    pairs: list[tuple[Any, Any]] = [
        (ours.first, peer.conv_in),
        (ours.embed_noise.hidden, peer.time_embedding.linear_1),  # type: ignore[union-attr]
        (ours.embed_noise.out, peer.time_embedding.linear_2),  # type: ignore[union-attr]
        (ours.norm, peer.conv_norm_out),
        (ours.last, peer.conv_out),
    ]
    for a, b in zip(layers(ours), theirs, strict=True):
        if hasattr(b, "conv1"):
            pairs += [
                (a.norm_in, b.norm1),
                (a.conv_in, b.conv1),
                (a.modulation, b.time_emb_proj),
                (a.norm_out, b.norm2),
                (a.conv_out, b.conv2),
            ]
            if b.conv_shortcut is not None:
                pairs.append((a.skip, b.conv_shortcut))
        elif hasattr(b, "to_q"):
            pairs += [(a.norm, b.group_norm), (a.out, b.to_out[0])]
            with torch.no_grad():
                a.qkv.weight.copy_(torch.cat([b.to_q.weight, b.to_k.weight, b.to_v.weight]))
                a.qkv.bias.copy_(torch.cat([b.to_q.bias, b.to_k.bias, b.to_v.bias]))
        else:
            pairs.append((a.conv, b.conv))
    copy_pairs(pairs)


def _layers(block: Any, resamplers: Any) -> list[Any]:
    """In the order in which our net has them."""
    found: list[Any] = []
    attentions = list(getattr(block, "attentions", None) or [None] * len(block.resnets))
    for resnet, attention in zip(block.resnets, attentions, strict=True):
        found += [resnet, *([attention] if attention is not None else [])]
    return found + list(resamplers or [])


def contender(case: Case, device: torch.device, mode: str) -> Contender:
    net = build(case)
    wake(net)
    return training.contender("diffusers", net, case, device, mode, lambda out: out.sample)
