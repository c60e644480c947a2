"""What few network evaluations cost in quality: the fast settings beside hundreds and a thousand ancestral steps.

    python benchmarks/few_evaluations.py examples/letters --data VAL.zip --train-data TRAIN.zip --work DIR

Arms: ``fast`` (named by ``--fast``, or the best of a tuned run's front, within 16 evaluations of the base and 8 of the
SR stage; ``--fast FILE`` takes levels chosen elsewhere, and ``--skip`` leaves out the images that they were chosen on),
``reference`` (ancestral, 256 steps per stage); on the base alone 1000 steps beside 256.
All have the same seeds and classes, and of two that are compared the shorter follows the path of the longer: the noise
of its step is what the other draws on the way, put together. It is standard normal like any other, and the images come
out alike, so less of the ratio is chance (as in multilevel Monte Carlo, Giles 2008). For that, the shorter one's levels
are the nearest of the longer one's.

Features of 128 images are a file of DIR, so a run that was stopped goes on, and more images are added by another
``-n``. ``--batch 1024`` makes so many at once, for a GPU. Several processes share the work by ``--part 0/2`` and
``1/2``; a call without it measures. Then the wall-clock of 64 images against 1000 + 1000 steps. Ratios come with the
interval of a paired bootstrap (cdm.evaluate.frechet_ratio). Earlier results of other seeds (``--also``, once for each)
count as well: their fast settings are used again, and the ratios are put together.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from record import check_out, made, one_sentence, save, told, told_ratio
from torch import Tensor

from cdm.artifacts import load_json, make_folder, save_json
from cdm.cascade import Cascade, image_seed
from cdm.cli.progress import counting_progress
from cdm.conditioning import quantise, upsample
from cdm.config import SamplingConfig, from_dict, to_dict
from cdm.data.pixels import FULL_8, to_float
from cdm.errors import UserError
from cdm.evaluate.frechet import frechet_estimate
from cdm.evaluate.frechet_ratio import frechet_log_ratio, frechet_ratio
from cdm.noise.process import posterior_coefficients
from cdm.pipeline.evaluate_request import EvaluateRequest
from cdm.pipeline.generate import Progress, to_bytes
from cdm.pipeline.image_source import key_of
from cdm.pipeline.judge import Judge, open_judge
from cdm.pipeline.tune_search import GRIDS, Candidate
from cdm.pipeline.tune_trials import StageTrials
from cdm.rng import Purpose, Rng
from cdm.runtime import set_threads
from cdm.samplers import SAMPLERS, drain, make_grid
from cdm.samplers.base import clip_to_range
from cdm.settings import of_stage, stage_grid
from cdm.stage import Stage
from cdm.types import Cond, Image, Labels

Levels = Float64[Tensor, " n"]
SCRIPT = "few_evaluations.py"
BLOCK = 128
FAST, REFERENCE, LONG = (16, 8), 256, 1000
TIMED = 64
ARMS, PLACES = ("fast", "reference"), ("base", "cascade")


@dataclass(frozen=True)
class Arm:
    """Settings under a name. last: the last stage that runs. path_of: steps of the ancestral run whose path of noise it
    follows; 0: none. against: the arm that it is compared with."""

    name: str
    settings: SamplingConfig
    last: int
    path_of: int = 0
    against: str = ""


def arms(judge: Judge, fast: SamplingConfig, reference: int, long: int) -> list[Arm]:
    """The fast one first: it is soon there."""
    cascade = judge.cascade
    top = len(cascade.stages) - 1
    ancestral = cascade.settings(sampler="ddpm", grid="logsnr", steps=(reference,) * (top + 1))
    return [
        Arm("fast", fast, top, reference, "reference"),
        Arm("reference", ancestral, top),
        Arm("base, long", replace(ancestral, steps=(long,) * (top + 1)), 0),
        Arm("base, on its path", on_the_way(ancestral, judge, long), 0, long, "base, long"),
    ]


def candidates(cascade: Cascade, asked: str | None, fronts: Path) -> list[Candidate]:
    """One for each stage: as asked, the best of the front within ``FAST``, or DPM-Solver++ even in log-SNR."""
    most = (FAST[0], *[FAST[1]] * (len(cascade.stages) - 1))
    if asked is not None:
        try:
            each = [Candidate(sampler, grid, int(n)) for sampler, grid, n in (s.split(":") for s in asked.split(","))]
        except ValueError:
            each = []
        known = all(one.sampler in SAMPLERS and one.grid in GRIDS for one in each)
        few = all(1 <= one.evaluations <= limit for one, limit in zip(each, most, strict=False))
        if len(each) != len(most) or not known or not few:
            raise UserError(
                f"--fast is {asked!r}; expected SAMPLER:GRID:EVALUATIONS for each of the {len(most)} stages, at most "
                f"{'+'.join(map(str, most))} evaluations, of the samplers {', '.join(SAMPLERS)} and the grids "
                f"{', '.join(GRIDS)}, or a result of {SCRIPT} (.json)."
            )
        return each
    if not fronts.exists():
        return [Candidate("dpmpp", "logsnr", limit) for limit in most]
    found = []
    for stage, limit in zip(load_json(fronts)["stages"], most, strict=True):
        few = [row for row in stage["front"] if row["evaluations"] <= limit]
        if not few:
            raise UserError(f"{fronts} has no point of {limit} evaluations or fewer in each stage; give --fast.")
        found.append(Candidate(few[-1]["sampler"], few[-1]["grid"], few[-1]["evaluations"]))
    return found


def recorded(judge: Judge, fast: list[Candidate], folder: Path, seed: int, reference: int) -> SamplingConfig:
    """As the first call had them: a grid of the stage's own is measured, and rounding differs between machines."""
    key = key_of(judge.cascade.hash, to_dict(judge.cascade.settings()), reference, seed, [each.words for each in fast])
    path = make_folder(folder) / f"fast-{key[:12]}.json"
    if not path.exists():
        found = on_the_way(fast_settings(judge, fast, seed), judge, reference)
        save_json(path, {"settings": to_dict(found)})
    return from_dict(SamplingConfig, load_json(path)["settings"], str(path))


def settings_in(told: dict[str, Any], path: Path) -> SamplingConfig:
    settings = from_dict(SamplingConfig, told, str(path))
    if unknown := {*settings.sampler.split(",")} - {*SAMPLERS}:
        raise UserError(
            f"{path} names the sampler {min(unknown)!r}, which is not here; expected one of {', '.join(SAMPLERS)}."
        )
    return settings


def chosen(path: Path, run: SamplingConfig) -> SamplingConfig:
    """Settings that stand in a file, as a result of this script has them. run: those of the run, which all but sampler,
    grid and steps must be as."""
    told = load_json(path).get("settings")
    found = told.get("fast") if isinstance(told, dict) else None
    if not isinstance(found, dict):
        raise UserError(f"--fast is {path}, in which no settings.fast stands; expected a result of {SCRIPT}.")
    settings = settings_in(found, path)
    most = (FAST[0], *[FAST[1]] * (len(run.steps) - 1))
    if len(settings.steps) != len(most) or any(n > limit for n, limit in zip(settings.steps, most, strict=True)):
        raise UserError(
            f"--fast is {path}, of {'+'.join(map(str, settings.steps))} evaluations; expected at most "
            f"{'+'.join(map(str, most))}."
        )
    for name in ("aug_level", "hand_over", "clip", "threshold"):
        if getattr(settings, name) != getattr(run, name):
            raise UserError(
                f"--fast is {path}, whose {name} is {getattr(settings, name)}; expected {getattr(run, name)}, that of "
                "the reference."
            )
    return settings


def fast_settings(judge: Judge, fast: list[Candidate], seed: int) -> SamplingConfig:
    """Every stage's candidate; a grid of its own is measured on images of the stages below."""
    cascade = judge.cascade
    settings = cascade.settings(sampler="dpmpp", grid="logsnr", steps=tuple(each.evaluations for each in fast))
    labels, low_res = None if judge.labels is None else judge.labels[:BLOCK], None
    for stage, candidate in zip(cascade.stages, fast, strict=True):
        trials = StageTrials(
            cascade, stage.index, settings, judge.extractor, judge.reference(stage.config.size), labels, seed,
            BLOCK, low_res, "", lambda *_: None,
        )  # fmt: skip
        settings = trials.settings_for(candidate)
        if stage.index + 1 < len(cascade.stages):
            low_res = trials.images(settings, BLOCK, "")
    return settings


# ---- one path of noise -----------------------------------------------------------------------------------------------


def shares(fine: Levels, coarse: Levels) -> list[dict[int, float]]:
    """What the normals of the ancestral steps along ``fine`` count for in each step of ``coarse``, whose levels are all
    among them: with x0_hat held, all the small steps together are the long one (each is the posterior of the next
    level). The squares of a step's shares add up to 1, so what they make is standard normal for solvers with less
    noise, too. A step to +inf draws nothing."""
    places = [int((fine - level).abs().argmin()) for level in coarse[:-1]]
    found = []
    for begin, end in pairwise(places):
        from_x_t, _, small, _ = posterior_coefficients(fine[begin:end], fine[begin + 1 : end + 1])
        after = torch.flip(torch.cumprod(torch.flip(from_x_t, [0]), 0), [0]) / from_x_t  # of all later steps
        own = (small / 2).exp() * after
        found.append(dict(zip(range(begin, end), (own / own.norm()).tolist(), strict=True)))
    return [*found, {}]


def on_the_way(settings: SamplingConfig, judge: Judge, steps: int) -> SamplingConfig:
    """The same with each stage's levels moved to the nearest that ``steps`` even ones have."""
    levels = []
    for stage in judge.cascade.stages:
        own = stage_grid(stage, settings, settings.steps[stage.index], None)[:-1]
        fine = make_grid(*stage.denoiser.logsnr_range, steps)[:-1]
        levels.append(tuple(fine[(fine[None] - own[:, None]).abs().argmin(1).unique()].tolist()))
    return replace(settings, grid="tuned", levels=tuple(levels))


def sample_on_the_way(
    stage: Stage, cond: Cond, seeds: Int64[Tensor, " b"], settings: SamplingConfig, steps: int
) -> Image:
    """``run_stage`` with the noise that the reference of ``steps`` steps draws."""
    rng, grid = Rng(0, stage.index), stage_grid(stage, settings, settings.steps[stage.index], None)
    parts = shares(make_grid(*stage.denoiser.logsnr_range, steps)[:-1], grid)

    def noise(i: int) -> Image:
        total = torch.zeros(len(seeds), *stage.shape, device=seeds.device)
        for k, share in parts[i].items():
            total.add_(rng.normal(Purpose.SAMPLER_NOISE, seeds, stage.shape, step=k), alpha=share)
        return total

    sampler = SAMPLERS[of_stage(settings.sampler, stage.index)]
    x = rng.normal(Purpose.START_NOISE, seeds, stage.shape)
    made = drain(sampler(stage.denoiser, x, grid, cond, clip=clip_to_range if settings.clip else None, noise=noise))
    return quantise(made, stage.levels)


# ---- features --------------------------------------------------------------------------------------------------------


class Features:
    """Of one arm, block by block on the disk: ``[n, D]`` of the base, and of the last stage that runs."""

    def __init__(self, judge: Judge, arm: Arm, seed: int, folder: Path) -> None:
        self.arm, self._judge, self._seed = arm, judge, seed
        named = [judge.cascade.hash, to_dict(arm.settings), arm.last, seed, judge.extractor.hash]
        named += [arm.path_of] if arm.path_of else []
        self._folder = make_folder(folder / f"{arm.name.replace(', ', '-')}-{key_of(*named)[:12]}")

    def _path(self, block: int) -> Path:
        return self._folder / f"{block:04d}.npy"

    def missing(self, blocks: Iterable[int]) -> list[int]:
        return [block for block in blocks if not self._path(block).exists()]

    @torch.no_grad()
    def make(self, blocks: list[int], progress: Progress) -> None:
        """Blocks in one batch."""
        cascade = self._judge.cascade
        index = [i for block in blocks for i in range(block * BLOCK, (block + 1) * BLOCK)]
        seeds = torch.tensor([image_seed(self._seed, i) for i in index])
        labels = None if self._judge.labels is None else torch.from_numpy(self._judge.labels[index])
        what = f"{self.arm.name}, block {blocks[0]}"
        if self.arm.path_of:
            made = self._on_the_way(seeds, labels, lambda done, of: progress(what, done, of))
        else:
            made = cascade.sample(
                labels, seeds, settings=self.arm.settings, stop_after=self.arm.last, batch_size=len(index),
                progress=lambda stage, done, of, _: progress(f"{what}, stage {stage}", done, of),
            ).images  # fmt: skip
        size = cascade.config.sizes[-1]
        rows = []
        for images in (made[0], made[-1]):
            stored = to_bytes(images, self.arm.name)
            shown = stored if stored.shape[-1] == size else to_bytes(upsample(to_float(stored, FULL_8), size), "base")
            rows.append(self._judge.extractor(shown).by_name()["main"].numpy())
        for i, block in enumerate(blocks):
            part = self._path(block).with_suffix(".part")
            with open(part, "wb") as file:
                np.save(file, np.stack(rows)[:, i * BLOCK : (i + 1) * BLOCK])
            os.replace(part, self._path(block))

    def _on_the_way(
        self, seeds: Int64[Tensor, " b"], labels: Labels | None, progress: Callable[[int, int], None]
    ) -> list[Image]:
        cascade, made = self._judge.cascade, list[Image]()
        stages, on_device = cascade.stages[: self.arm.last + 1], seeds.to(cascade.device)
        for stage in stages:
            progress(stage.index, len(stages))
            own = stage.check_labels(labels, len(seeds))
            cond = Cond(None if own is None else own.to(cascade.device))
            if made:
                aug_logsnr = stage.aug_logsnr(self.arm.settings.aug_level[stage.index - 1])
                cond, _ = stage.condition(made[-1], cond.labels, aug_logsnr, Rng(0, stage.index), seeds)
            made.append(sample_on_the_way(stage, cond, on_device, self.arm.settings, self.arm.path_of))
        return made

    def rows(self, images: range, which: int) -> np.ndarray:
        """which: 0 the base, 1 the last stage."""
        return np.concatenate([np.load(self._path(block))[which] for block in blocks(images)])


def blocks(images: range) -> range:
    return range(images.start // BLOCK, images.stop // BLOCK)


def figures(judge: Judge, made: list[Features], images: range) -> dict[str, Any]:
    """Distances of all arms and their ratios, on the base and on the whole cascade."""
    labels = None if judge.labels is None else judge.labels[images.start : images.stop]
    sizes = judge.cascade.config.sizes
    found: dict[str, Any] = {}
    for place, name, size in ((0, "base", sizes[0]), (1, "cascade", sizes[-1])):
        real = judge.reference(size)
        rows = {each.arm.name: each.rows(images, place) for each in made if place == 0 or each.arm.last}
        found[name] = {arm: {"distance": told(frechet_estimate(real, own, labels))} for arm, own in rows.items()}
        for arm in (each.arm for each in made if each.arm.name in rows and each.arm.against):
            pair = rows[arm.name], rows[arm.against]
            found[name][arm.name][f"ratio to {arm.against}"] = told(frechet_ratio(real, *pair, labels))
            found[name][arm.name]["the same by jackknife"] = told_ratio(frechet_log_ratio(real, *pair, labels))
    return found


@dataclass(frozen=True)
class Earlier:
    """An earlier result of this script. ratios: on the base and on the whole cascade. val: fingerprint of the real
    images; empty in files that do not tell it."""

    path: Path
    fast: SamplingConfig
    reference: SamplingConfig
    ratios: dict[str, dict[str, float]]
    weights: str
    extractor: str
    val: str
    seed: int


def read_earlier(path: Path) -> Earlier:
    found = load_json(path)
    try:
        fast, reference = (settings_in(found["settings"][name], path) for name in ARMS)
        ratios = {}
        for place in PLACES:
            told = found["figures"][place]["fast"]["ratio to reference"]
            ratios[place] = {name: float(told[name]) for name in ("value", "low", "high")}
        facts = (str(found["weights"]), str(found["extractor"]), str(found.get("val", "")), int(found["seed"]))
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"--also is {path}, which is no result of {SCRIPT} ({type(error).__name__}: {error}); expected one."
        ) from None
    if not all(0 < each["value"] < math.inf and 0 < each["low"] < each["high"] < math.inf for each in ratios.values()):
        raise UserError(f"--also is {path}, whose ratios have no interval; expected one of more images.")
    return Earlier(path, fast, reference, ratios, *facts)


def check_earlier(earlier: list[Earlier], judge: Judge, reference: SamplingConfig, seed: int) -> None:
    """Whether they are about this run and these images, and have others' seeds."""
    seeds = [seed]
    for one in earlier:
        if one.weights != judge.cascade.hash:
            raise UserError(f"--also is {one.path}, of the weights {one.weights}; expected {judge.cascade.hash}.")
        for name, theirs, own in (
            ("reference", one.reference, reference),
            ("fast settings", one.fast, earlier[0].fast),
            ("number of stages", len(one.fast.steps), len(reference.steps)),
            ("real images", one.val or judge.val.fingerprint, judge.val.fingerprint),
        ):
            if theirs != own:
                raise UserError(f"--also is {one.path}, with another {name} than this call or file; expected the same.")
        if one.seed in seeds:
            raise UserError(f"--also is {one.path}, of the seed {one.seed} again: the same images; expected another.")
        seeds.append(one.seed)
        if one.extractor != judge.extractor.hash:
            print(f"{one.path} was measured with the extractor {one.extractor}, this is {judge.extractor.hash}.")


def together(ratios: list[dict[str, float]]) -> dict[str, float]:
    """Means of the logarithms, weighted by their certainty (a fixed effect; Hedges & Olkin 1985, ch. 6): of the values,
    and of the intervals' middles, from which their bias is taken off."""
    logs = np.log([[each["value"], each["low"], each["high"]] for each in ratios])
    reaches = (logs[:, 2] - logs[:, 1]) / 2
    weights = reaches**-2 / (reaches**-2).sum()
    middle, reach = weights @ logs[:, 1:].mean(1), (reaches**-2).sum() ** -0.5
    value, low, high = np.exp([weights @ logs[:, 0], middle - reach, middle + reach]).tolist()
    return {"value": value, "low": low, "high": high}


def wall_clock(judge: Judge, settings: SamplingConfig, long: int, images: int) -> dict[str, Any]:
    """Seconds of so many images, fast and by the paper's number of steps; the second once, for it takes minutes."""
    cascade = judge.cascade
    slow = cascade.settings(sampler="ddpm", grid="logsnr", steps=(long,) * len(cascade.stages))

    def seconds(settings: SamplingConfig) -> float:
        began = time.perf_counter()
        cascade.sample([0] * images if cascade.class_names else None, range(images), settings=settings)
        return time.perf_counter() - began

    seconds(settings)
    fast = sorted(seconds(settings) for _ in range(5))
    slowly = seconds(slow)
    return {"images": images, "fast_s": [round(each, 3) for each in fast], "long_s": round(slowly, 1), "long": long,
            "times": round(slowly / fast[2], 1)}  # fmt: skip


def part(asked: str) -> tuple[int, int]:
    first, of = map(int, asked.split("/"))
    if not 0 <= first < of:
        raise ValueError(asked)
    return first, of


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("run", type=Path, nargs="?", default=Path("examples/letters"))
    parser.add_argument("--data", help="real images kept from training; without, nothing is measured")
    parser.add_argument("--train-data", help="those trained on: for the domain extractor")
    parser.add_argument("-n", type=int, default=2048, help=f"images per arm, a multiple of {BLOCK}")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--fronts", type=Path, help="of a tuned run (RUN/tuning/fronts.json)")
    parser.add_argument(
        "--fast", help="instead: SAMPLER:GRID:EVALUATIONS of each stage, as dpmpp:profile:16,dpmpp:edm:8; or FILE.json"
    )
    parser.add_argument("--skip", type=int, default=0, help="leave the first images out, of the -n")
    parser.add_argument(
        "--also", type=Path, action="append", default=[], metavar="FILE",
        help="an earlier result of another --seed, counted as well; may be repeated",
    )  # fmt: skip
    parser.add_argument("--work", type=Path, default=Path("runs/few-evaluations"), help="features are kept here")
    parser.add_argument("--reference", type=int, default=REFERENCE, help="ancestral steps of the reference")
    parser.add_argument("--long", type=int, default=LONG, help="ancestral steps that show it has converged")
    parser.add_argument("--long-images", type=int, help="of that arm, 0: none (default: as of the others)")
    parser.add_argument("--part", type=part, metavar="I/N", help="make every N-th block from the I-th on, no more")
    parser.add_argument("--batch", type=int, default=BLOCK, help=f"images at once, a multiple of {BLOCK}")
    parser.add_argument("--device")
    parser.add_argument("--no-timing", action="store_true", help="distances only: the machine is not quiet")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/few-evaluations.json"))
    options = parser.parse_args(argv)
    most = options.n - options.skip
    options.long_images = most if options.long_images is None else options.long_images
    if (
        options.skip < 0
        or options.skip % BLOCK
        or most < BLOCK
        or (options.long_images and not BLOCK <= options.long_images <= most)
    ):
        parser.error(
            f"-n, --skip and --long-images are counted in blocks of {BLOCK}; expected {BLOCK} <= --long-images <= -n "
            "less --skip"
        )
    if options.batch < BLOCK or options.batch % BLOCK:
        parser.error(f"--batch is {options.batch}; expected a multiple of {BLOCK}, at least {BLOCK}")
    if options.also and (options.fast or options.fronts):
        parser.error("--fast and --fronts name what --also has; expected one of them")
    return options


def main(argv: list[str] | None = None) -> None:
    with one_sentence(SCRIPT):
        run(parse(argv), argv)


def run(options: argparse.Namespace, argv: list[str] | None = None) -> None:
    if options.data is None:
        print("few_evaluations is skipped: no --data names the real images that its distances are measured to.")
        return
    if not (options.run / "cascade.json").exists():
        raise UserError(f"{options.run} is not a run folder (no cascade.json in it); expected the --out of cdm train.")
    if options.fronts is not None and not options.fronts.exists():
        raise UserError(f"--fronts is {options.fronts}, which is not there; expected RUN/tuning/fronts.json.")
    earlier = [read_earlier(path) for path in options.also]
    check_out(options.out)
    set_threads(None)
    asked = EvaluateRequest(
        subject=str(options.run), data=options.data, train_data=options.train_data, out=options.work,
        num=options.n, seed=options.seed, device=options.device,
    )  # fmt: skip
    with counting_progress() as progress:
        judge = open_judge(asked, progress, print)
        how = made(SCRIPT, argv, judge.cascade.device)
        if earlier:
            fast = earlier[0].fast
        elif options.fast is not None and options.fast.endswith(".json"):
            fast = on_the_way(chosen(Path(options.fast), judge.cascade.settings()), judge, options.reference)
        else:
            named = candidates(judge.cascade, options.fast, options.fronts or options.run / "tuning" / "fronts.json")
            fast = recorded(judge, named, options.work, options.seed, options.reference)
        planned = arms(judge, fast, options.reference, options.long)
        check_earlier(earlier, judge, planned[1].settings, options.seed)
        each_arm = [Features(judge, arm, options.seed, options.work) for arm in planned]
        images = range(options.skip, options.n // BLOCK * BLOCK)
        longer = range(options.skip, options.skip + options.long_images // BLOCK * BLOCK)
        short, long = each_arm[:2], each_arm[2:]
        mine, every = options.part or (0, 1)
        at_once = options.batch // BLOCK * every
        for group, wanted in ((short, blocks(images)), (long, blocks(longer))):
            for begin in range(wanted.start, wanted.stop, at_once):  # all arms have as many, wherever it is stopped
                part = range(begin, min(begin + at_once, wanted.stop))
                for features in group:
                    if missing := features.missing(block for block in part if block % every == mine):
                        features.make(missing, progress)
        if options.part:
            return
        result: dict[str, Any] = {
            "run": str(options.run), "weights": judge.cascade.hash, "extractor": judge.extractor.hash,
            "val": judge.val.fingerprint,
            "images": len(images), "skipped": options.skip, "seed": options.seed, "cores": os.cpu_count(),
            "device": str(judge.cascade.device),
            "settings": {arm.name: to_dict(arm.settings) for arm in planned},
            "figures": figures(judge, short, images),
        }  # fmt: skip
        if len(longer):
            result["of_the_base_alone"] = {"images": len(longer), **figures(judge, long, longer)["base"]}
        for place in PLACES if earlier else ():
            own = result["figures"][place]["fast"]
            own["ratio, with earlier results"] = together(
                [own["ratio to reference"], *(one.ratios[place] for one in earlier)]
            )
        if not options.no_timing:
            result["wall_clock"] = wall_clock(judge, planned[0].settings, options.long, TIMED)
    told_at_once = ("figures", "of_the_base_alone", "wall_clock")
    print(json.dumps({name: result[name] for name in told_at_once if name in result}, indent=1))
    save(options.out, result, how)


if __name__ == "__main__":
    main()
