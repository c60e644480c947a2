"""A cascade: ordered stages, and how images are sampled through them.

cascade = Cascade.load("runs/letters")
result = cascade.sample(labels=[0, 1, 2], seeds=[7, 8, 9])
result.images[-1]  # float32 [3, C, H, W] in [-1, 1]; result.images[0] is the base's
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cdm.artifacts import load_json
from cdm.conditioning import quantise, upsample
from cdm.config import CascadeConfig, ConfigError, SamplingConfig, from_dict
from cdm.errors import UserError
from cdm.noise.schedule import AUG_LOGSNR_MAX
from cdm.rng import Purpose, Rng
from cdm.runtime import choose_device, choose_dtype
from cdm.samplers import SAMPLERS
from cdm.samplers.grid import make_grid
from cdm.stage import Stage, build_stage, load_weights
from cdm.types import Cond, Image, Labels

DEFAULT_STEPS = (32, 16)
"""Network evaluations of the base, and of each SR stage."""
DEFAULT_AUG_LEVEL = 0.2

StageImage = Float[Tensor, "b c _ _"]
"""A batch of images of one stage among those of others, of another size."""

Progress = Callable[[int, int, int, Image], None]
"""``progress(stage, done, total, preview)`` after every sampler step; preview is x0_hat of the images under way."""


def image_seed(seed: int, index: int) -> int:
    """The one number that names an image's random stream: image ``index`` of ``--seed seed``."""
    return (seed << 32) + index


@dataclass(frozen=True)
class Samples:
    """What ``Cascade.sample`` gives.

    images: float32 ``[B, C, H, W]`` in [-1, 1] of every stage that ran, quantised as saved files are.
    labels: int64 ``[B]`` or None. seeds: int64 ``[B]``.
    evaluations: network evaluations per stage and image. saved_evaluations: those that truncation spared.
    """

    images: tuple[StageImage, ...]
    labels: Labels | None
    seeds: Int64[Tensor, " b"]
    evaluations: tuple[int, ...]
    saved_evaluations: tuple[int, ...]


class Cascade:
    """Ordered stages from the base up."""

    def __init__(self, config: CascadeConfig, stages: Sequence[Stage], device: torch.device | str = "cpu") -> None:
        self.config = config
        self.stages = tuple(stages)
        self.device = torch.device(device)

    @classmethod
    def load(
        cls,
        run: str | Path,
        *,
        weights: str = "ema",
        device: str | None = None,
        precision: str = "auto",
        stages: Sequence[int] | None = None,
    ) -> Cascade:
        """Read a run folder. ``weights``: ``ema``, ``raw`` or a profile (see ``stage.load_weights``). ``precision``:
        ``auto`` (bf16 where the machine is fast at it), ``fp32``, ``bf16`` or ``fp16``. ``stages``: the first so many
        only, as ``range(2)``; the others are not needed to be trained."""
        run = Path(run)
        config = load_config(run)
        chosen = choose_device(device)
        dtype = choose_dtype(precision, chosen)
        built = []
        for index in range(len(config.stages)) if stages is None else stages:
            stage = build_stage(config.stages[index], index, num_classes=config.num_classes, levels=config.data.levels)
            load_weights(stage, run / stage.name, weights)
            stage.net.eval().requires_grad_(False)
            built.append(stage.to(chosen, dtype))
        return cls(config, built, chosen)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.config.class_names

    @property
    def hash(self) -> str:
        """Names the weights of every stage."""
        return "-".join(stage.hash for stage in self.stages)

    def settings(
        self,
        *,
        steps: Sequence[int] | None = None,
        sampler: str | None = None,
        aug_level: float | Sequence[float] | None = None,
        hand_over: str | None = None,
        clip: bool | None = None,
    ) -> SamplingConfig:
        """The run's sampling defaults with what is given put over them, one entry per stage; wrong ones are
        ``UserError``."""
        own = self.config.sampling
        total = len(self.config.stages)
        default_steps = own.steps or (DEFAULT_STEPS[0],) + (DEFAULT_STEPS[1],) * (total - 1)
        given_steps = tuple(steps) if steps is not None else default_steps
        if len(given_steps) > total or not given_steps:
            raise UserError(
                f"got {len(given_steps)} numbers of steps for {total} stages; expected one per stage from the base up, "
                f"as {','.join(map(str, default_steps))}."
            )
        given_steps += default_steps[len(given_steps) :]
        if min(given_steps) < 1:
            raise UserError(f"got {min(given_steps)} steps; expected at least 1 for each stage.")
        for stage, count in zip(self.config.stages, given_steps, strict=True):
            longest = stage.schedule.num_timesteps if stage.schedule.kind.endswith("_table") else 100_000
            if count > longest:
                raise UserError(
                    f"got {count} steps for the stage at {stage.size}; it has {longest} noise levels at most."
                )
        levels = aug_level if aug_level is not None else (own.aug_level or DEFAULT_AUG_LEVEL)
        levels = (levels,) * (total - 1) if isinstance(levels, int | float) else tuple(levels)
        if len(levels) != total - 1:
            raise UserError(
                f"got {len(levels)} augmentation levels for {total - 1} SR stages; give one, or one for each."
            )
        for level in levels:
            if not 0 <= level <= 1:
                raise UserError(f"augmentation level {level} is out of range; expected 0 (none) to 1 (only noise).")
        name = sampler or own.sampler
        if name not in SAMPLERS:
            raise UserError(f"unknown sampler {name!r}; expected one of {', '.join(SAMPLERS)}.")
        hand = hand_over or own.hand_over
        if hand not in ("non_truncated", "truncated"):
            raise UserError(f"unknown hand-over {hand!r}; expected non_truncated or truncated.")
        return SamplingConfig(
            sampler=name,  # type: ignore[arg-type]
            steps=given_steps,
            aug_level=tuple(float(level) for level in levels),
            hand_over=hand,  # type: ignore[arg-type]
            clip=own.clip if clip is None else clip,
        )

    @torch.no_grad()
    def sample(
        self,
        labels: Sequence[int] | Labels | None = None,
        seeds: Sequence[int] | Int64[Tensor, " b"] | None = None,
        *,
        num_images: int | None = None,
        settings: SamplingConfig | None = None,
        stop_after: int | None = None,
        low_res: Image | None = None,
        batch_size: int = 64,
        progress: Progress | None = None,
        **options: object,
    ) -> Samples:
        """Sample images through the cascade.

        labels: class index per image; None for the null label (or a model without classes).
        seeds: one number per image; it alone decides the image's noise, so neither the label nor the batch matters.
            None: 0, 1, 2, ...
        settings: from ``settings()``; or give its keywords here (``steps``, ``sampler``, ``aug_level``, ``hand_over``).
        stop_after: the last stage to run; None: all.
        low_res: clean images ``[B, C, h, w]`` in [-1, 1] at the base's resolution, put in place of the base's own (the
            SR stages run on them).
        """
        settings = settings or self.settings(**options)  # type: ignore[arg-type]
        last = len(self.stages) - 1 if stop_after is None else stop_after
        if not 0 <= last < len(self.stages):
            raise UserError(f"got stage {last}; expected 0 to {len(self.stages) - 1}.")
        count = num_images or next((len(x) for x in (labels, seeds, low_res) if x is not None), 1)
        all_labels = None if labels is None else torch.as_tensor(labels, dtype=torch.int64)
        all_seeds = torch.arange(count) if seeds is None else torch.as_tensor(seeds, dtype=torch.int64)
        for name, given in (("labels", all_labels), ("seeds", all_seeds), ("low_res", low_res)):
            if given is not None and len(given) != count:
                raise UserError(f"got {len(given)} {name} for {count} images; expected one for each.")
        if (
            all_labels is not None
            and count
            and not 0 <= int(all_labels.min()) <= int(all_labels.max()) <= self.config.num_classes
        ):
            raise UserError(
                f"got labels from {int(all_labels.min())} to {int(all_labels.max())}; expected 0 to {self.config.num_classes - 1}."
            )
        parts: list[tuple[StageImage, ...]] = []
        evaluations: tuple[int, ...] = ()
        saved: tuple[int, ...] = ()
        for begin in range(0, count, batch_size):
            rows = slice(begin, min(begin + batch_size, count))
            chunk = _Chunk(
                labels=None if all_labels is None else all_labels[rows].to(self.device),
                seeds=all_seeds[rows],
                low_res=None if low_res is None else low_res[rows].to(self.device),
            )
            images, evaluations, saved = self._sample_chunk(chunk, settings, last, progress)
            parts.append(images)
        images = tuple(torch.cat(stage_images) for stage_images in zip(*parts, strict=True))
        return Samples(images, all_labels, all_seeds, evaluations, saved)

    def _sample_chunk(
        self, chunk: _Chunk, settings: SamplingConfig, last: int, progress: Progress | None
    ) -> tuple[tuple[StageImage, ...], tuple[int, ...], tuple[int, ...]]:
        images: list[Image] = []
        evaluations: list[int] = []
        saved: list[int] = []
        handed: Image | None = None  # x_t of a truncated stage
        handed_logsnr: float | None = None
        first = 0
        if chunk.low_res is not None:
            images.append(quantise(chunk.low_res, self.stages[0].levels))
            evaluations.append(0)
            saved.append(0)
            first = 1
        for stage in self.stages[first : last + 1]:
            rng = Rng(0, stage.index)
            labels = stage.check_labels(chunk.labels, len(chunk.seeds))
            cond = Cond(labels if labels is None else labels.to(self.device))
            if not stage.config.is_base:
                aug_logsnr = stage.aug_logsnr(settings.aug_level[stage.index - 1])
                if handed is not None:
                    assert handed_logsnr is not None
                    told = torch.full((len(handed),), handed_logsnr, device=self.device)
                    cond = Cond(cond.labels, upsample(handed, stage.config.size), told)
                else:
                    cond, _ = stage.condition(images[-1], cond.labels, aug_logsnr, rng, chunk.seeds)
            stop = self._truncation(stage, settings) if stage.index < last else None
            steps = settings.steps[stage.index]
            ran = run_stage(stage, cond, chunk.seeds, settings, steps, stop_at=stop, progress=progress)
            handed, handed_logsnr = (ran.x_t, ran.logsnr) if stop is not None else (None, None)
            images.append(ran.image)
            evaluations.append(ran.evaluations)
            saved.append(steps - ran.evaluations)
        return tuple(images), tuple(evaluations), tuple(saved)

    def _truncation(self, stage: Stage, settings: SamplingConfig) -> float | None:
        """Log-SNR at which ``stage`` stops and hands over x_t; None: run to the end (Ho et al. 2021, section 4.1)."""
        if settings.hand_over == "non_truncated":
            return None
        following = self.stages[stage.index + 1]
        stop = following.aug_logsnr(settings.aug_level[stage.index])
        if stop is None:
            raise UserError(
                f"the truncated hand-over needs a stage trained with Gaussian augmentation; stage {following.index} has "
                f"{following.config.augmentation.kind!r}: use --hand-over non_truncated."
            )
        if stop >= AUG_LOGSNR_MAX:
            return None  # level 0: nothing to truncate, one code path with the other hand-over
        low, high = stage.denoiser.logsnr_range
        if not low < stop < high:
            raise UserError(
                f"augmentation level {settings.aug_level[stage.index]} (log-SNR {stop:.2f}) lies outside what stage "
                f"{stage.index} can stop at ({low:.2f} to {high:.2f}); choose another level, or the non-truncated hand-over."
            )
        return stop


@dataclass(frozen=True)
class StageRun:
    """What one stage made. ``image``: x0_hat of the last step, quantised as saved files are; ``x_t`` at ``logsnr``: the
    sampler's end, handed over by truncation (otherwise the image before quantisation, at +inf)."""

    image: Image
    x_t: Image
    logsnr: float
    evaluations: int


@torch.no_grad()
def run_stage(
    stage: Stage,
    cond: Cond,
    seeds: Int64[Tensor, " b"],
    settings: SamplingConfig,
    steps: int,
    *,
    stop_at: float | None = None,
    progress: Progress | None = None,
) -> StageRun:
    """Sample one stage. All noise is a function of (seed of the image, stage, step)."""
    rng = Rng(0, stage.index)
    device = next(stage.net.parameters()).device
    table = stage.denoiser.table
    # ancestral sampling of a table takes every so many of its entries, as trained (Nichol & Dhariwal 2021, section 4)
    spacing = "index" if table is not None and settings.sampler.startswith("ddpm") else "logsnr"
    grid = make_grid(*stage.denoiser.logsnr_range, steps, table=table, stop_at=stop_at, spacing=spacing)

    def noise(i: int) -> Image:
        return rng.normal(Purpose.SAMPLER_NOISE, seeds, stage.shape, step=i).to(device)

    def clip(x0: Image) -> Image:
        return x0.clamp(-1, 1)

    x = rng.normal(Purpose.START_NOISE, seeds, stage.shape).to(device)
    step = None
    for step in SAMPLERS[settings.sampler](
        stage.denoiser, x, grid, cond, clip=clip if settings.clip else None, noise=noise
    ):
        if progress is not None:
            progress(stage.index, step.i + 1, len(grid) - 1, step.x0_hat)
    assert step is not None
    final = step.x0_hat if stop_at is not None else step.x_t
    return StageRun(quantise(final, stage.levels), step.x_t, step.logsnr, len(grid) - 1)


@dataclass(frozen=True)
class _Chunk:
    labels: Labels | None
    seeds: Int64[Tensor, " b"]
    low_res: Image | None


def load_config(run: str | Path) -> CascadeConfig:
    """``cascade.json`` of a run folder, with a sentence for each way it can be missing or wrong."""
    path = Path(run) / "cascade.json"
    if not path.exists():
        raise UserError(f"{run} is not a run folder (no cascade.json in it); expected the --out of `cdm train`.")
    try:
        return from_dict(CascadeConfig, load_json(path)["config"], "cascade.json")
    except KeyError as error:
        raise ConfigError(f"{path} lacks {error}; expected a file written by `cdm train`.") from error
