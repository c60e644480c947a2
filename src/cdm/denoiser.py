"""The one place where noise and network meet: D(x_t, logsnr, cond) -> Prediction, whatever the network predicts."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from cdm.config import StageConfig
from cdm.nn.forward_graph import ForwardGraphs
from cdm.nn.unet import UNet
from cdm.noise.process import alpha_sigma, expand, to_x0_eps
from cdm.noise.schedule import Schedule, make_schedule, nearest_entry
from cdm.types import Cond, Dropout, Image, Labels, LogSNR, Prediction

TOLD_SCALE = 40.0
"""Log-SNR is told as -40 * logsnr: over its range about the 1000 units that sinusoidal embeddings are made for."""


@runtime_checkable  # beartype asks in tests
class Denoiser(Protocol):
    """What samplers and guidance see.

    ``logsnr_range``: noisiest and cleanest log-SNR it was trained at. ``table``: float64 ``[T]``, its discrete levels
    from clean to noisy, or None for a continuous one.
    """

    logsnr_range: tuple[float, float]
    table: Float[Tensor, " t"] | None

    def __call__(self, x_t: Image, logsnr: LogSNR, cond: Cond) -> Prediction: ...


class NetDenoiser:
    """A U-Net as a denoiser. float32 at the border, ``dtype`` inside the network only."""

    def __init__(self, net: UNet, config: StageConfig, dtype: torch.dtype = torch.float32) -> None:
        self.net = net
        self.config = config
        self.dtype = dtype
        self.schedule: Schedule = make_schedule(config.schedule)
        self.table = self.schedule.table
        self.logsnr_range = (self.schedule.logsnr_min, self.schedule.logsnr_max)
        self._graphs = ForwardGraphs(self._forward)

    def raw(self, x_t: Image, logsnr: LogSNR, cond: Cond, dropout: Dropout | None = None) -> tuple[Image, Image | None]:
        """The network's output on its own target, float32 and unclipped, and its variance fraction or None (0 at an
        output of -1, 1 at 1; nothing holds it in between, as in Nichol & Dhariwal 2021)."""
        x = x_t
        if self.config.prediction == "edm":  # c_in of x_t / alpha (Karras et al. 2022, table 1), in VP coordinates
            alpha, sigma = alpha_sigma(logsnr)
            x = x_t * expand(1 / torch.sqrt(sigma**2 + (alpha * self.config.sigma_data) ** 2), x_t)
        if cond.low_res is not None:
            x = torch.cat([x, cond.low_res], dim=1)
        x = x.contiguous(memory_format=torch.channels_last)
        aug = None if cond.aug_logsnr is None else -TOLD_SCALE * cond.aug_logsnr
        inputs = (x, self.told(logsnr), cond.labels, aug)
        if x.device.type == "cuda" and not torch.is_grad_enabled() and dropout is None:
            out = self._graphs(*inputs)
        else:
            out = self._forward(*inputs, dropout)
        if self.config.variance == "learned":
            out, fraction = out.chunk(2, dim=1)
            return out, (fraction + 1) / 2  # Nichol & Dhariwal 2021, eq. 15, with v = (output + 1) / 2
        return out, None

    def forget(self) -> None:
        """Free what recordings hold. To be called when weights went to another device, or ``dtype`` changed, too."""
        self._graphs.clear()

    def _forward(
        self,
        x: Image,
        told: Float[Tensor, " b"],
        labels: Labels | None,
        aug: Float[Tensor, " b"] | None,
        dropout: Dropout | None = None,
    ) -> Float[Tensor, "b _ h w"]:
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.net(x, told, labels, aug, dropout).float()

    def told(self, logsnr: LogSNR) -> Float[Tensor, " b"]:
        """What the raw net is told of the noise level."""
        if self.config.told == "logsnr":
            return -TOLD_SCALE * logsnr
        if self.config.told == "edm":  # 1000 * ln(sigma_edm) / 4, sigma_edm = exp(-logsnr / 2)
            return -125.0 * logsnr
        if self.table is None:
            return (1000 * self.schedule.t(logsnr.double())).float()
        return nearest_entry(self.table, logsnr).float()

    def predict(self, raw: Image, fraction: Image | None, x_t: Image, logsnr: LogSNR) -> Prediction:
        x0, eps = to_x0_eps(self.config.prediction, raw, x_t, logsnr, self.config.sigma_data)
        return Prediction(x0, eps, fraction)

    def __call__(self, x_t: Image, logsnr: LogSNR, cond: Cond) -> Prediction:
        raw, fraction = self.raw(x_t, logsnr, cond)
        return self.predict(raw, fraction, x_t, logsnr)
