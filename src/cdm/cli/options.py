"""What each command takes. No torch here: ``cdm --help`` must be quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, UseAppendAction, arg


def _default(shown: str) -> str:
    """The default in the help text, where it tells something."""
    return "" if shown in ("None", "False", "''", "") else f"(default: {shown})"


def _may(metavar: str | None = None, **options: Any) -> Any:
    """An option that may be left out."""
    return arg(metavar=metavar, help_behavior_hint=_default, **options)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a cascade on a folder or zip of images. The same command again resumes."""

    data: Annotated[Positional[str], arg(metavar="DATA")]
    """Folder or zip of class folders (or of plain images), or builtin:letters."""
    out: Annotated[str, arg(metavar="RUN")]
    """Run folder to make or go on with."""
    recipe: Annotated[str, _may("NAME")] = "small"
    """small, demo, cdm-imagenet-64, cdm-imagenet-128 or cdm-imagenet-256."""
    minutes: Annotated[float | None, _may("M")] = None
    """Budget in all, for all stages (default: 60)."""
    images: Annotated[int | None, _may("N")] = None
    """Budget in images seen per stage, instead of minutes."""
    sizes: Annotated[str | None, _may("A,B,..")] = None
    """Stage sizes from the base up, as 16,64 (default: from the data)."""
    batch_size: Annotated[str | None, _may("A,B,..")] = None
    """Images per update, of all or of each stage (default: the recipe's)."""
    augmentation: Annotated[str | None, _may("KIND[,..]")] = None
    """Of all or of each SR stage: gaussian, blur, gaussian+blur or none."""
    aug_levels: Annotated[str | None, _may("A:B[,..]")] = None
    """Levels trained at, as 0:0.6, or one as 0.2 (default: the recipe's)."""
    aug_density: Annotated[str | None, _may("NAME[,..]")] = None
    """Levels uniform in s, or in logsnr (default: the recipe's)."""
    stage: Annotated[int | None, _may("K")] = None
    """Train this stage alone; 0 is the base."""
    val: Annotated[str | None, _may("DATA")] = None
    """Images to validate on (default: a held-out share)."""
    val_fraction: Annotated[float, _may("F")] = 0.05
    """Held-out share, chosen by content."""
    channels: Annotated[int, _may("N")] = 3
    """3 colour, 1 grey (16 bits are kept), or more (.npy)."""
    flip: Annotated[bool, _may()] = False
    """Mirror half of the images (not for letters)."""
    balanced: Annotated[bool, _may()] = False
    """Show every class equally often."""
    seed: Annotated[int, _may("N")] = 0
    """Seed of weights, order and noise."""
    device: Annotated[str | None, _may("NAME")] = None
    """cpu, cuda, cuda:1 (default: the best there is)."""
    precision: Annotated[str, _may("NAME")] = "auto"
    """auto (bf16 where it is fast), fp32 or bf16."""
    threads: Annotated[int | None, _may("N")] = None
    """CPU threads (default: all that may be used)."""
    keep: Annotated[int, _may("N")] = 2
    """Checkpoints and EMA snapshots kept."""
    checkpoint_images: Annotated[int | None, _may("N")] = None
    """Images between checkpoints (default: about a minute)."""
    allow_changed_data: Annotated[bool, _may()] = False
    """Resume although the data has changed."""
    dry_run: Annotated[bool, _may()] = False
    """Print stages, parameters, FLOPs, memory and time, and stop."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Sample images from a trained cascade."""

    run: Annotated[Positional[str], _may("RUN")] = ""
    """Run folder (not needed with --again)."""
    class_names: Annotated[UseAppendAction[tuple[str, ...]], _may("NAME", name="class")] = ()
    """Class by name; may be repeated (default: every class)."""
    num: Annotated[int, _may("N", name="num", aliases=("-n",))] = 4
    """Images per class."""
    seed: Annotated[int, _may("N")] = 0
    """The same seed gives the same images."""
    quality: Annotated[str | None, _may("Q")] = None
    """fast, balanced or best: 8,4, 32,16 or 128,64 steps, or as cdm tune found."""
    steps: Annotated[str | None, _may("A,B,..")] = None
    """Steps per stage from the base up (default: the run's, else 32,16,16)."""
    sampler: Annotated[str | None, _may("NAME[,..]")] = None
    """dpmpp, dpmpp_sde, ddim, ddpm, ddpm_large, heun or heun_churn, for all or
    each stage (default: the run's, else dpmpp)."""
    grid: Annotated[str | None, _may("NAME[,..]")] = None
    """logsnr, edm or cosine, for all or each stage (default: the run's)."""
    threshold: Annotated[float | None, _may("P")] = None
    """Dynamic thresholding at this percentile, as 0.995 (default: none)."""
    aug_level: Annotated[str | None, _may("S[,S]")] = None
    """Augmentation level in 0..1: one, or one per SR stage (default: the run's,
    else 0.2)."""
    hand_over: Annotated[str | None, _may("HOW")] = None
    """non_truncated or truncated (default: the run's, else non_truncated)."""
    stage: Annotated[int | None, _may("K")] = None
    """Stop after this stage; 0 is the base."""
    weights: Annotated[str, _may("NAME")] = "ema"
    """ema, raw, or an EMA profile such as 0.100."""
    out: Annotated[str | None, _may("DIR")] = None
    """Where to write (default: RUN/samples; with --again beside FILE)."""
    force: Annotated[bool, _may()] = False
    """Overwrite other files that are there (the same command goes on)."""
    again: Annotated[str | None, _may("FILE.png")] = None
    """Remake this image from what is stored in it."""
    batch_size: Annotated[str, _may("N")] = "auto"
    """Images at once; auto: by the memory."""
    offload: Annotated[bool, _may()] = False
    """Idle stages wait off the GPU."""
    device: Annotated[str | None, _may("NAME")] = None
    """cpu, cuda, cuda:1 (default: the best there is)."""
    precision: Annotated[str, _may("NAME")] = "auto"
    """auto (bf16 where it is fast), fp32, bf16, fp16."""
    threads: Annotated[int | None, _may("N")] = None
    """CPU threads (default: all that may be used)."""


@dataclass(frozen=True, kw_only=True)
class Upscale:
    """Run the SR stages on your own small images."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Run folder of a trained cascade."""
    images: Annotated[Positional[tuple[str, ...]], arg(metavar="IMAGE", help_behavior_hint="(one or more)")]
    """Image files; resized to the base's size where they differ."""
    class_name: Annotated[str | None, _may("NAME", name="class")] = None
    """Class of the images, if known."""
    seed: Annotated[int, _may("N")] = 0
    """The same seed gives the same images."""
    steps: Annotated[str | None, _may("A,B,..")] = None
    """Steps per SR stage."""
    aug_level: Annotated[str | None, _may("S[,S]")] = None
    """Augmentation level in 0..1: one, or one per SR stage."""
    out: Annotated[str | None, _may("DIR")] = None
    """Where to write (default: RUN/upscaled)."""
    force: Annotated[bool, _may()] = False
    """Overwrite files that are there."""
    device: Annotated[str | None, _may("NAME")] = None
    """cpu, cuda, cuda:1 (default: the best there is)."""
    precision: Annotated[str, _may("NAME")] = "auto"
    """auto (bf16 where it is fast), fp32, bf16, fp16."""
    threads: Annotated[int | None, _may("N")] = None
    """CPU threads (default: all that may be used)."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a run, or images, against real ones: report.json and report.html."""

    subject: Annotated[Positional[str], arg(metavar="RUN|IMAGES")]
    """Run folder; or a folder, zip or .npz of generated images."""
    data: Annotated[str, arg(metavar="VAL")]
    """Real images kept from training, or an .npz of statistics."""
    out: Annotated[str, arg(metavar="DIR")]
    """Where to write; the same command again goes on."""
    train_data: Annotated[str | None, _may("TRAIN")] = None
    """Real images of the training (default: as the run recorded)."""
    num: Annotated[int | None, _may("N", name="num", aliases=("-n",))] = None
    """Images judged (default: as VAL has, 2,048 to 10,000)."""
    seed: Annotated[int | None, _may("N")] = None
    """Seed of the generated images (default: 0)."""
    steps: Annotated[str | None, _may("A,B")] = None
    """Steps per stage, as in cdm sample."""
    sampler: Annotated[str | None, _may("A,B")] = None
    """As in cdm sample."""
    grid: Annotated[str | None, _may("A,B")] = None
    """As in cdm sample."""
    threshold: Annotated[float | None, _may("P")] = None
    """As in cdm sample."""
    aug_level: Annotated[str | None, _may("S")] = None
    """Augmentation level, as in cdm sample."""
    hand_over: Annotated[str | None, _may("HOW")] = None
    """non_truncated or truncated, as in cdm sample."""
    weights: Annotated[str | None, _may("W")] = None
    """ema, raw, or an EMA profile such as 0.100 (default: ema)."""
    metrics: Annotated[str | None, _may("A,B")] = None
    """Default: fd,sfid,kid,is,prdc,cas,memorisation,diagnosis."""
    extractors: Annotated[str | None, _may("A,B")] = None
    """Some of domain,inception,dinov2,resnet50,custom:MODULE:FUNCTION
    (default: domain, and inception where its weights are)."""
    extractor_weights: Annotated[UseAppendAction[tuple[str, ...]], _may("NAME=PATH")] = ()
    """Where the weights of an extractor are; may be repeated."""
    unverified_weights: Annotated[bool, _may()] = False
    """Take other than the published weights, and mark them."""
    save: Annotated[str | None, _may("PATH")] = None
    """Keep the images: a folder, .zip or .npz."""
    save_statistics: Annotated[str | None, _may("FILE.npz")] = None
    """Keep Inception's statistics of VAL for ADM's evaluator."""
    force: Annotated[bool, _may()] = False
    """Compute on too few images too (marked); overwrite --save and
    --save-statistics."""
    batch_size: Annotated[int, _may("N")] = 64
    """Images at once; fewer need less memory."""
    device: Annotated[str | None, _may("NAME")] = None
    """cpu, cuda, cuda:1 (default: the best there is)."""
    precision: Annotated[str | None, _may("NAME")] = None
    """Of a run: auto (default: bf16 where it is fast), fp32, bf16, fp16."""
    threads: Annotated[int | None, _may("N")] = None
    """CPU threads (default: all that may be used)."""
    dry_run: Annotated[bool, _may()] = False
    """Print what would be measured with how many images, and stop."""


@dataclass(frozen=True, kw_only=True)
class Tune:
    """Search how a run is best sampled, and make it the run's default."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Run folder of a trained cascade."""
    data: Annotated[str, arg(metavar="VAL")]
    """Real images kept from training."""
    train_data: Annotated[str | None, _may("TRAIN")] = None
    """Real images of the training (default: as the run recorded)."""
    minutes: Annotated[float, _may("M")] = 30.0
    """Budget of sampling and measuring; the same command again goes on."""
    axis: Annotated[str, _may("A[,B]")] = "steps"
    """steps (sampler, grid, evaluations), level (augmentation level), or both."""
    hand_over: Annotated[str, _may("HOW")] = "both"
    """Of the level: non_truncated, truncated, or both and the better one."""
    metric: Annotated[str, _may("NAME")] = "fd"
    """Of the level: fd or kid, on domain features."""
    levels: Annotated[str | None, _may("A:B")] = None
    """Levels to search, as 0:0.4 (default: what each stage was trained at)."""
    num: Annotated[int, _may("N", name="num", aliases=("-n",))] = 1024
    """Images of each candidate."""
    seed: Annotated[int, _may("N")] = 0
    """Seed of the images, the same for all candidates."""
    batch_size: Annotated[int, _may("N")] = 128
    """Images at once; fewer need less memory."""
    device: Annotated[str | None, _may("NAME")] = None
    """cpu, cuda, cuda:1 (default: the best there is)."""
    precision: Annotated[str, _may("NAME")] = "auto"
    """auto (bf16 where it is fast), fp32, bf16, fp16."""
    threads: Annotated[int | None, _may("N")] = None
    """CPU threads (default: all that may be used)."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Put several evaluations into one table."""

    reports: Annotated[Positional[tuple[str, ...]], arg(metavar="REPORT", help_behavior_hint="(two or more)")]
    """report.json files of cdm evaluate, or their folders."""
    out: Annotated[str | None, _may("FILE.html")] = None
    """Write the table as a page too."""
    force: Annotated[bool, _may()] = False
    """Overwrite the page if it is there."""


@dataclass(frozen=True, kw_only=True)
class Info:
    """Tell what is in a run folder."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Run folder."""
    bits_per_dim: Annotated[str | None, _may("DATA")] = None
    """Variational bound on these images, per stage."""
    num: Annotated[int | None, _may("N", name="num", aliases=("-n",))] = None
    """Images for the bound (64)."""
    device: Annotated[str | None, _may("NAME")] = None
    """cpu, cuda, cuda:1 (default: the best there is)."""
    precision: Annotated[str, _may("NAME")] = "auto"
    """auto (bf16 where it is fast), fp32, bf16, fp16."""


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Upscale, tyro.conf.subcommand("upscale")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Tune, tyro.conf.subcommand("tune")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Info, tyro.conf.subcommand("info")]
)
