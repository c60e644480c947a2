"""Budgets and schedules, all pure functions: closed forms, and what recorded decisions do to them."""

import time
from itertools import pairwise
from typing import Any

import pytest
import torch
from tests.train.tiny import Images, make_stage, same, stage_config

from cdm.config import OptimConfig
from cdm.errors import UserError
from cdm.rng import Rng
from cdm.train.plan import (
    OVERHEAD,
    Pace,
    Plan,
    Segment,
    check_budget,
    goal_in_time,
    learning_rate,
    measure_speed,
    round_to_batch,
    share_minutes,
)
from cdm.train.step import Trainee

OPTIM = OptimConfig(batch_size=10, lr=0.4, warmup_images=100, decay_fraction=0.25, lr_final=0.1)
PLAN = Plan((Segment(0, 1000),), 100)


def test_learning_rate_warms_up_stays_and_decays() -> None:
    assert learning_rate(OPTIM, PLAN, 0) == pytest.approx(0.04)  # one batch of ten that warm up
    assert learning_rate(OPTIM, PLAN, 40) == pytest.approx(0.2)
    for seen in (90, 100, 500, 750):
        assert learning_rate(OPTIM, PLAN, seen) == pytest.approx(0.4)
    assert learning_rate(OPTIM, PLAN, 875) == pytest.approx(0.4 * (0.1 + 0.9 / 2))
    assert learning_rate(OPTIM, PLAN, 1000) == pytest.approx(0.04)
    rates = [learning_rate(OPTIM, PLAN, seen) for seen in range(750, 1000, 10)]
    assert all(a > b for a, b in pairwise(rates))


def test_learning_rate_without_warm_up_or_decay() -> None:
    flat = OptimConfig(batch_size=10, lr=0.4, warmup_images=0, decay_fraction=0.0)
    assert {learning_rate(flat, PLAN, seen) for seen in range(0, 1000, 10)} == {0.4}


def test_decisions_hold_from_where_they_were_made() -> None:
    longer = Plan((*PLAN.segments, Segment(900, 2000)), 100)
    shorter = Plan((*PLAN.segments, Segment(500, 600)), 100)
    for plan, at in ((longer, 900), (shorter, 500)):
        for seen in range(0, at, 10):
            assert learning_rate(OPTIM, plan, seen) == learning_rate(OPTIM, PLAN, seen)
    assert [longer.total(n) for n in (0, 899, 900, 1990)] == [1000, 1000, 2000, 2000]
    assert learning_rate(OPTIM, PLAN, 900) < learning_rate(OPTIM, longer, 900) == pytest.approx(0.4)
    assert learning_rate(OPTIM, shorter, 500) == pytest.approx(0.4 * (0.1 + 0.9 * (100 / 600) / 0.25))
    assert (PLAN.goal, longer.goal, shorter.goal) == (1000, 2000, 600)


def test_later_decision_overrules_an_earlier_one() -> None:
    """Shortened at 600, then killed, then extended from the checkpoint at 500."""
    plan = Plan((Segment(0, 1000), Segment(600, 700), Segment(500, 2000)), 100)
    assert [plan.total(n) for n in (0, 490, 500, 600, 700, 1990)] == [1000, 1000, 2000, 2000, 2000, 2000]


def test_regular_checkpoints() -> None:
    assert [n for n in range(10, 500, 10) if PLAN.is_regular(n)] == [100, 200, 300, 400]


@pytest.mark.parametrize(("images", "rounded"), [(0, 8), (3, 8), (11, 8), (13, 16), (16, 16), (1000, 1000)])
def test_round_to_batch(images: float, rounded: int) -> None:
    assert round_to_batch(images, 8) == rounded


def test_minutes_are_divided_by_cost() -> None:
    base, sr = stage_config(cost_share=0.75), stage_config(size=16, low=8, cost_share=0.25)
    shares = share_minutes([base, sr], [100.0, 40.0], 600.0)
    assert [seconds for _, seconds in shares] == [450.0, 150.0]
    assert [images for images, _ in shares] == [
        round_to_batch(450 * 100 * (1 - OVERHEAD), 8),
        round_to_batch(150 * 40 * (1 - OVERHEAD), 8),
    ]
    even = share_minutes([stage_config(), stage_config()], [10.0, 10.0], 100.0)
    assert even[0] == even[1] and even[0][1] == 50.0


def test_budget_too_small_is_refused_with_what_would_do() -> None:
    check_budget(80, stage_config(), "--images 80")
    for images in (79, 0, -5):
        with pytest.raises(UserError, match=r"--images \S+ gives the 8-pixel stage .* at least 80 .*raise --images"):
            check_budget(images, stage_config(), f"--images {images}")
    with pytest.raises(UserError, match="too small"):
        share_minutes([stage_config()], [10.0], 1.0)
    with pytest.raises(UserError, match="too small"):
        share_minutes([stage_config()], [10.0], -20.0)  # reading the data took longer than the budget


# ---- the clock -------------------------------------------------------------------------------------------------------


def test_pace_is_that_of_the_last_images() -> None:
    pace = Pace(100)
    seen, seconds, told = 0, 0.0, []
    for speed in [50.0] * 6 + [10.0] * 6:
        seen, seconds = seen + 25, seconds + 25 / speed
        told.append(pace.update(seconds, seen))
    assert told[:4] == [None] * 4
    assert told[4:6] == pytest.approx([50.0, 50.0])
    assert told[-2:] == pytest.approx([10.0, 10.0])  # the fast ones are forgotten


def test_pace_starts_anew_after_a_roll_back() -> None:
    pace = Pace(50)
    assert [pace.update(t, n) for t, n in ((0.0, 0), (1.0, 50))] == [None, 50.0]
    assert [pace.update(t, n) for t, n in ((2.0, 25), (3.0, 50), (4.0, 75))] == [None, None, 25.0]


TEN = OptimConfig(batch_size=10, decay_fraction=0.4)
TIMED = Plan((Segment(0, 1000),), 100, seconds=100.0)


def test_goal_stays_while_it_is_reached_with_at_most_a_tenth_more_time() -> None:
    assert goal_in_time(TIMED, 500, 50.0, 10.0, TEN) is None
    assert goal_in_time(TIMED, 500, 31.0, 10.0, TEN) is None  # 81 s
    assert goal_in_time(TIMED, 500, 59.0, 10.0, TEN) is None  # 109 s


@pytest.mark.parametrize(("seen", "seconds", "pace"), [(500, 61.0, 10.0), (200, 40.0, 5.0), (900, 95.0, 2.0)])
def test_late_goal_is_shortened_to_one_that_is_reached_in_time(seen: int, seconds: float, pace: float) -> None:
    goal = goal_in_time(TIMED, seen, seconds, pace, TEN)
    assert goal is not None and seen < goal < 1000 and goal % 10 == 0
    assert seconds + (goal - seen) / pace == pytest.approx(100.0, abs=10 / pace)


@pytest.mark.parametrize(("seen", "seconds", "pace"), [(100, 10.0, 30.0), (600, 50.0, 100.0)])
def test_early_goal_is_lengthened_to_one_that_is_reached_in_time(seen: int, seconds: float, pace: float) -> None:
    goal = goal_in_time(TIMED, seen, seconds, pace, TEN)
    assert goal is not None and goal > 1000 and goal % 10 == 0
    assert seconds + (goal - seen) / pace == pytest.approx((1 - OVERHEAD) * 100.0, abs=10 / pace)


def test_goal_stays_once_the_learning_rate_falls() -> None:
    """It would rise again."""
    assert goal_in_time(TIMED, 610, 5.0, 1000.0, TEN) is None


def test_stage_far_over_its_time_ends_with_the_next_update() -> None:
    assert goal_in_time(TIMED, 300, 150.0, 2.0, TEN) == 310
    assert goal_in_time(TIMED, 990, 150.0, 2.0, TEN) is None  # that is its end anyway


def test_what_was_decided_is_not_decided_again() -> None:
    """A run killed after the decision at 500 comes from a checkpoint before it."""
    plan = Plan((Segment(0, 1000), Segment(500, 600)), 100, seconds=100.0)
    assert goal_in_time(plan, 450, 90.0, 1.0, TEN) is None
    assert goal_in_time(plan, 500, 90.0, 1.0, TEN) is None
    assert goal_in_time(plan, 510, 90.0, 1.0, TEN) == 520


def test_speed_is_measured_without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    trainee = Trainee(make_stage(stage_config()))
    before = {name: x.clone() for name, x in trainee.state()[0].items()}
    source, asked = Images(), list[int]()

    def batches(rng: Rng, positions: torch.Tensor) -> Any:
        now[0] += 0.25
        asked.extend(positions.tolist())
        return source(rng, positions)

    assert measure_speed(trainee, batches, Rng(0), seconds=2.0) == pytest.approx(8 / 0.25)
    assert asked == list(range(len(asked))) and len(asked) > 24  # in order: what is gathered ahead is used
    waits = iter([0.25, 0.25, *[0.25, 5.0, 5.0] * 9])  # two steps of three beside another process
    slow = lambda *args: (now.__setitem__(0, now[0] + next(waits) - 0.25), batches(*args))[1]  # noqa: E731
    assert measure_speed(trainee, slow, Rng(0), seconds=20.0) == pytest.approx(8 / 0.25)
    after = trainee.state()[0]
    assert same(before, {name: after[name] for name in before})
    assert torch.equal(trainee.skipped, torch.zeros(()))
