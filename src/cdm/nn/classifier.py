"""A small ResNet that reads images, and its training: the judge of generated letters."""

from __future__ import annotations

from math import cos, pi

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from cdm.errors import UserError
from cdm.rng import Purpose, Rng
from cdm.runtime import has_fast_bf16
from cdm.types import Image

FEATURES = 128
BATCH_SIZE = 128
LR = 4e-3
WEIGHT_DECAY = 0.02
WARMUP = 0.1  # share of the steps
SMOOTHING = 0.1
SHIFT = 1 / 10  # largest shift, as a share of the side
JITTER = 0.2  # largest change of a channel's contrast, and of its level in [-1, 1]


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
    """Four residual blocks at a half, a quarter, an eighth and an eighth of the side; any side from 16 pixels up."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 32, 3, padding=1)
        self.blocks = nn.Sequential(
            _ResBlock(32, 32, stride=2),
            _ResBlock(32, 64, stride=2),
            _ResBlock(64, FEATURES, stride=2),
            _ResBlock(FEATURES, FEATURES, stride=1),
        )
        self.last = nn.Linear(FEATURES, num_classes)

    def features(self, x: Image) -> Float[Tensor, "b 128"]:
        """What the last layer sees, ``x`` in [-1, 1]."""
        return self.blocks(F.relu(self.first(x.to(memory_format=torch.channels_last)))).mean(dim=(2, 3))

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


def train_classifier(
    images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"], *, epochs: int, seed: int, augment: bool = True
) -> Classifier:
    """A classifier of ``labels.max() + 1`` classes, trained on the device of ``images``; returned for evaluation.

    Order, augmentation and initial weights are functions of ``seed``. AdamW, label smoothing, the learning rate
    rising over the first tenth and falling as a cosine to 0; in bfloat16 where that is fast.

    Raises:
        UserError: fewer images than one batch.
    """
    if len(images) < BATCH_SIZE:
        raise UserError(f"a classifier needs at least {BATCH_SIZE} images to learn from; got {len(images)}: give more.")
    device, rng = images.device, Rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.torch_seed(Purpose.INIT))
        net = Classifier(images.shape[1], int(labels.max()) + 1)
    net.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=WEIGHT_DECAY, fused=True)
    per_epoch = len(images) // BATCH_SIZE
    orders = (rng.permutation(Purpose.ORDER, len(images), step=epoch) for epoch in range(epochs))
    batches = (rows for order in orders for rows in order.to(device).split(BATCH_SIZE)[:per_epoch])
    for step, rows in enumerate(batches):
        x = to_float(images[rows])
        if augment:
            x = augmented(x, rng, torch.arange(step * BATCH_SIZE, (step + 1) * BATCH_SIZE))
        for group in optimizer.param_groups:
            group["lr"] = LR * _lr_factor(step / (epochs * per_epoch))
        with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
            logits = net(x)
        loss = F.cross_entropy(logits.float(), labels[rows], label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def _lr_factor(done: float) -> float:
    """``done``: share of the training behind us."""
    return done / WARMUP if done < WARMUP else (1 + cos(pi * (done - WARMUP) / (1 - WARMUP))) / 2


@torch.no_grad()
def predict(net: Classifier, images: UInt8[Tensor, "n c h w"]) -> Int64[Tensor, " n"]:
    """The class that ``net`` reads, in float32."""
    net.eval()
    return torch.cat([net(to_float(part)).argmax(dim=1) for part in images.split(512)])


def accuracy(net: Classifier, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"]) -> float:
    """Share of images read as labelled."""
    return (predict(net, images) == labels).double().mean().item()
