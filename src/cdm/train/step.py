"""One optimiser update of one stage, without a host synchronisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from cdm.config import ConfigError
from cdm.losses import stage_loss
from cdm.rng import Purpose, Rng
from cdm.stage import Stage
from cdm.train.ema import Ema
from cdm.train.muon import Muon
from cdm.train.step_graph import StepGraph, can_record
from cdm.types import Batch, Dropout

BatchSource = Callable[[Rng, Int64[Tensor, " b"]], Batch]
"""``batches(rng, positions)``: the batch at those positions of the training stream."""


def make_dropout(rng: Rng, index: Int64[Tensor, " b"]) -> Dropout:
    """Dropout whose masks are a pure function of (rng, index, layer): recomputing a block draws the same mask."""

    def dropout(x: Tensor, layer: int, probability: float) -> Tensor:
        words = rng.int32(Purpose.DROPOUT, index.to(x.device), tuple(x.shape[1:]), step=layer)
        keep = words >= round(probability * 2**32) - 2**31
        return x * keep.to(x.dtype) * (1 / (1 - probability))

    return dropout


class Trainee:
    """The training state of a stage: network, optimiser, EMA, and counters that live on the device.

    A step whose loss or gradient is not finite changes neither weights nor moments: the fused optimiser reads the flag
    on the device. ``bad_run`` counts such steps in a row, ``max_bad_run`` is its largest value in this attempt.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.names = [name for name, _ in stage.net.named_parameters()]
        self.params = [p for _, p in stage.net.named_parameters()]
        optim = stage.config.optim
        inner = [optim.optimizer == "muon" and _is_inner(n, p) for n, p in zip(self.names, self.params, strict=True)]
        self.muon_names = [name for name, own in zip(self.names, inner, strict=True) if own]
        self.muon = Muon(
            [p for p, own in zip(self.params, inner, strict=True) if own],
            optim.weight_decay,
            parts=[2 if name.endswith("modulation.weight") else 1 for name in self.muon_names],  # scale | shift
        )
        device = self.params[0].device
        # a recorded update reads the rate on the device; on a CPU it stays a float64
        self.lr = torch.tensor(optim.lr, device=device) if device.type == "cuda" else optim.lr
        self.optimizer = torch.optim.AdamW(
            [p for p, own in zip(self.params, inner, strict=True) if not own],
            lr=self.lr,
            betas=optim.betas,
            weight_decay=optim.weight_decay,
            fused=True,
            capturable=device.type == "cuda",
        )
        self.ema = Ema(optim.ema_sigma_rel, self.params)
        self.images_seen = 0
        self.attempt = 0
        self.lr_scale = 1.0
        self.seconds = 0.0
        self.skipped, self.bad_run, self.max_bad_run = (torch.zeros((), device=device) for _ in range(3))
        self.loss_sum, self.loss_count, self.norm_sum = (torch.zeros((), device=device) for _ in range(3))
        stage.net.checkpointing = optim.checkpointing
        stage.net.train()
        self._run = StepGraph(self._compute) if can_record(stage.config, device) else self._compute

    def step(self, batch: Batch, rng: Rng, lr: float) -> None:
        """Forward, backward, clip, update, EMA; advances ``images_seen`` by the batch."""
        self._set_lr(lr * self.lr_scale)
        self._run(batch, rng)
        count = len(batch.index)
        self.ema.update(self.params, self.images_seen, self.images_seen + count)
        self.images_seen += count

    def _set_lr(self, lr: float) -> None:
        if isinstance(self.lr, Tensor):
            self.lr.fill_(lr)
        else:
            self.lr = self.optimizer.param_groups[0]["lr"] = lr

    def _compute(self, batch: Batch, rng: Rng) -> None:
        """All of a step that runs on the device and may be recorded: it only writes in place."""
        stage, optim = self.stage, self.stage.config.optim
        count = len(batch.index)
        micro = optim.micro_batch or count
        for p in self.params:
            p.grad = None
        total = torch.zeros((), device=self.params[0].device)
        for begin in range(0, count, micro):
            part = _rows(batch, slice(begin, begin + micro))
            dropout = make_dropout(rng, part.index) if stage.config.net.dropout else None
            loss = stage_loss(stage, part, rng, dropout).loss.sum() / count
            loss.backward()
            total += loss.detach()
        self.apply(total)

    def apply(self, loss: Tensor) -> None:
        """Clip the gradients and update the weights; ``loss`` is that of the whole batch, a scalar."""
        grads = [p.grad for p in self.params if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        bad = (~(torch.isfinite(norm) & torch.isfinite(loss))).float()
        clip = self.stage.config.optim.grad_clip
        if clip > 0:
            torch._foreach_mul_(grads, (clip / (norm + 1e-6)).clamp(max=1.0))
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]  # read by the fused kernel on the device
        self.optimizer.step()
        self.muon.step(self.lr, bad)
        self.skipped += bad
        self.bad_run.add_(1).mul_(bad)
        torch.maximum(self.max_bad_run, self.bad_run, out=self.max_bad_run)
        good = 1 - bad
        self.loss_sum += torch.where(bad > 0, 0.0, loss)
        self.norm_sum += torch.where(bad > 0, 0.0, norm)
        self.loss_count += good

    def drop_recording(self) -> None:
        """Free the memory of the recorded update; steps run kernel by kernel from here on."""
        self._run = self._compute

    def start_attempt(self, attempt: int, lr_scale: float) -> None:
        """Go on from here under another random key, at a share of the learning rate."""
        self.attempt, self.lr_scale = attempt, lr_scale
        self.bad_run.zero_()
        self.max_bad_run.zero_()

    def sync(self) -> None:
        """Wait for the device."""
        float(self.loss_count)

    def read_means(self) -> tuple[float, float]:
        """Mean loss and gradient norm of the good steps since the last call; NaN where there was none."""
        count = float(self.loss_count) or float("nan")
        means = float(self.loss_sum) / count, float(self.norm_sum) / count
        for total in (self.loss_sum, self.norm_sum, self.loss_count):
            total.zero_()
        return means

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a resumed run needs, as tensors and plain values."""
        tensors: dict[str, Tensor] = {}
        for i, (name, param) in enumerate(zip(self.names, self.params, strict=True)):
            tensors[f"param/{name}"] = param.detach()
            moments = self.optimizer.state.get(param)
            if moments:
                tensors[f"exp_avg/{name}"] = moments["exp_avg"]
                tensors[f"exp_avg_sq/{name}"] = moments["exp_avg_sq"]
                tensors[f"step/{name}"] = moments["step"]
            for profile, averaged in zip(self.ema.profiles, self.ema.params, strict=True):
                tensors[f"ema-{profile:.3f}/{name}"] = averaged[i]
        tensors |= {f"momentum/{name}": m for name, m in zip(self.muon_names, self.muon.momentum, strict=True)}
        meta = {
            "images_seen": self.images_seen,
            "attempt": self.attempt,
            "lr_scale": self.lr_scale,
            "seconds": self.seconds,
            "skipped": float(self.skipped),
            "bad_run": float(self.bad_run),
            "max_bad_run": float(self.max_bad_run),
        }
        return tensors, meta

    def load(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """The inverse of ``state``.

        Raises:
            ConfigError: a state of another network or optimiser, told by names and shapes.
        """
        self._check_fits(tensors)
        with torch.no_grad():
            for i, (name, param) in enumerate(zip(self.names, self.params, strict=True)):
                param.copy_(tensors[f"param/{name}"])
                if f"step/{name}" in tensors:
                    own = self.optimizer.state[param]
                    own["step"] = tensors[f"step/{name}"].to(param.device).clone()
                    for moment in ("exp_avg", "exp_avg_sq"):
                        own[moment] = torch.empty_like(param).copy_(tensors[f"{moment}/{name}"])
                for profile, averaged in zip(self.ema.profiles, self.ema.params, strict=True):
                    averaged[i].copy_(tensors[f"ema-{profile:.3f}/{name}"])
            for name, momentum in zip(self.muon_names, self.muon.momentum, strict=True):
                momentum.copy_(tensors[f"momentum/{name}"])
        self.images_seen, self.attempt = int(meta["images_seen"]), int(meta["attempt"])
        self.lr_scale, self.seconds = float(meta["lr_scale"]), float(meta["seconds"])
        self.skipped.fill_(meta["skipped"])
        self.bad_run.fill_(meta["bad_run"])
        self.max_bad_run.fill_(meta.get("max_bad_run", meta["bad_run"]))

    def _check_fits(self, tensors: dict[str, Tensor]) -> None:
        wanted = {f"param/{name}": p.shape for name, p in zip(self.names, self.params, strict=True)}
        wanted |= {f"momentum/{name}": m.shape for name, m in zip(self.muon_names, self.muon.momentum, strict=True)}
        found = {name: x.shape for name, x in tensors.items() if name.startswith(("param/", "momentum/"))}
        if odd := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
            raise ConfigError(
                f"the checkpoint does not fit this network: {odd[0]} is {_shape(found, odd[0])}, expected "
                f"{_shape(wanted, odd[0])}; it was made by another version of cdm: use that one, or a new --out."
            )


def _shape(shapes: dict[str, torch.Size], name: str) -> str:
    return str(tuple(shapes[name])) if name in shapes else "nothing"


def _is_inner(name: str, weight: Tensor) -> bool:
    """Whether Muon may take it: a matrix or convolution inside the net, neither an embedding nor at one of its ends."""
    return weight.ndim >= 2 and not name.startswith(("first.", "last.", "direct.", "embed_"))


def _rows(batch: Batch, rows: slice) -> Batch:
    return Batch(batch.x0[rows], None if batch.labels is None else batch.labels[rows], batch.index[rows])
