"""Our net and trainer as a contender."""

from __future__ import annotations

import torch

from cdm.config import NetConfig, OptimConfig, StageConfig
from cdm.nn.layers import Norm
from cdm.nn.unet import UNet
from cdm.rng import Rng
from cdm.stage import Stage, build_stage
from cdm.train.step import Trainee
from cdm.types import Batch, Cond
from peers.cases import Case, Contender, inputs, wake

GROUPS = 32  # of both peers at every width; ours has fewer where a group would have under 4 channels


def net_config(case: Case) -> NetConfig:
    return NetConfig(
        image_size=case.size,
        in_channels=3,
        out_channels=3,
        width=case.width,
        multipliers=case.multipliers,
        num_blocks=case.blocks,
        attention=case.attention,
        head_channels=case.head_channels,
        resample="residual" if case.residual else "strided",
        norm="group",
        num_labels=0,
    )


def with_groups(net: UNet) -> UNet:
    for module in net.modules():
        if isinstance(module, Norm):
            module.groups = GROUPS
    return net


def build(case: Case, device: torch.device, dtype: torch.dtype) -> Stage:
    optim = OptimConfig(batch_size=case.batch, optimizer="adamw", ema_sigma_rel=(0.05,))
    config = StageConfig(size=case.size, channels=3, net=net_config(case), label_dropout=0.0, optim=optim)
    stage = build_stage(config, 0, num_classes=0, seed=0)
    with_groups(stage.net)
    wake(stage.net)
    return stage.to(device, dtype)


def contender(case: Case, device: torch.device, dtype: torch.dtype, *, compiled: bool = False) -> Contender:
    """The update that ``cdm train`` makes: it also draws its own noise and levels, and reads its counters late.
    ``compiled``: its net by torch.compile, which cdm does not do."""
    stage, still = build(case, device, dtype), build(case, device, dtype).for_sampling()
    if compiled:
        stage.net.compile()
        still.net.compile()
    trainee, rng = Trainee(stage), Rng(0)
    x, logsnr, _ = inputs(case, device)
    batch = Batch(x, None, torch.arange(case.batch, device=device))

    def train() -> None:
        trainee.step(batch, rng, 1e-4)

    @torch.no_grad()
    def forward() -> object:
        return still.denoiser.raw(x, logsnr, Cond())[0]  # type: ignore[attr-defined]

    name = {torch.bfloat16: "bf16", torch.float32: "float32"}[dtype]
    return Contender(f"cdm, {name}{', compiled' if compiled else ''}", train, forward, still.net, case.batch)
