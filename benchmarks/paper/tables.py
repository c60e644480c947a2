"""Tables, plots and verdicts of the cells that are there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cdm.artifacts import make_folder, save_json, write_atomic
from cdm.config import AugmentationConfig
from cdm.evaluate.evaluation_plots import levels_plot
from cdm.evaluate.frechet import GROUPS, frechet_estimate, groups_of
from cdm.evaluate.frechet_ratio import frechet_log_ratio
from cdm.evaluate.intervals import Estimate, jackknife
from cdm.evaluate.level_curves import Gap, LevelCurves, LevelPoint
from cdm.evaluate.stats import FeatureStats
from cdm.noise.schedule import aug_level_to_logsnr
from paper.cells import GENERATED, HELD_OUT, REAL, Cell, Lab
from paper.pictures import chosen, sheet
from paper.plan import PLAN, kind_of


class BenchLike(Protocol):
    @property
    def lab(self) -> Lab: ...
    @property
    def stats(self) -> FeatureStats: ...


@dataclass(frozen=True)
class Row:
    """One arm at one level, all seeds together. seconds: of an image, as it happened to be timed."""

    arm: str
    source: str
    base: str
    level: float | None
    hand_over: str
    distance: float
    low: float
    high: float
    of_seeds: tuple[float, ...]
    evaluations: tuple[int, ...]
    seconds: float


class Results:
    """The cells of one top size. base: of the generated low-res images that are looked at. drawn: more cells, which may
    be missing."""

    def __init__(self, bench: BenchLike, cells: Sequence[Cell], base: str = "", drawn: Sequence[Cell] = ()) -> None:
        self._bench, self.base = bench, base
        there = [cell for cell in (*cells, *drawn) if bench.lab.path(cell, ".npy").exists()]
        self.seeds = sorted({cell.seed for cell in cells})
        whole = {cell for cell in there if all(replace(cell, seed=seed) in there for seed in self.seeds)}
        self.kinds = list(dict.fromkeys(replace(cell, seed=0) for cell in there if cell in whole))
        self.missing = len(set(cells) - set(there))

    def features(self, kind: Cell, seeds: Sequence[int] | None = None) -> np.ndarray:
        """Rows of all seeds; row i of two kinds has the same seed."""
        return np.concatenate([self._bench.lab.rows(replace(kind, seed=s)) for s in seeds or self.seeds])

    def groups(self, kind: Cell, seeds: Sequence[int] | None = None) -> np.ndarray:
        """Of the jackknife, of all seeds: all that was made of one real image is in one group, and so are images of
        the same place in the seeds."""
        lab, many = self._bench.lab, len(seeds or self.seeds)
        places = np.arange(len(self.features(kind, seeds)) // many)
        if kind.source == GENERATED:
            return np.tile(groups_of(len(places), lab.labels(places)), many)
        real = lab.real(kind.source)
        return np.tile(groups_of(real.count, real.labels)[lab.picked(kind.source, places)], many)

    def distance(self, kind: Cell, seeds: Sequence[int] | None = None) -> Estimate:
        return frechet_estimate(self._bench.stats, self.features(kind, seeds), groups=self.groups(kind, seeds))

    def row(self, kind: Cell) -> Row:
        whole, each = self.distance(kind), [self.distance(kind, [seed]).value for seed in self.seeds]
        told = [self._bench.lab.told(replace(kind, seed=s)) for s in self.seeds]
        assert whole.low is not None and whole.high is not None
        return Row(
            kind.arm, kind.source, kind.base, kind.level, kind.hand_over, whole.value, whole.low, whole.high,
            tuple(each), tuple(told[0]["evaluations"]),
            sum(t["seconds"] for t in told) / sum(t["images"] for t in told),
        )  # fmt: skip

    def gap(self, kind: Cell, than: Cell, seeds: Sequence[int] | None = None) -> Gap:
        """Log ratio of the distances; above 0: ``kind`` is worse. Of generated low-res images, or of real ones, on the
        same seeds and images; between them the two intervals are added as independent ones are."""
        if kind.source != than.source:
            one, two = (self.distance(each, seeds) for each in (kind, than))
            assert one.high is not None and two.high is not None
            value = math.log(one.value / two.value)
            reach = math.hypot(*((each.high or 0) / each.value - 1 for each in (one, two)))
            return Gap(value, value - reach, value + reach)
        pair = self.features(kind, seeds), self.features(than, seeds)
        found = frechet_log_ratio(self._bench.stats, *pair, groups=self.groups(kind, seeds))
        assert found.low is not None and found.high is not None
        return Gap(found.value, found.low, found.high)

    def of(
        self, arm: str, source: str = GENERATED, hand_over: str = "non_truncated", base: str | None = None
    ) -> list[Cell]:
        """By rising level. base: another than the one looked at."""
        base = "" if source != GENERATED else self.base if base is None else base
        asked = (arm, source, hand_over, base)
        found = [kind for kind in self.kinds if (kind.arm, kind.source, kind.hand_over, kind.base) == asked]
        return sorted(found, key=lambda kind: kind.level or 0.0)

    def best(self, kinds: Sequence[Cell], seeds: Sequence[int] | None = None) -> Cell:
        return min(kinds, key=lambda kind: self.distance(kind, seeds).value)

    def slope(self, kinds: Sequence[Cell]) -> Estimate:
        """Of log distance over the level by least squares, with a jackknife over groups of seeds."""
        levels = np.array([kind.level for kind in kinds])
        weights = (levels - levels.mean()) / ((levels - levels.mean()) ** 2).sum()
        features = [self.features(kind) for kind in kinds]

        def fitted(kept: np.ndarray) -> float:
            logs = [math.log(frechet_estimate(self._bench.stats, rows[kept]).value) for rows in features]
            return float(weights @ np.array(logs))

        place = self.groups(kinds[0])
        return jackknife(fitted(place >= 0), [fitted(place != g) for g in range(GROUPS)], "seeds")

    def curves(self, arm: str, source: str) -> LevelCurves | None:
        """Of generated and real low-res images."""
        generated, real = self.of(arm), self.of(arm, source)
        if not generated or not real:
            return None
        by_level = {kind.level: kind for kind in real}
        points = {
            GENERATED: [self.point(kind, generated, by_level.get(kind.level)) for kind in generated],
            source: [self.point(kind, real) for kind in real],
        }
        return LevelCurves(
            arm, PLAN["images"] * len(self.seeds), {"non_truncated": tuple(points[GENERATED])}, tuple(points[source])
        )

    def point(self, kind: Cell, kinds: Sequence[Cell], other: Cell | None = None) -> LevelPoint:
        """Beside the best and the first of ``kinds``, and the same level of ``other`` low-res images."""
        row, best, first = self.row(kind), self.best(kinds), kinds[0]
        level = kind.level or 0.0
        logsnr = float(aug_level_to_logsnr(AugmentationConfig(), _tensor(level))[0])
        against = None if kind == best else self.gap(kind, best)
        lowest = self.row(best).distance
        return LevelPoint(
            level, logsnr, row.distance, row.low, row.high, against,
            None if kind == first else self.gap(kind, first),
            None if other is None else self.gap(kind, other),
            None if against is None else (lowest * math.exp(against.low), lowest * math.exp(against.high)),
        )  # fmt: skip


def _tensor(level: float) -> Any:
    import torch

    return torch.tensor([level], dtype=torch.float64)


# ---- verdicts --------------------------------------------------------------------------------------------------------


def verdict_a(results: Results, augmented: Sequence[Cell], naive: str = "naive") -> dict[str, Any]:
    """The best level by one seed, judged by the others. Of nets of their own level naive is that of level 0."""
    rest = [seed for seed in results.seeds if seed != PLAN["choose_seed"]]
    best = results.best(augmented, [PLAN["choose_seed"]])
    found: dict[str, Any] = {"best_level": best.level}
    line = [*results.of(naive), *augmented] if len({kind.arm for kind in augmented}) > 1 else augmented
    if len(line) > 2:
        found |= minimum(results, line)
    if kinds := results.of(naive):
        ratio = ratio_of(results.gap(kinds[0], best, rest))
        found |= {"naive_over_augmented": ratio, "naive_at_least_1.5": ratio["value"] >= 1.5}
    direct = [kind for kind in results.kinds if kind.arm.startswith("direct")]
    if kinds := [kind for kind in direct if kind.base == results.base] or direct:  # a remedy's own, or the plan's
        ratio = ratio_of(results.gap(kinds[0], best, rest))
        found |= {"direct_over_augmented": ratio, "direct_worse": ratio["low"] > 1}
    return found


def verdict_b(compared: list[dict[str, Any]]) -> dict[str, Any]:
    return {"alike": {pair["what"][0]: pair["ratio"]["low"] <= 1 <= pair["ratio"]["high"] for pair in compared}}


def verdict_c(results: Results, arm: str = "amortised", source: str = REAL) -> dict[str, Any]:
    real, generated = results.of(arm, source), results.of(arm)
    slope = results.slope(real)
    better = [kind.level for kind in real[1:] if results.gap(kind, real[0]).high < 0]
    assert slope.low is not None
    return {
        "real_slope": {"value": slope.value, "low": slope.low, "high": slope.high},
        "real_rises": slope.low > 0,
        "real_highest_over_0": ratio_of(highest := results.gap(real[-1], real[0])),
        "real_highest_worse": highest.low > 0,
        "real_levels_better_than_0": better,
        **minimum(results, generated),
    }


def minimum(results: Results, kinds: Sequence[Cell]) -> dict[str, Any]:
    """Whether the least of ``kinds``, by rising level, lies inside, beyond the intervals of both ends."""
    best = results.best(kinds)
    ends = [results.gap(end, best) for end in (kinds[0], kinds[-1]) if end != best]
    return {
        "generated_best_level": best.level,
        "generated_ends_over_best": [ratio_of(gap) for gap in ends],
        "generated_minimum_inside": len(ends) == 2 and all(gap.low > 0 for gap in ends),
    }


def pairs(results: Results, experiment: str) -> list[dict[str, Any]]:
    """What the experiment compares, pair by pair."""
    arms = PLAN["experiments"][experiment]["arms"]
    compared: list[tuple[Cell, Cell]] = []
    if kind_of(experiment) == "b":
        plain = {kind.level: kind for kind in results.of("amortised")}
        compared = [(kind, plain[kind.level]) for kind in results.of("amortised", GENERATED, "truncated")
                    if kind.level in plain]  # fmt: skip
    elif experiment == "d":
        none = results.of("high-none")
        compared = [(kind, none[0]) for arm in arms[:-1] for kind in results.of(arm)] if none else []
    elif experiment in "ef":
        plain = {kind.level: kind for kind in results.of("amortised")}
        compared = [(kind, plain[kind.level]) for arm in arms[1:] for kind in results.of(arm) if kind.level in plain]
        if experiment == "e" and compared:  # and the best of each
            compared.append((results.best(results.of("no-class")), results.best(list(plain.values()))))
    else:  # a, g, and remedies: what has no level with every level
        plain_ones = [kind for arm in arms if arm.startswith(("naive", "direct")) for kind in results.of(arm)]
        compared = [(kind, than) for kind in plain_ones for than in _augmented(results, arms)]
    return [
        {"what": [_called(kind), _called(than)], "ratio": ratio_of(results.gap(kind, than))} for kind, than in compared
    ]


def _augmented(results: Results, arms: Sequence[str]) -> list[Cell]:
    """By rising level: of one net for all, or of one for each."""
    return [kind for arm in arms if arm.startswith(("amortised", "fixed")) for kind in results.of(arm)]


def _called(kind: Cell) -> str:
    return f"{kind.arm}, {'no level' if kind.level is None else f'level {kind.level:g}'}, {kind.hand_over}"


def ratio_of(gap: Gap) -> dict[str, float]:
    return {"value": math.exp(gap.value), "low": math.exp(gap.low), "high": math.exp(gap.high)}


# ---- files -----------------------------------------------------------------------------------------------------------


def write_tables(
    out: Path, experiments: dict[str, tuple[list[Cell], list[Cell], list[Cell]]],
    open_bench: Callable[[int], BenchLike], beside: dict[str, dict[str, Any]],
) -> None:  # fmt: skip
    """``EXPERIMENT.json``, ``.md``, ``-pictures.png`` and, where there are curves, ``.png``.

    experiments: own cells, others' that they are compared with, and those that are only drawn. beside: what else was
        measured for one: "judged", the readings of the base, and "timed", the seconds of both hand-overs.
    """
    benches: dict[int, BenchLike] = {}
    for experiment, (cells, others, more) in experiments.items():
        size = PLAN["arms"][cells[0].arm]["sizes"][-1]
        benches[size] = benches.get(size) or open_bench(size)
        results = Results(benches[size], list(dict.fromkeys([*cells, *others])), cells[0].base, more)
        if not results.kinds:
            print(f"experiment {experiment}: no arm has all its seeds yet")
            continue
        told: dict[str, Any] = {
            "experiment": experiment, "plan": PLAN["experiments"][experiment], "cells_missing": results.missing,
            "rows": [asdict(results.row(kind)) for kind in results.kinds if kind.base in ("", results.base)],
            "pairs": pairs(results, experiment),
        }  # fmt: skip
        told |= beside.get(experiment, {})
        whole, naive = not results.missing, [arm for arm in told["plan"]["arms"] if arm.startswith("naive")]
        if kind_of(experiment) == "a" and (augmented := _augmented(results, told["plan"]["arms"])):
            told["verdict"] = verdict_a(results, augmented, *naive)
            if len(lines := by_nets(results)) > 1:
                write_atomic(make_folder(out) / f"{experiment}.png", levels_plot(lines, "FD-domain"))
        if kind_of(experiment) == "b":
            told["verdict"] = verdict_b(told["pairs"])
        if whole and kind_of(experiment) in "cg":
            arm = "amortised-64" if experiment == "g" else "amortised"
            source = HELD_OUT if "of" in told["plan"] else REAL
            told["verdict"] = verdict_c(results, arm, source)
            if naive:
                told["verdict"] |= verdict_a(results, results.of(arm), *naive)
            curves = results.curves(arm, source)
            assert curves is not None
            told["curves"] = curves.told()
            write_atomic(make_folder(out) / f"{experiment}.png", levels_plot(drawn(results, curves, arm), "FD-domain"))
        own = [kind for kind in results.kinds if kind.arm in told["plan"]["arms"]]
        if shown := chosen(own, results.base, results.best):
            first = [replace(kind, seed=results.seeds[0]) for kind in shown]
            write_atomic(make_folder(out) / f"{experiment}-pictures.png", sheet(benches[size].lab, first))
        save_json(make_folder(out) / f"{experiment}.json", told)
        write_atomic(out / f"{experiment}.md", _markdown(told).encode())
        print(f"experiment {experiment}: written to {out / experiment}.json, {results.missing} cells missing")


def drawn(results: Results, curves: LevelCurves, arm: str) -> dict[str, list[dict[str, Any]]]:
    """Lines of the plot: of every base that was measured, the plan's own first."""
    lines = {}
    for base in ("", *PLAN["bases"]):
        if kinds := results.of(arm, base=base):
            name = PLAN["bases"][base]["called"] if base else "generated"
            lines[name] = [results.point(kind, kinds).told() for kind in kinds]
    return lines | {"real low-res images": [p.told() for p in curves.real]}


def by_nets(results: Results) -> dict[str, list[dict[str, Any]]]:
    """Lines of the plot: of every range of levels that an SR net was trained on, on the same low-res images."""
    lines, own = {}, [kind for kind in results.kinds if "level" in PLAN["arms"][kind.arm] and kind.base == results.base]
    for arm in dict.fromkeys(kind.arm for kind in results.kinds if kind.arm.startswith("amortised")):
        low, high = PLAN["arms"][arm].get("levels", PLAN["trained_levels"]).split(":")
        lines[f"one net for levels {low} to {high}"] = results.of(arm)
    if own:
        lines["a net for each level (0: naive)"] = [
            *results.of("naive"),
            *sorted(own, key=lambda kind: kind.level or 0),
        ]
    return {name: [results.point(kind, kinds).told() for kind in kinds] for name, kinds in lines.items() if kinds}


def _markdown(told: dict[str, Any]) -> str:
    lines = ["| arm | low-res | level | hand-over | FD-domain (95 %) | of each seed | evaluations |", "|" + "---|" * 7]
    for row in told["rows"]:
        level = "–" if row["level"] is None else f"{row['level']:g}"
        seeds, source = ", ".join(f"{value:.3g}" for value in row["of_seeds"]), row["source"]
        if row["base"]:
            source = PLAN["bases"][row["base"]]["called"]
        lines.append(
            f"| {row['arm']} | {source} | {level} | {row['hand_over']} | {row['distance']:.3g} "
            f"({row['low']:.3g} to {row['high']:.3g}) | {seeds} | {' + '.join(map(str, row['evaluations']))} |"
        )
    if told["pairs"]:
        lines += ["", "| this | over that | ratio (95 %) |", "|---|---|---|"]
        lines += [
            f"| {pair['what'][0]} | {pair['what'][1]} | {pair['ratio']['value']:.2f} ({pair['ratio']['low']:.2f} to "
            f"{pair['ratio']['high']:.2f}) |"
            for pair in told["pairs"]
        ]
    if "judged" in told:
        read = {what: told["judged"][what] for what in ("generated", "real")}
        shares = {what: f"{each['value']:.3f} ({each['low']:.3f} to {each['high']:.3f})" for what, each in read.items()}
        lines += ["", f"Images of the base, {told['judged']['size']} pixels, read as the class asked for: "
                  f"{shares['generated']}; real ones: {shares['real']}."]  # fmt: skip
    if "timed" in told:
        seconds = "seconds, truncated / non-truncated (min to max)"
        lines += ["", f"| level | evaluations, non-truncated | truncated | {seconds} |", "|---|---|---|---|"]
        for row in told["timed"]["rows"]:
            plain, cut = (" + ".join(map(str, row["evaluations"][way])) for way in ("non_truncated", "truncated"))
            ratio = row["truncated / non_truncated"]
            lines.append(f"| {row['level']:g} | {plain} | {cut} | {ratio['median']:.2f} ({ratio['min']:.2f} to "
                         f"{ratio['max']:.2f}) |")  # fmt: skip
    return "\n".join(lines) + "\n"
