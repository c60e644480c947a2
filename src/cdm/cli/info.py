"""``cdm info``: what is in a run folder."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from cdm.artifacts import load_tensors, weights_hash
from cdm.cascade import load_config
from cdm.cli.options import Info
from cdm.cli.say import say
from cdm.config import CascadeConfig, SamplingConfig, StageConfig
from cdm.errors import UserError
from cdm.nn.flops import count_flops, count_parameters
from cdm.settings import QUALITIES, make_settings

BOUND_IMAGES = 64


def run_info(options: Info) -> None:
    if options.bits_per_dim is None:
        given = {"-n": options.num, "--device": options.device, "--precision": options.precision}
        for flag, value in given.items():
            if value not in (None, "auto"):
                raise UserError(f"got {flag} {value} without --bits-per-dim; expected both: {flag} is for the bound.")
    if options.num is not None and options.num < 1:
        raise UserError(f"-n is {options.num}; expected at least 1 image for the bound.")
    run = Path(options.run)
    config = load_config(run)
    classes = ", ".join(config.class_names[:12]) + (", ..." if config.num_classes > 12 else "")
    say(
        f"{run}: {' -> '.join(map(str, config.sizes))} pixels, recipe {config.recipe}, seed {config.seed}, "
        + (f"{config.num_classes} classes: {classes}" if classes else "no classes")
    )
    Console().print(_table(run, config))
    say(f"sampling by default: {_words(make_settings(config))}")
    for quality in QUALITIES if config.qualities else ():
        say(f"--quality {quality}: {_words(make_settings(config, quality=quality))}")
    if options.bits_per_dim is not None:
        from cdm.pipeline.bits import bits_per_dim  # imports the data readers

        for line in bits_per_dim(
            run, options.bits_per_dim, options.num or BOUND_IMAGES, options.device, options.precision
        ):
            say(line)


def _table(run: Path, config: CascadeConfig) -> Table:
    """A column for each stage, so that it fits a narrow screen."""
    columns = {f"{k}-{stage.size}": _facts(run / f"{k}-{stage.size}", stage) for k, stage in enumerate(config.stages)}
    table = Table("stage", *columns)
    for fact in next(iter(columns.values())):
        table.add_row(fact, *(facts[fact] for facts in columns.values()))
    return table


def _facts(folder: Path, stage: StageConfig) -> dict[str, str]:
    seen, digest = _weights(folder)
    return {
        "trained on": seen,
        "EMA weights": digest,
        "parameters": f"{count_parameters(stage.net) / 1e6:.2f} M",
        "GFLOPs per step": f"{count_flops(stage.net, stage.size) / 1e9:.2f}",
        "predicts": stage.prediction + (" and variance" if stage.variance == "learned" else ""),
        "schedule": stage.schedule.kind,
        "augmentation": _augmentation(stage),
    }


def _augmentation(stage: StageConfig) -> str:
    own, told = stage.augmentation, []
    if own.has_blur:
        told.append(f"blur, sigma {own.blur_min:g} to {own.blur_max:g}")
    if own.has_noise:
        density = ", even in log-SNR" if own.level_density == "logsnr" else ""
        told.append(f"gaussian, {own.level_min:g} to {own.level_max:g}{density}")
    return "; ".join(told) or "none"


def _weights(folder: Path) -> tuple[str, str]:
    """Images seen and hash of the stage's EMA weights, or that it is not trained."""
    found = sorted(folder.glob("ema-*.safetensors")) or sorted(folder.glob("model.safetensors"))
    if not found:
        return "nothing yet", "-"
    tensors, meta = load_tensors(found[0])
    return f"{meta.get('images_seen', 0):,} images", weights_hash(tensors)


def _words(settings: SamplingConfig) -> str:
    """All that a call takes unless it says otherwise."""
    told = [settings.sampler, f"grid {settings.grid}", f"evaluations {'+'.join(map(str, settings.steps))}"]
    if settings.aug_level:
        told += [f"aug-level {', '.join(f'{level:g}' for level in settings.aug_level)}"]
        told += [f"hand-over {settings.hand_over}"]
    if settings.threshold:
        told.append(f"dynamic thresholding at {settings.threshold:g}")
    return ", ".join(told)
