"""``cdm info``: what is in a run folder."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from cdm.artifacts import load_tensors, weights_hash
from cdm.cascade import load_config
from cdm.cli.options import Info
from cdm.config import CascadeConfig, StageConfig
from cdm.nn.flops import count_flops, count_parameters


def run_info(options: Info) -> None:
    run = Path(options.run)
    config = load_config(run)
    console = Console()
    classes = ", ".join(config.class_names[:12]) + (", ..." if config.num_classes > 12 else "")
    console.print(f"{run}: recipe {config.recipe}, seed {config.seed}, {config.num_classes or 'no'} classes"
                  + (f": {classes}" if classes else ""), markup=False, highlight=False)  # fmt: skip
    console.print(_table(run, config))
    sampling = config.sampling
    console.print(
        f"sampling by default: {sampling.sampler}, steps {list(sampling.steps) or 'default'}, "
        f"augmentation level {list(sampling.aug_level) or 'default 0.2'}, {sampling.hand_over}",
        markup=False, highlight=False,
    )  # fmt: skip
    if options.bits_per_dim is not None:
        from cdm.pipeline.bits import bits_per_dim  # imports torch's heavier half and the data readers

        for line in bits_per_dim(run, options.bits_per_dim, options.num, options.device, options.precision):
            console.print(line, markup=False, highlight=False)


def _table(run: Path, config: CascadeConfig) -> Table:
    table = Table()
    for title in ("stage", "predicts", "schedule", "augmentation", "parameters", "GFLOPs", "images seen", "EMA weights"):
        table.add_column(title)
    for index, stage in enumerate(config.stages):
        seen, digest = _weights(run / f"{index}-{stage.size}")
        table.add_row(
            f"{index}-{stage.size}", _prediction(stage), stage.schedule.kind, _augmentation(stage),
            f"{count_parameters(stage.net) / 1e6:.2f} M", f"{count_flops(stage.net, stage.size) / 1e9:.2f}", seen, digest,
        )  # fmt: skip
    return table


def _prediction(stage: StageConfig) -> str:
    return stage.prediction + (" + variance" if stage.variance == "learned" else "")


def _augmentation(stage: StageConfig) -> str:
    own = stage.augmentation
    if own.kind == "gaussian":
        return f"gaussian, s in {own.level_min:g}..{own.level_max:g}"
    if own.kind == "blur":
        return f"blur, sigma {own.blur_min:g}..{own.blur_max:g}"
    return "none"


def _weights(folder: Path) -> tuple[str, str]:
    """Images seen and hash of the stage's EMA weights, or that it is not trained."""
    found = sorted(folder.glob("ema-*.safetensors")) or sorted(folder.glob("model.safetensors"))
    if not found:
        return "not trained", "-"
    tensors, meta = load_tensors(found[0])
    return f"{meta.get('images_seen', 0):,}", weights_hash(tensors)
