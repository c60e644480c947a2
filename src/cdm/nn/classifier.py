"""A small ResNet that reads images, and its training: with labels, or by telling images apart.

It judges generated letters, makes the features of ``cdm evaluate`` where none are downloaded, and is the network of the
classification accuracy score on small images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from math import cos, pi
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from cdm.errors import UserError
from cdm.rng import Purpose, Rng
from cdm.runtime import has_fast_bf16
from cdm.types import Image

Net = TypeVar("Net", bound=nn.Module)
Loss = Callable[[Int64[Tensor, " b"], Int64[Tensor, " b"]], Float[Tensor, ""]]
"""``loss(rows, positions)``: of the images ``rows``, which stand at ``positions`` of the training stream."""
Progress = Callable[[float], None]
"""``progress(done)``: share of a training that is behind us, in [0, 1]."""

FEATURES = 128
BATCH_SIZE = 128
LR = 4e-3
WEIGHT_DECAY = 0.02
WARMUP = 0.1  # share of the steps
SMOOTHING = 0.1
SHIFT = 1 / 10  # largest shift, as a share of the side
JITTER = 0.2  # largest change of a channel's contrast, and of its level in [-1, 1]
TEMPERATURE = 0.2  # of instance discrimination


class _ResBlock(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.norm_in = nn.BatchNorm2d(out)
        self.conv_out = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm_out = nn.BatchNorm2d(out)
        self.skip = nn.Conv2d(channels, out, 1, stride=stride) if stride > 1 or channels != out else nn.Identity()

    def forward(self, x: Float[Tensor, "b _ _ _"]) -> Float[Tensor, "b _ _ _"]:
        h = F.relu(self.norm_in(self.conv_in(x)))
        return F.relu(self.norm_out(self.conv_out(h)) + self.skip(x))


class Classifier(nn.Module):
    """Four residual blocks at a half, a quarter, an eighth and an eighth of the side; any side from 16 pixels up.

    ``patch`` 2: takes pixels two by two as channels, so it costs what half the side does and sees as much.
    """

    def __init__(self, channels: int, num_classes: int, patch: int = 1) -> None:
        super().__init__()
        self.patch = patch
        self.first = nn.Conv2d(channels * patch * patch, 32, 3, padding=1)
        self.blocks = nn.Sequential(
            _ResBlock(32, 32, stride=2),
            _ResBlock(32, 64, stride=2),
            _ResBlock(64, FEATURES, stride=2),
            _ResBlock(FEATURES, FEATURES, stride=1),
        )
        self.last = nn.Linear(FEATURES, num_classes)

    def features(self, x: Image) -> Float[Tensor, "b 128"]:
        """What the last layer sees, ``x`` in [-1, 1]; its sides must be multiples of ``patch``."""
        x = F.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last)
        return self.blocks(F.relu(self.first(x))).mean(dim=(2, 3))

    def forward(self, x: Image) -> Float[Tensor, "b classes"]:
        """Logits, ``x`` in [-1, 1]."""
        return self.last(self.features(x))


def to_float(images: UInt8[Tensor, "b c h w"]) -> Image:
    """[0, 255] to [-1, 1]."""
    return images.float() / 127.5 - 1


def augmented(x: Image, rng: Rng, positions: Int64[Tensor, " b"]) -> Image:
    """Shifted by up to a tenth of the side (edges repeat), contrast and level of each channel changed a little.

    A pure function of the positions in the training stream. No flips: letters are chiral.
    """
    b, c, height, width = x.shape
    u = rng.uniform(Purpose.AUGMENT, positions, (2 + 2 * c,)).float().to(x.device)
    reach = round(SHIFT * height), round(SHIFT * width)
    rows, columns = (
        ((u[:, i] * (2 * r + 1)).floor().long()[:, None] - r + torch.arange(n, device=x.device)).clamp(0, n - 1)
        for i, r, n in ((0, reach[0], height), (1, reach[1], width))
    )
    sample, channel = torch.arange(b, device=x.device), torch.arange(c, device=x.device)
    shifted = x[sample[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]
    contrast, level = ((2 * u[:, 2:] - 1) * JITTER)[:, :, None, None].chunk(2, dim=1)
    return shifted * (1 + contrast) + level


# ---- training --------------------------------------------------------------------------------------------------------


def initialised(build: Callable[[], Net], seed: int, device: torch.device) -> Net:
    """The net that ``build`` makes, its initial weights a function of ``seed``, on ``device`` in channels-last."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Rng(seed).torch_seed(Purpose.INIT))
        net = build()
    return net.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def fit(
    net: Net,
    loss: Loss,
    images: int,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    lr: float = LR,
    progress: Progress | None = None,
) -> Net:
    """``net`` trained on ``steps`` batches of a data set of ``images`` images and returned for evaluation.

    Every image comes once before any comes again, in an order that is a function of ``seed``. AdamW, the learning rate
    rising over the first tenth and falling as a cosine to 0; in bfloat16 where that is fast.
    """
    device = next(net.parameters()).device
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=WEIGHT_DECAY, fused=True)
    batches = _batches(Rng(seed), images, batch_size)
    net.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * _lr_factor(step / steps)
        positions = torch.arange(step * batch_size, (step + 1) * batch_size)
        with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
            value = loss(next(batches), positions)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if progress is not None:
            progress((step + 1) / steps)
    return net.eval()


def _batches(rng: Rng, images: int, batch_size: int) -> Iterator[Int64[Tensor, " b"]]:
    """Rows of the images, epoch after epoch without end; a batch may lie across epochs."""
    waiting = torch.empty(0, dtype=torch.int64)
    for epoch in count():
        waiting = torch.cat([waiting, rng.permutation(Purpose.ORDER, images, step=epoch)])
        while len(waiting) >= batch_size:
            yield waiting[:batch_size]
            waiting = waiting[batch_size:]


def _lr_factor(done: float) -> float:
    """``done``: share of the training behind us."""
    return done / WARMUP if done < WARMUP else (1 + cos(pi * (done - WARMUP) / (1 - WARMUP))) / 2


def classification(
    net: Callable[[Image], Float[Tensor, "b classes"]],
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    seed: int,
    device: torch.device,
    augment: bool = True,
) -> Loss:
    """Cross-entropy with label smoothing of the logits of ``net``."""
    rng = Rng(seed)

    def loss(rows: Int64[Tensor, " b"], positions: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        rows = rows.to(images.device)
        x = to_float(images[rows].to(device))
        logits = net(augmented(x, rng, positions) if augment else x)
        return F.cross_entropy(logits.float(), labels[rows].to(device), label_smoothing=SMOOTHING)

    return loss


def discrimination(
    net: Callable[[Image], Float[Tensor, "b d"]], images: UInt8[Tensor, "n c h w"], *, seed: int, device: torch.device
) -> Loss:
    """Instance discrimination: which of a batch is another view of the same image (van den Oord et al. 2018, eq. 4).

    Two views of each image, and each must find the other among all views of the batch by the cosine of ``net`` (Chen
    et al. 2020, eq. 1). Other copies of the same image, which small data sets bring, are left out.
    """
    rngs = Rng(seed), Rng(seed, stage=1)

    def loss(rows: Int64[Tensor, " b"], positions: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        rows = rows.to(images.device)
        x = to_float(images[rows].to(device))
        outputs = net(torch.cat([augmented(x, rng, positions) for rng in rngs])).float()
        unit = F.normalize(outputs, dim=1)
        partner = torch.arange(2 * len(rows), device=device).roll(len(rows))
        same = (rows[:, None] == rows[None, :]).to(device).repeat(2, 2)
        same[torch.arange(2 * len(rows), device=device), partner] = False
        cosine = (unit @ unit.T / TEMPERATURE).masked_fill(same, -torch.inf)
        return F.cross_entropy(cosine, partner)

    return loss


def train_classifier(
    images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"], *, epochs: int, seed: int, augment: bool = True
) -> Classifier:
    """A classifier of ``labels.max() + 1`` classes, trained on the device of ``images``; returned for evaluation.

    Order, augmentation and initial weights are functions of ``seed``.

    Raises:
        UserError: fewer images than one batch.
    """
    if len(images) < BATCH_SIZE:
        raise UserError(f"a classifier needs at least {BATCH_SIZE} images to learn from; got {len(images)}: give more.")
    classes = int(labels.max()) + 1
    net = initialised(lambda: Classifier(images.shape[1], classes), seed, images.device)
    loss = classification(net, images, labels, seed=seed, device=images.device, augment=augment)
    steps = epochs * (len(images) // BATCH_SIZE)
    return fit(net, loss, len(images), steps=steps, batch_size=BATCH_SIZE, seed=seed)


# ---- reading ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def predict(net: Classifier, images: UInt8[Tensor, "n c h w"]) -> Int64[Tensor, " n"]:
    """The class that ``net`` reads, in float32."""
    net.eval()
    return torch.cat([net(to_float(part)).argmax(dim=1) for part in images.split(512)])


def accuracy(net: Classifier, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"]) -> float:
    """Share of images read as labelled."""
    return (predict(net, images) == labels).double().mean().item()
