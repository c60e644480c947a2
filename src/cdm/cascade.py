"""A cascade: ordered stages, and how images are sampled through them.

cascade = Cascade.load("runs/letters")
result = cascade.sample(labels=[0, 1, 2], seeds=[7, 8, 9])
result.images[-1]  # float32 [3, C, H, W] in [-1, 1]; result.images[0] is the base's
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cdm.artifacts import load_json, told_by_path
from cdm.batching import Batches, choose_batch_size, enough_memory, fit_together, free
from cdm.conditioning import quantise, upsample
from cdm.config import CascadeConfig, ConfigError, SamplingConfig, from_dict
from cdm.errors import UserError
from cdm.noise.schedule import AUG_LOGSNR_MAX
from cdm.rng import Rng
from cdm.runtime import choose_device, choose_dtype
from cdm.samplers import num_evaluations
from cdm.settings import make_settings, of_stage, stage_grid, stop_entry
from cdm.stage import Stage, build_stage, check_config, load_weights
from cdm.stage_run import Progress, run_stage
from cdm.types import Cond, Image, Labels

StageImage = Float[Tensor, "b c _ _"]
"""A batch of images of one stage among those of others, of another size."""


def image_seed(seed: int, index: int) -> int:
    """The one number that names an image's random stream: image ``index`` of ``--seed seed`` (below 2^31)."""
    return (seed << 32) + index


@dataclass(frozen=True)
class Samples:
    """What ``Cascade.sample`` gives.

    images: float32 ``[B, C, H, W]`` in [-1, 1] of every stage that ran, quantised as saved files are; of a
        truncated one, its last estimate of the clean image.
    labels: int64 ``[B]`` or None. seeds: int64 ``[B]``.
    evaluations: network evaluations per stage and image. saved_evaluations: those that truncation spared.
    batch_size: images at once in the end, fewer than at first where the memory ran out.
    """

    images: tuple[StageImage, ...]
    labels: Labels | None
    seeds: Int64[Tensor, " b"]
    evaluations: tuple[int, ...]
    saved_evaluations: tuple[int, ...]
    batch_size: int


class Cascade:
    """Ordered stages from the base up, which compute on ``device``.

    ``offload``: weights stay in the machine's memory and go to ``device`` for their stage's turn only, as images do.
    """

    def __init__(
        self,
        config: CascadeConfig,
        stages: Sequence[Stage],
        device: torch.device | str = "cpu",
        *,
        offload: bool = False,
    ) -> None:
        self.config = config
        self.stages = tuple(stages)
        self.device = torch.device(device)
        self.offload = offload

    @classmethod
    def load(
        cls,
        run: str | Path,
        *,
        weights: str = "ema",
        device: str | None = None,
        precision: str = "auto",
        stages: Sequence[int] | None = None,
        offload: bool = False,
        say: Callable[[str], None] = warnings.warn,
    ) -> Cascade:
        """Read a run folder. ``weights``: ``ema``, ``raw`` or a profile (see ``stage.load_weights``). ``precision``:
        ``auto`` (bf16 where the machine is fast at it), ``fp32``, ``bf16`` or ``fp16``; the weights are held in it
        too. A CPU takes ``auto`` for ``fp16``, and ``say`` is told. ``stages``: the first so many, as ``range(2)``; the
        others are not needed to be trained. ``offload``: see ``Cascade``; on a CPU it changes nothing."""
        run = Path(run)
        config = load_config(run)
        chosen = choose_device(device)
        dtype = choose_dtype(precision, chosen, say=say)
        offload = offload and chosen.type != "cpu"
        built = []
        for index in range(len(config.stages)) if stages is None else _first(stages, config, run):
            stage = build_stage(config.stages[index], index, num_classes=config.num_classes, levels=config.data.levels)
            check_config(stage.config, run / stage.name)
            load_weights(stage, run / stage.name, weights)
            with enough_memory(f"the weights of stage {index}"):
                built.append(stage.to("cpu" if offload else chosen, dtype).for_sampling())
        return cls(config, built, chosen, offload=offload)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.config.class_names

    @property
    def hash(self) -> str:
        """Names the weights of every stage."""
        return "-".join(stage.hash for stage in self.stages)

    def settings(self, **asked: Any) -> SamplingConfig:
        """The run's sampling defaults with what is given put over them, one entry per stage: ``steps``, ``sampler``,
        ``grid``, ``aug_level``, ``hand_over``, ``clip``, ``threshold``. See ``settings.make_settings``."""
        return make_settings(self.config, **asked)

    @torch.no_grad()
    def sample(
        self,
        labels: Sequence[int] | Labels | None = None,
        seeds: Sequence[int] | Int64[Tensor, " b"] | None = None,
        *,
        num_images: int | None = None,
        settings: SamplingConfig | None = None,
        steps: Sequence[int] | None = None,
        sampler: str | None = None,
        grid: str | None = None,
        threshold: float | None = None,
        aug_level: float | Sequence[float] | None = None,
        hand_over: str | None = None,
        stop_after: int | None = None,
        low_res: Image | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
        say: Callable[[str], None] | None = None,
    ) -> Samples:
        """Sample images through the cascade, all through one stage before the next.

        labels: class index per image; None for the null label (or a model without classes).
        seeds: one number per image; it alone decides the image's noise, so neither the label nor the batch matters.
            None: 0, 1, 2, ...
        settings: from ``settings()``; or else give its keywords, ``steps`` to ``hand_over``.
        stop_after: the last stage to run; None: all.
        low_res: clean images ``[B, C, h, w]`` in [-1, 1] at the base's resolution, put in place of the base's own (the
            SR stages run on them).
        batch_size: images at once; None: see ``auto_batch_size``. Halved when the memory runs out, and ``say``
            is told.

        Raises:
            UserError: anything that cannot work; found before the first network evaluation.
        """
        own: dict[str, Any] = {"steps": steps, "sampler": sampler, "grid": grid, "threshold": threshold}
        own |= {"aug_level": aug_level, "hand_over": hand_over}
        if settings is not None and (given_too := [name for name, value in own.items() if value is not None]):
            raise UserError(f"got both settings and {given_too[0]}; expected one of them: put {given_too[0]} into it.")
        if settings is None:
            settings = self.settings(**own)
        top = len(self.stages) - 1
        last = top if stop_after is None else _whole("stop_after", stop_after, f"a stage, 0 to {top}", 0, top)
        if batch_size is not None:
            batch_size = _whole("batch_size", batch_size, "at least 1, or None, which chooses")
        if num_images is not None:
            num_images = _whole("num_images", num_images, "at least 1")
        all_labels = None if labels is None else _integers("labels", labels)
        all_seeds = None if seeds is None else _integers("seeds", seeds)
        low_res = None if low_res is None else _batch(low_res)
        given = [len(x) for x in (all_labels, all_seeds, low_res) if x is not None]
        count = num_images if num_images is not None else (given or [1])[0]
        all_seeds = torch.arange(count) if all_seeds is None else all_seeds
        self._check(count, all_labels, all_seeds, low_res)
        running = self.stages[0 if low_res is None else 1 : last + 1]
        if not running:
            raise UserError(
                "got low_res, which take the place of the base's images, and no SR stage to run on them; expected "
                "stop_after of 1 or more, in a cascade of two stages or more."
            )
        for stage in running:
            stage.check_labels(all_labels, count)
        stops = {stage.index: self.stop_level(stage, settings) for stage in running[:-1]}
        if batch_size is None:
            batch_size = choose_batch_size(running, self.device, self.offload)
        batches = Batches(batch_size, partial(free, self.stages, self.device), say)
        images, evaluations, saved = self._run(
            _Given(all_labels, all_seeds, low_res, None), running, settings, stops, batches, progress
        )
        return Samples(images, all_labels, all_seeds, evaluations, saved, batches.size)

    def _run(
        self,
        given: _Given,
        running: Sequence[Stage],
        settings: SamplingConfig,
        stops: dict[int, float | None],
        batches: Batches,
        progress: Progress | None,
    ) -> tuple[tuple[StageImage, ...], tuple[int, ...], tuple[int, ...]]:
        """Images, evaluations and saved evaluations, one of each per stage; images given from below stand first."""
        images: list[StageImage] = []
        evaluations: list[int] = []
        saved: list[int] = []
        if given.below is not None:
            images.append(quantise(given.below.to(self._home), self.stages[0].levels))
            evaluations.append(0)
            saved.append(0)
            given = replace(given, below=images[0])
        for stage in running:
            steps, stop = settings.steps[stage.index], stops.get(stage.index)
            make = partial(self._run_rows, stage, given, settings, steps, stop, progress)
            with self._turn(stage, running, batches):
                made = _Made.joined(batches.run(len(given.seeds), make, f"stage {stage.index}"))
            images.append(made.image)
            evaluations.append(made.evaluations)
            saved.append(0 if stop is None else self._spared(stage, settings, made.evaluations))
            given = replace(given, below=made.image, handed=made.handed)
        return tuple(images), tuple(evaluations), tuple(saved)

    def auto_batch_size(self, stop_after: int | None = None) -> int:
        """Images at once that the memory has room for, up to stage ``stop_after`` (None: all). See
        ``batching.choose_batch_size``."""
        running = self.stages if stop_after is None else self.stages[: stop_after + 1]
        return choose_batch_size(running, self.device, self.offload)

    @property
    def _home(self) -> torch.device:
        """Where images are between the turns of two stages."""
        return torch.device("cpu") if self.offload else self.device

    def _check(self, count: int, labels: Tensor | None, seeds: Tensor, low_res: Tensor | None) -> None:
        """What is asked for fits together and fits this cascade."""
        if count < 1:
            raise UserError(f"got {count} images to sample; expected at least 1.")
        for name, given in (("labels", labels), ("seeds", seeds), ("low_res", low_res)):
            if given is not None and len(given) != count:
                raise UserError(f"got {len(given)} {name} for {count} images; expected one for each.")
        if labels is not None and not self.config.num_classes:
            raise UserError("got labels, but this cascade was trained without classes: leave them out.")
        wanted = self.stages[0].shape
        if low_res is not None and tuple(low_res.shape[1:]) != wanted:
            raise UserError(
                f"got low_res images of shape {tuple(low_res.shape[1:])}; expected {wanted} (channels, height, width), "
                "the base's."
            )
        if low_res is not None and not bool((low_res.abs() <= 1).all()):
            raise UserError(
                f"got low_res images from {float(low_res.min()):g} to {float(low_res.max()):g}; expected [-1, 1]: "
                "8-bit ones become such as x.float() / 127.5 - 1."
            )
        if int(seeds.min()) < 0:
            raise UserError(f"got the seed {int(seeds.min())}; expected 0 or more.")

    @contextmanager
    def _turn(self, stage: Stage, running: Sequence[Stage], batches: Batches) -> Iterator[None]:
        """``stage`` on the device. Afterwards nothing of it stays there that another stage would lack: neither
        offloaded weights nor the activations that recordings hold."""
        if self.offload:
            with enough_memory(f"the weights of stage {stage.index}"):
                stage.to(self.device, stage.denoiser.dtype)
        try:
            yield
        finally:
            if self.offload:
                stage.to("cpu", stage.denoiser.dtype)
            if self.offload or not fit_together(running, self.device, batches.size):
                free([stage], self.device)

    def _run_rows(
        self,
        stage: Stage,
        given: _Given,
        settings: SamplingConfig,
        steps: int,
        stop: float | None,
        progress: Progress | None,
        rows: slice,
    ) -> _Made:
        """One batch through one stage."""
        given = given.rows(rows, self.device)
        labels = stage.check_labels(given.labels, len(given.seeds))
        cond = Cond(None if labels is None else labels.to(self.device))
        if given.handed is not None:
            told = torch.full((len(given.seeds),), given.handed.logsnr, dtype=torch.float32, device=self.device)
            cond = Cond(cond.labels, upsample(given.handed.x_t, stage.config.size), told)
        elif not stage.config.is_base:
            assert given.below is not None
            aug_logsnr = stage.aug_logsnr(settings.aug_level[stage.index - 1])
            cond, _ = stage.condition(given.below, cond.labels, aug_logsnr, Rng(0, stage.index), given.seeds)
        ran = run_stage(stage, cond, given.seeds, settings, steps, stop_at=stop, progress=progress)
        handed = None if stop is None else _Handed(ran.x_t.to(self._home), ran.logsnr)
        return _Made(ran.image.to(self._home), handed, ran.evaluations)

    def _spared(self, stage: Stage, settings: SamplingConfig, taken: int) -> int:
        """Evaluations that a truncated run of ``stage`` does without; Heun's one step to a finite end takes two."""
        whole = stage_grid(stage, settings, settings.steps[stage.index], None)
        return max(0, num_evaluations(of_stage(settings.sampler, stage.index), whole) - taken)

    def stop_level(self, stage: Stage, settings: SamplingConfig) -> float | None:
        """Log-SNR at which ``stage`` stops and hands over x_t (of a table, an entry); None: it runs to the end (Ho et
        al. 2021, section 4.2).

        Raises:
            UserError: the next stage takes no noise, or the level is none that ``stage`` can stop at.
        """
        if settings.hand_over == "non_truncated":
            return None
        following = self.stages[stage.index + 1]
        stop = following.aug_logsnr(settings.aug_level[stage.index])
        if stop is None:
            raise UserError(
                "the truncated hand-over needs a stage trained with Gaussian augmentation; "
                f"stage {following.index} has {following.config.augmentation.kind!r}: use --hand-over non_truncated."
            )
        if stop >= AUG_LOGSNR_MAX:
            return None  # level 0: nothing to truncate, one code path with the other hand-over
        low, high = stage.denoiser.logsnr_range
        if not (low < stop < high and low < stop_entry(stage, stop)):
            raise UserError(
                f"augmentation level {settings.aug_level[stage.index]} (log-SNR {stop:.2f}) lies outside what stage "
                f"{stage.index} can stop at ({low:.2f} to {high:.2f}); use another level, or --hand-over non_truncated."
            )
        return stop_entry(stage, stop)


def _first(stages: Sequence[int], config: CascadeConfig, run: Path) -> Sequence[int]:
    """``stages``, if they are the first so many of the run."""
    count = len(config.stages)
    if not stages or list(stages) != list(range(count))[: len(stages)]:
        raise UserError(
            f"got the stages {', '.join(map(str, stages)) or 'none'} of {run}, which has {count} (0 to {count - 1}); "
            "expected the first so many, from the base up: give another run folder, or fewer stages."
        )
    return stages


def _whole(name: str, value: object, expected: str, least: int = 1, most: int = 2**63 - 1) -> int:
    """``value``, if it is one whole number in the range that ``expected`` tells of."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or not least <= number <= most:
        raise UserError(f"got {name} {value!r:.60}; expected a whole number, {expected}.")
    return number


def _integers(name: str, values: object) -> Int64[Tensor, " b"]:
    """``values`` as an int64 tensor ``[B]``; anything but whole numbers below 2^63 is refused."""
    try:
        given = torch.as_tensor(values)
        whole = not given.numel() or not (given.dtype.is_floating_point or given.dtype.is_complex)
        if given.ndim != 1 or given.dtype == torch.bool or not whole:
            raise ValueError
    except (ValueError, TypeError, RuntimeError, OverflowError):
        raise UserError(
            f"got {name} {values!r:.60}; expected a list of whole numbers, one per image"
            + (" (cascade.class_names.index(name) is a class's number)." if name == "labels" else ".")
        ) from None
    return given.to(torch.int64)


def _batch(low_res: object) -> Image:
    """``low_res`` in float32, if it is a tensor of several images; whether they fit is another question."""
    if isinstance(low_res, Tensor) and low_res.ndim == 4 and low_res.is_floating_point():
        return low_res.float()
    is_tensor = isinstance(low_res, Tensor)
    got = f"a {low_res.dtype} tensor {list(low_res.shape)}" if is_tensor else f"of type {type(low_res).__name__}"
    raise UserError(
        f"got low_res {got}; expected a tensor [B, C, h, w] of floats in [-1, 1]: files go by `cdm upscale`, arrays by "
        "torch.from_numpy, and uint8 images become such as x.float() / 127.5 - 1."
    )


@dataclass(frozen=True)
class _Handed:
    """What a truncated stage hands over: x_t at its level."""

    x_t: StageImage
    logsnr: float


@dataclass(frozen=True)
class _Given:
    """What a stage is given, one entry per image: ``below`` are the images of the stage before. ``seeds`` stay on the
    CPU."""

    labels: Labels | None
    seeds: Int64[Tensor, " b"]
    below: StageImage | None
    handed: _Handed | None

    def rows(self, rows: slice, device: torch.device) -> _Given:
        labels = None if self.labels is None else self.labels[rows].to(device)
        below = None if self.below is None else self.below[rows].to(device)
        handed = None if self.handed is None else _Handed(self.handed.x_t[rows].to(device), self.handed.logsnr)
        return _Given(labels, self.seeds[rows], below, handed)


@dataclass(frozen=True)
class _Made:
    """What a stage gives: its images, x_t if it is truncated, and evaluations per image."""

    image: StageImage
    handed: _Handed | None
    evaluations: int

    @staticmethod
    def joined(parts: Sequence[_Made]) -> _Made:
        """Its batches as one."""
        x_t = [part.handed.x_t for part in parts if part.handed is not None]
        first = parts[0]
        handed = None if first.handed is None else _Handed(torch.cat(x_t), first.handed.logsnr)
        return _Made(torch.cat([part.image for part in parts]), handed, first.evaluations)


def load_config(run: str | Path) -> CascadeConfig:
    """``cascade.json`` of a run folder, with a sentence for each way it can be missing or wrong."""
    path = Path(run) / "cascade.json"
    with told_by_path(path):
        there = path.exists()
    if not there:
        raise UserError(f"{run} is not a run folder (no cascade.json in it); expected the --out of `cdm train`.")
    try:
        return from_dict(CascadeConfig, load_json(path)["config"], "cascade.json")
    except KeyError as error:
        raise ConfigError(f"{path} lacks {error}; expected a file written by `cdm train`.") from error
