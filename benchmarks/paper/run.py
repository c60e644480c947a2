"""The experiments of the plan (plan.json), each cell a file; every command goes on where it was stopped.

    cd benchmarks && python -m paper.run train   --data TRAIN.zip --work DIR [--arms base-8,amortised]
    cd benchmarks && python -m paper.run measure --data TRAIN.zip --val VAL.zip --work DIR [--experiments c,a]
    cd benchmarks && python -m paper.run judge   --data TRAIN.zip --val VAL.zip --work DIR
    cd benchmarks && python -m paper.run time    --work DIR    (on a quiet machine)
    cd benchmarks && python -m paper.run tables  --data TRAIN.zip --val VAL.zip --work DIR --out FOLDER

``train`` makes one stage of each arm; ``measure`` images and their features; ``judge`` counts how many images of the
base are read rightly; ``time`` takes the seconds of both hand-overs for b; ``tables`` writes JSON, Markdown and plots
of what is there, with the verdicts of the plan.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cdm.artifacts import load_json
from cdm.cascade import Cascade
from cdm.errors import UserError
from cdm.evaluate.extractors.base import Extractor
from cdm.evaluate.extractors.domain import cached_domain
from cdm.evaluate.stats import FeatureStats
from cdm.pipeline.evaluate_extractors import DOMAIN_SEED
from cdm.pipeline.generate import no_progress
from cdm.pipeline.held_out import recorded_rows
from cdm.pipeline.processes import Processes
from cdm.pipeline.reference import RealImages, ReferenceCache, load_array, make_real, pixels_of
from cdm.runtime import cache_folder, choose_device, set_threads
from cdm.train.loop import Stopped
from paper.cells import GENERATED, REAL, Cell, Lab, join
from paper.judged import judge_base, judged_path
from paper.latency import latency_path, measure_latency
from paper.plan import PLAN, kind_of
from paper.tables import write_tables
from paper.training import train_arm

LETTERS = Path(__file__).parents[2] / "examples" / "letters"
BASES = {8: ("base-8", None), 16: (None, LETTERS)}


@dataclass(frozen=True)
class Bench:
    """What measuring needs at one top size."""

    lab: Lab
    stats: FeatureStats


def open_bench(options: argparse.Namespace, size: int) -> Bench:
    """Real images at ``size``, the extractor trained on them, and the training images' statistics."""
    train, val = real_images(options, size)
    rows = recorded_rows(options.work / "arms" / "amortised", train.array.names)[1]
    held_out = make_real("val", options.data, train.array, rows)
    extractor = domain_extractor(train)
    cache = ReferenceCache(cache_folder(), Processes(), 256, lambda *_: None, print)
    return Bench(Lab(options.work, val, held_out, extractor, PLAN["images"]), cache.stats(train, extractor))


def real_images(options: argparse.Namespace, size: int) -> tuple[RealImages, RealImages]:
    """Those trained on and those kept."""
    train, val = (
        make_real(role, spec, load_array(spec, size, 3, None, print, no_progress))
        for role, spec in (("train", options.data), ("val", options.val))
    )
    return train, val


def domain_extractor(train: RealImages) -> Extractor:
    return cached_domain(
        cache_folder() / "domain", images=pixels_of(train), labels=train.labels, fingerprint=train.key,
        seed=DOMAIN_SEED, device=choose_device(),
    )  # fmt: skip


def cascade_of(arm: str, work: Path, base: str = "") -> Cascade:
    """The arm's stage on what it stands on: the frozen base of its testbed or another, and the amortised stage below a
    higher."""
    own = PLAN["arms"][arm]
    folder, k = work / "arms" / arm, own.get("stage", 0)
    if len(own["sizes"]) == 1:
        return join([(folder, 0)])
    trained, given = BASES[own["sizes"][0]]
    if base and "arm" in PLAN["bases"][base]:
        trained, given = PLAN["bases"][base]["arm"], None
    below = [(given or work / "arms" / str(trained), 0)]
    if k == 2:
        below.append((work / "arms" / "amortised", 1))
    return join([*below, (folder, k)])


def cells_of(experiment: str) -> list[Cell]:
    """All cells of an experiment, those of every seed."""
    plan, few, cells = PLAN["experiments"][experiment], PLAN["few_levels"], []
    plain, base = "non_truncated", plan.get("base", "")
    own = PLAN["remedy_levels"] if "of" in plan else PLAN["levels"] if experiment in "ac" else few
    sources = plan.get("sources", [GENERATED, REAL] if experiment in "cg" else [GENERATED])
    for seed in PLAN["seeds"]:
        for arm in plan["arms"]:
            kind = PLAN["arms"][arm].get("kind", "gaussian")
            levels = plan.get("levels", own)
            if len(PLAN["arms"][arm]["sizes"]) == 1 or "gaussian" not in kind:
                levels = [None]
            if "level" in PLAN["arms"][arm]:
                levels = [PLAN["arms"][arm]["level"]]
            cells += [Cell(arm, source, level, plain, seed, base) for source in sources for level in levels]
            if kind_of(experiment) == "b":
                cells += [Cell(arm, GENERATED, level, "truncated", seed, base) for level in levels if level]
    return cells


def cells_beside(experiment: str) -> list[Cell]:
    """Cells of other experiments that it is compared with; all must be there for a verdict."""
    if experiment in "ef":
        return [cell for cell in cells_of("c") if cell.source == GENERATED]
    if "of" not in PLAN["experiments"][experiment]:
        return []
    if kind_of(experiment) != "c":
        tops = {PLAN["arms"][arm]["sizes"][-1] for arm in PLAN["experiments"][experiment]["arms"]}
        return [cell for cell in cells_of(kind_of(experiment)) if PLAN["arms"][cell.arm]["sizes"][-1] in tops]
    planned = [cell for cell in cells_of("c") if cell.source == GENERATED and cell.level in PLAN["remedy_levels"]]
    return planned if experiment == "c-held" else [*planned, *cells_of("c-held")]


def cells_drawn(experiment: str) -> list[Cell]:
    """Cells of the other bases, or of the other nets, for lines of the plot where they are there."""
    if kind_of(experiment) == "a":
        nets = [name for name, plan in PLAN["experiments"].items() if plan.get("of") == "a" and "base" not in plan]
        return [cell for name in nets for cell in cells_of(name) if name != experiment] if experiment in nets else []
    if kind_of(experiment) != "c" or not PLAN["experiments"][experiment].get("base"):
        return []
    others = [name for name, plan in PLAN["experiments"].items() if kind_of(name) == "c" and plan.get("base")]
    return [cell for name in others for cell in cells_of(name) if name != experiment and cell.arm == "amortised"]


def is_trained(arm: str, work: Path) -> bool:
    return bool(list((work / "arms" / arm).glob(f"{PLAN['arms'][arm].get('stage', 0)}-*/ema-*.safetensors")))


def need(arm: str, work: Path, why: str) -> None:
    if not is_trained(arm, work):
        raise UserError(f"arm {arm} is not trained yet, {why}; expected: paper.run train first.")


def measure(options: argparse.Namespace) -> None:
    benches: dict[int, Bench] = {}
    for experiment in options.experiments:
        for arm in PLAN["experiments"][experiment]["arms"]:
            if not is_trained(arm, options.work):
                print(f"experiment {experiment}: arm {arm} is not trained yet; its cells are left out")
                continue
            size = PLAN["arms"][arm]["sizes"][-1]
            if size not in benches:
                benches[size] = open_bench(options, size)
            cascade = cascade_of(arm, options.work, PLAN["experiments"][experiment].get("base", ""))
            for cell in cells_of(experiment):
                if cell.arm == arm:
                    benches[size].lab.measure(cell, cascade)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=("train", "measure", "judge", "time", "tables"))
    parser.add_argument("--data", help="training images")
    parser.add_argument("--val", help="real images kept from training")
    parser.add_argument("--work", type=Path, required=True, help="runs and cells are kept here")
    parser.add_argument("--arms", type=lambda text: text.split(","), default=list(PLAN["arms"]))
    parser.add_argument("--experiments", type=lambda text: text.split(","), default=list(PLAN["experiments"]))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("results/paper"))
    options = parser.parse_args(argv)
    for name, given, known in (
        ("--arms", options.arms, PLAN["arms"]),
        ("--experiments", options.experiments, PLAN["experiments"]),
    ):
        if odd := [each for each in given if each not in known]:
            parser.error(f"{name} has {odd[0]!r}; expected some of {', '.join(known)}")
    if options.what != "time" and options.data is None:
        parser.error(f"{options.what} needs --data: the training images")
    if options.what in ("measure", "judge", "tables") and options.val is None:
        parser.error(f"{options.what} needs --val: real images kept from training")
    return options


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    try:
        run(options)
    except UserError as error:
        raise SystemExit(f"paper.run: {error}") from error
    except (Stopped, KeyboardInterrupt):
        raise SystemExit("paper.run: stopped; what is there is kept: give the same command again to go on.") from None


def run(options: argparse.Namespace) -> None:
    set_threads(options.threads)
    if options.what == "train":
        for arm in options.arms:
            train_arm(arm, options.data, options.work)
    elif options.what == "measure":
        measure(options)
    elif options.what == "judge":
        arm = str(BASES[8][0])
        need(arm, options.work, "which is judged")
        size = PLAN["arms"][arm]["sizes"][-1]
        print(judge_base(join([(options.work / "arms" / arm, 0)]), *real_images(options, size), options.work))
    elif options.what == "time":
        (arm,) = PLAN["experiments"]["b"]["arms"]
        need(arm, options.work, "whose hand-overs are timed")
        measure_latency(cascade_of(arm, options.work), arm, options.work)
    else:
        beside = {"a": ("judged", judged_path(options.work)), "b": ("timed", latency_path(options.work))}
        told = {name: {key: load_json(path)} for name, (key, path) in beside.items() if path.exists()}
        cells = {name: (cells_of(name), cells_beside(name), cells_drawn(name)) for name in options.experiments}
        write_tables(options.out, cells, partial(open_bench, options), told)


if __name__ == "__main__":
    main()
