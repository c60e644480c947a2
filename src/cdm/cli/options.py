"""What each command takes. No torch here: ``cdm --help`` must be quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

_Text = arg(metavar="TEXT")
_Number = arg(metavar="N")


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a cascade on a folder or zip of images. The same command again resumes."""

    data: Annotated[Positional[str], arg(metavar="DATA")]
    """Folder or zip of class folders (or of plain images), or builtin:letters."""
    out: Annotated[str, arg(metavar="RUN")]
    """Run folder to make or go on with."""
    recipe: Annotated[str, arg(metavar="NAME")] = "small"
    """small, demo, cdm-imagenet-64, cdm-imagenet-128 or cdm-imagenet-256."""
    minutes: Annotated[float | None, arg(metavar="M")] = None
    """Budget in all, for all stages (default 60)."""
    images: Annotated[int | None, _Number] = None
    """Budget in images seen per stage, instead of minutes."""
    sizes: Annotated[str | None, arg(metavar="A,B,..")] = None
    """Stage sizes from the base up, as 16,64 (default: from the data)."""
    stage: Annotated[int | None, arg(metavar="K")] = None
    """Train this stage alone; 0 is the base."""
    val: Annotated[str | None, arg(metavar="DATA")] = None
    """Images to validate on (default: a held-out share)."""
    val_fraction: Annotated[float, arg(metavar="F")] = 0.05
    """Held-out share, chosen by file name."""
    channels: Annotated[int, _Number] = 3
    """3 colour, 1 grey (16 bits are kept), or more (.npy)."""
    flip: bool = False
    """Mirror half of the images (not for letters)."""
    balanced: bool = False
    """Show every class equally often."""
    seed: Annotated[int, _Number] = 0
    device: Annotated[str | None, arg(metavar="NAME")] = None
    """cpu, cuda, cuda:1, mps (default: the best there is)."""
    precision: Annotated[str, arg(metavar="NAME")] = "auto"
    """auto (bf16 where it is fast), fp32, bf16, fp16."""
    threads: Annotated[int | None, _Number] = None
    """CPU threads (default: all cores)."""
    keep: Annotated[int, _Number] = 2
    """Checkpoints and EMA snapshots kept."""
    checkpoint_images: Annotated[int | None, _Number] = None
    """Images between checkpoints (default: about a minute)."""
    allow_changed_data: bool = False
    """Resume although the data has changed."""
    dry_run: bool = False
    """Print stages, parameters, FLOPs, memory and time, and stop."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Sample images from a trained cascade."""

    run: Annotated[Positional[str], arg(metavar="RUN")] = ""
    """Run folder (not needed with --again)."""
    class_names: Annotated[UseAppendAction[tuple[str, ...]], arg(name="class", metavar="NAME")] = ()
    """Class by name; may be repeated (default: every class)."""
    num: Annotated[int, arg(name="num", aliases=("-n",), metavar="N")] = 4
    """Images per class."""
    seed: Annotated[int, _Number] = 0
    steps: Annotated[str | None, arg(metavar="A,B,..")] = None
    """Steps per stage from the base up (default 32,16,16)."""
    sampler: Annotated[str | None, arg(metavar="NAME")] = None
    """dpmpp, ddim, ddpm or ddpm_large."""
    aug_level: Annotated[str | None, arg(metavar="S[,S]")] = None
    """Augmentation level in 0..1: one, or one per SR stage (default 0.2)."""
    hand_over: Annotated[str | None, arg(metavar="HOW")] = None
    """non_truncated or truncated."""
    stage: Annotated[int | None, arg(metavar="K")] = None
    """Stop after this stage; 0 is the base."""
    weights: Annotated[str, arg(metavar="NAME")] = "ema"
    """ema, raw, or an EMA profile such as 0.100."""
    out: Annotated[str | None, arg(metavar="DIR")] = None
    """Where to write (default RUN/samples)."""
    force: bool = False
    """Overwrite files that are there."""
    again: Annotated[str | None, arg(metavar="FILE.png")] = None
    """Remake this image from what is stored in it."""
    batch_size: Annotated[int, _Number] = 64
    device: Annotated[str | None, arg(metavar="NAME")] = None
    precision: Annotated[str, arg(metavar="NAME")] = "auto"
    threads: Annotated[int | None, _Number] = None


@dataclass(frozen=True, kw_only=True)
class Upscale:
    """Run the SR stages on your own small images."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    images: Annotated[Positional[tuple[str, ...]], arg(metavar="IMAGE")]
    """Image files; resized to the base's size where they differ."""
    class_name: Annotated[str | None, arg(name="class", metavar="NAME")] = None
    """Class of the images, if known."""
    seed: Annotated[int, _Number] = 0
    steps: Annotated[str | None, arg(metavar="A,B,..")] = None
    """Steps per SR stage."""
    aug_level: Annotated[str | None, arg(metavar="S[,S]")] = None
    """Augmentation level in 0..1: one, or one per SR stage."""
    out: Annotated[str | None, arg(metavar="DIR")] = None
    """Where to write (default RUN/upscaled)."""
    force: bool = False
    """Overwrite files that are there."""
    device: Annotated[str | None, arg(metavar="NAME")] = None
    precision: Annotated[str, arg(metavar="NAME")] = "auto"
    threads: Annotated[int | None, _Number] = None


@dataclass(frozen=True, kw_only=True)
class Info:
    """Tell what is in a run folder."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    bits_per_dim: Annotated[str | None, arg(metavar="DATA")] = None
    """Variational bound on these images, per stage (table schedules)."""
    num: Annotated[int, arg(name="num", aliases=("-n",), metavar="N")] = 64
    """Images for the bound."""
    device: Annotated[str | None, arg(metavar="NAME")] = None
    precision: Annotated[str, arg(metavar="NAME")] = "auto"


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Upscale, tyro.conf.subcommand("upscale")]
    | Annotated[Info, tyro.conf.subcommand("info")]
)
