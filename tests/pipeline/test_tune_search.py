"""The search of ``cdm tune`` on a known law: what it finds, what it leaves out, and that it goes on."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cdm.pipeline import tune_search as module
from cdm.pipeline.tune_search import (
    GRIDS,
    SAMPLERS,
    Budget,
    Candidate,
    Ledger,
    Measured,
    Trial,
    front,
    pick,
    search,
)

LEVEL = {"dpmpp": 1.0, "dpmpp_sde": 0.8, "ddpm": 0.7, "heun": 2.0, "heun_churn": 3.0}
GRID = {"logsnr": 1.0, "edm": 1.1, "cosine": 3.0, "profile": 0.9}


def law(candidate: Candidate) -> float:
    """Falls with evaluations to a floor; the ancestral sampler is bad at few and best at many."""
    slow = 40 if candidate.sampler == "ddpm" else 4
    return GRID[candidate.grid] * (LEVEL[candidate.sampler] + slow / candidate.evaluations)


def trial(asked: list[Candidate], *, seconds: float = 0.0, on: Callable[[Candidate], object] = lambda _: None) -> Trial:
    def measure(candidate: Candidate, images: int) -> Measured:
        on(candidate)
        asked.append(candidate)
        return Measured(candidate, law(candidate), None, None, images, seconds)

    return Trial(lambda candidate, images: f"{candidate} {images}", measure, probe)


def probe() -> Measured:
    """A pace of nothing."""
    return Measured(Candidate("dpmpp", "logsnr", 3), 0.0, None, None, 32, 0.0)


def run(tmp_path: Path, asked: list[Candidate], **options) -> tuple[list[Measured], list[Candidate]]:
    seconds = options.pop("minutes", 60.0) * 60
    budget = Budget(seconds, time.monotonic())
    return search(trial(asked, **options), Ledger(tmp_path / "m.jsonl"), budget, is_base=True, images=100, most=1000)


def test_the_front_of_the_law_is_found(tmp_path: Path) -> None:
    points, left_out = run(tmp_path, [])
    assert not left_out
    best = front(points)
    assert [p.candidate.evaluations for p in best] == list(module.LADDERS[0])
    everything = [Candidate(s, g, n) for s in LEVEL for g in GRID for n in module.LADDERS[0]]
    for point in best:  # the very best of all at each rung but the last, where ddpm may not have gone on
        rung = [law(c) for c in everything if c.evaluations == point.candidate.evaluations]
        assert point.value <= 1.05 * min(rung)
    assert all(p.images == 100 for p in points)


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    def stop(candidate: Candidate) -> None:
        if len(asked) == 30:
            raise KeyboardInterrupt

    asked: list[Candidate] = []
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, asked, on=stop)
    with open(tmp_path / "m.jsonl", "a") as file:
        file.write('{"key": "cut sho')  # as a kill leaves it
    with open(tmp_path / "m.jsonl", "ab") as file:
        file.write(b"\xff\xfe")  # and a bad disk
    rest: list[Candidate] = []
    points, _ = run(tmp_path, rest)
    never_stopped: list[Candidate] = []
    (tmp_path / "other").mkdir()
    assert run(tmp_path / "other", never_stopped)[0] == points
    assert asked + rest == never_stopped
    again: list[Candidate] = []
    assert run(tmp_path, again)[0] == points and not again


class Clock(Budget):
    """A budget on a clock that only measuring moves: a second for each evaluation."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds, 0.0)
        self.now = 0.0

    def left(self) -> float:
        return self.seconds - self.now


@pytest.mark.parametrize("seconds", [100.0, 500.0, 1000.0])
def test_little_time_leaves_the_costly_ones_out(tmp_path: Path, seconds: float) -> None:
    clock = Clock(seconds)

    def measure(candidate: Candidate, images: int) -> Measured:
        took = (candidate.evaluations + 2) * images / 100
        clock.now += took
        return Measured(candidate, law(candidate), None, None, images, took)

    timed = Trial(lambda candidate, images: f"{candidate} {images}", measure, probe)
    points, left_out = search(timed, Ledger(tmp_path / "m.jsonl"), clock, is_base=True, images=100, most=1000)
    assert clock.now <= seconds
    assert points and left_out
    raced = {(p.candidate.sampler, p.candidate.grid) for p in points}
    costly = [c.evaluations for c in left_out if (c.sampler, c.grid) in raced]
    assert max(p.candidate.evaluations for p in points) <= min(costly)


@pytest.mark.parametrize("seconds", [60.0, 150.0, 400.0, 1000.0])
def test_the_stage_s_own_grid_is_in_both_races_and_its_making_within_the_time(tmp_path: Path, seconds: float) -> None:
    """It takes 24 s once, and a candidate of the first race 10: where a race has less, it does without."""
    clock, made = Clock(seconds), []

    def measure(candidate: Candidate, images: int) -> Measured:
        took = (candidate.evaluations + 2) * images / 100
        clock.now += took
        if candidate.grid == "profile":
            clock.now += 0 if made else 24
            made.append(candidate.evaluations)
        return Measured(candidate, law(candidate), None, None, images, took)

    def pace() -> Measured:
        return Measured(Candidate("dpmpp", "logsnr", 3), 0.0, None, None, 32, 5 * 32 / 100)

    timed = Trial(lambda candidate, images: f"{candidate} {images}", measure, pace, profile=2400)
    search(timed, Ledger(tmp_path / "m.jsonl"), clock, is_base=True, images=100, most=1000)
    assert clock.now <= seconds
    assert {*made} >= {*module.RACES[0]} if 34 <= seconds * module.RACE_TIME else not made


def test_a_probe_keeps_even_the_first_candidate_within_the_time(tmp_path: Path) -> None:
    """Five seconds of an image and evaluation: 400 images of 8 evaluations would take hours."""
    asked: list[Candidate] = []
    probed: list[int] = []

    def slow() -> Measured:
        probed.append(1)
        return Measured(Candidate("dpmpp", "logsnr", 3), 0.0, None, None, 10, 250.0)

    own = replace(trial(asked), probe=slow)
    budget = Budget(600.0, time.monotonic())
    points, left_out = search(own, Ledger(tmp_path / "m.jsonl"), budget, is_base=True, images=400, most=1000)
    assert not points and not asked and len(left_out) == len(SAMPLERS) * len(GRIDS) and probed == [1]
    (few,), _ = search(own, Ledger(tmp_path / "n.jsonl"), budget, is_base=True, images=1, most=4, grids=["edm"])[:1], 0
    assert few and probed == [1, 1]  # 30 s each


def test_no_time_measures_nothing(tmp_path: Path) -> None:
    asked: list[Candidate] = []
    points, left_out = run(tmp_path, asked, minutes=1e-9)
    assert not asked and not points and len(left_out) == len(SAMPLERS) * len(GRIDS)


def test_how_it_is_sampled_now_is_measured_first_and_nothing_worse_replaces_it(tmp_path: Path) -> None:
    """Also where the time suffices for nothing else; and it is not measured twice."""
    now, asked = Candidate("ddpm_large", "logsnr", 32), []
    own = Trial(
        lambda c, n: f"{c} {n}",
        lambda c, n: asked.append(c) or Measured(c, 1.0 + (c != now), None, None, n, 9.0),
        probe,
    )
    for name, seconds in (("long", 1e9), ("short", 1e-2)):
        asked.clear()
        budget = Budget(seconds, time.monotonic())
        points, _ = search(own, Ledger(tmp_path / name), budget, is_base=True, images=400, most=1000, present=now)
        assert asked[0] == now and asked.count(now) == 1
        assert pick(points, 1.0).candidate == now
    assert asked == [now]


@pytest.mark.parametrize("seconds", [150.0, 250.0, 300.0, 450.0])
@pytest.mark.parametrize("evaluations", [128, 250])
def test_a_dear_present_setting_leaves_the_races_what_is_left(tmp_path: Path, seconds: float, evaluations: int) -> None:
    clock, now = Clock(seconds), Candidate("ddpm_large", "logsnr", evaluations)

    def measure(candidate: Candidate, images: int) -> Measured:
        took = (candidate.evaluations + 2) * images / 256
        clock.now += took
        return Measured(candidate, 1.0, None, None, images, took)

    def pace() -> Measured:
        return Measured(Candidate("dpmpp", "logsnr", 3), 0.0, None, None, 32, 5 * 32 / 256)

    timed = Trial(lambda candidate, images: f"{candidate} {images}", measure, pace)
    ledger = Ledger(tmp_path / "m.jsonl")
    points, left_out = search(timed, ledger, clock, is_base=True, images=256, most=1000, present=now)
    assert clock.now <= seconds
    assert (now in [each.candidate for each in points]) == (evaluations + 2 <= seconds)
    assert left_out


def test_heun_is_measured_at_what_it_takes(tmp_path: Path) -> None:
    """An odd number of evaluations; each once."""
    asked: list[Candidate] = []
    search(trial(asked), Ledger(tmp_path / "m.jsonl"), Budget(1e9, time.monotonic()), is_base=False, images=10, most=99)
    heun = [candidate for candidate in asked if candidate.sampler.startswith("heun")]
    assert heun and all(candidate.evaluations % 2 for candidate in heun)


def test_a_table_limits_the_ladder(tmp_path: Path) -> None:
    ledger, budget = Ledger(tmp_path / "m.jsonl"), Budget(600.0, time.monotonic())
    points, _ = search(trial([]), ledger, budget, is_base=False, images=10, most=10)
    assert sorted({p.candidate.evaluations for p in points}) == [2, 3, 4, 6, 8, 10]


def point(evaluations: int, value: float) -> Measured:
    return Measured(Candidate("dpmpp", "edm", evaluations), value, None, None, 1, 0.0)


def test_front_and_picks() -> None:
    points = [point(8, 2.0), point(4, 5.0), point(8, 3.0), point(16, 2.1), point(32, 1.9), point(64, 1.9)]
    assert [(p.candidate.evaluations, p.value) for p in front(points)] == [(4, 5.0), (8, 2.0), (32, 1.9)]
    assert pick(points, 1.0).candidate.evaluations == 32
    assert pick(points, 1.06).candidate.evaluations == 8
    assert pick(points, 3.0).candidate.evaluations == 4


def test_a_pick_allows_for_the_chance_in_the_best() -> None:
    """One standard error of the best, 0.5 here; ``best`` itself stays the best."""
    best = Measured(Candidate("dpmpp", "edm", 64), 1.0, 0.02, 1.98, 1, 0.0)
    points = [point(4, 5.0), point(8, 1.6), point(16, 1.5), best]
    assert pick(points, 1.05).candidate.evaluations == 16
    assert pick(points, 1.25).candidate.evaluations == 8
    assert pick(points, 1.0) == best
