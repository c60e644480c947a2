"""From what the user asks to recorded plans: converted once, extended by a larger budget; a smaller one is refused."""

import time
from pathlib import Path
from typing import Any

import pytest
from tests.train.tiny import stage_config

from cdm.errors import UserError
from cdm.pipeline.budget import CHECKPOINT_SECONDS, DEFAULT_MINUTES, extend, plan_stages
from cdm.pipeline.request import TrainRequest
from cdm.train.checkpoint import save_checkpoint
from cdm.train.events import Events
from cdm.train.loop import read_plan
from cdm.train.plan import OVERHEAD

STAGES = (stage_config(cost_share=0.75), stage_config(size=16, low=8, cost_share=0.25))
SPEEDS = (100.0, 50.0)


class Budget:
    """A run of which only budgets are looked at."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.out = folder
        self.events = Events(folder / "events.jsonl")
        self.measured: list[int] = []
        self.said: list[str] = []
        monkeypatch.setattr(time, "monotonic", lambda: 1000.0)

    def request(self, **asked: Any) -> TrainRequest:
        return TrainRequest(data="data", out=self.out, **asked)

    def speed(self, k: int) -> float:
        self.measured.append(k)
        return SPEEDS[k]

    def plan(self, *, todo: tuple[int, ...] = (0, 1), took: float = 0.0, **asked: Any) -> list[dict[str, Any]]:
        """Plan the stages that have no plan, record that, and give it."""
        made = plan_stages(self.request(**asked), STAGES, todo, self.events, self.speed, 1000.0 - took)
        for event in made:
            self.events.append("budget", **event)
        return made

    def stage_folder(self, k: int) -> str:
        return str(self.out / f"{k}")

    def ask_again(self, *, todo: tuple[int, ...] = (0, 1), **asked: Any) -> None:
        extend(self.request(**asked), STAGES, todo, self.events, self.stage_folder, self.said.append)

    def totals(self, seen: int) -> list[int]:
        plans = [read_plan(self.events, k) for k in range(2)]
        return [plan.total(seen) for plan in plans if plan is not None]


@pytest.fixture
def budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Budget:
    return Budget(tmp_path, monkeypatch)


def test_images_are_rounded_to_batches_and_checkpoints_come_every_minute(budget: Budget) -> None:
    budget.plan(images=50_001)
    for k in range(2):
        plan = read_plan(budget.events, k)
        assert plan is not None and (plan.goal, plan.seconds) == (50_000, 0.0)
        assert plan.checkpoint_images == pytest.approx(SPEEDS[k] * CHECKPOINT_SECONDS, abs=4)
        assert plan.checkpoint_images % 8 == 0
    assert budget.plan(images=50_001) == []


def test_short_run_has_four_checkpoints(budget: Budget) -> None:
    assert [event["checkpoint_images"] for event in budget.plan(images=800)] == [200, 200]


def test_nothing_is_measured_that_is_not_needed(budget: Budget) -> None:
    assert [event["checkpoint_images"] for event in budget.plan(images=800, checkpoint_images=99)] == [96, 96]
    assert budget.measured == []


def test_minutes_are_converted_once_by_measured_speed(budget: Budget) -> None:
    """What it took to read the data and to measure is part of the minutes."""
    made = budget.plan(minutes=10.0, took=40.0)
    seconds = [event["seconds"] for event in made]
    assert seconds == [0.75 * 560, 0.25 * 560]
    for event, speed in zip(made, SPEEDS, strict=True):
        assert event["images"] == pytest.approx(event["seconds"] * speed * (1 - OVERHEAD), abs=4)
        assert (event["asked_images"], event["asked_minutes"]) == (None, 10.0)
    assert budget.measured == [0, 1]
    assert budget.plan(minutes=10.0) == [] and budget.measured == [0, 1]


def test_default_is_an_hour(budget: Budget) -> None:
    assert sum(event["seconds"] for event in budget.plan()) == pytest.approx(60 * DEFAULT_MINUTES)


def test_recipe_with_its_own_budget(budget: Budget, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [stage_config(images=4000), stage_config(size=16, low=8, images=2000)]
    made = plan_stages(budget.request(), stages, (0, 1), budget.events, budget.speed, 1000.0)
    assert [(event["images"], event["asked_images"]) for event in made] == [(4000, 4000), (2000, 2000)]
    made = plan_stages(budget.request(minutes=10.0), stages, (0, 1), budget.events, budget.speed, 1000.0)
    assert [event["asked_minutes"] for event in made] == [10.0, 10.0]


def test_stage_planned_later_gets_its_part_of_the_minutes_alone(budget: Budget) -> None:
    """A kill came between the records of two stages."""
    first, second = plan_stages(budget.request(minutes=10.0), STAGES, (0, 1), budget.events, budget.speed, 1000.0)
    budget.events.append("budget", **first)
    (rest,) = budget.plan(minutes=10.0)
    assert rest == second


def test_stage_trained_alone_gets_all_minutes(budget: Budget) -> None:
    (alone,) = budget.plan(todo=(1,), minutes=10.0)
    assert (alone["stage"], alone["seconds"]) == (1, 600.0)


@pytest.mark.parametrize("asked", [{"images": 79}, {"minutes": 0.01}])
def test_too_small(budget: Budget, asked: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"budget is too small: .* at least 80 .*raise --images or --minutes"):
        budget.plan(**asked)
    assert budget.events.all() == []


# ---- asked again -----------------------------------------------------------------------------------------------------


def checkpointed(budget: Budget, *images: int) -> None:
    for k, seen in enumerate(images):
        save_checkpoint(budget.stage_folder(k), seen, {}, {})


@pytest.mark.parametrize("asked", [{}, {"images": 800}])
def test_same_budget_changes_nothing(budget: Budget, asked: dict[str, Any]) -> None:
    budget.plan(images=800)
    budget.ask_again(**asked)
    assert len(budget.events.all()) == 2 and budget.said == []


def test_larger_budget_holds_from_the_newest_checkpoint(budget: Budget) -> None:
    budget.plan(images=800)
    checkpointed(budget, 800, 400)  # the base is finished, the next stage is not
    budget.ask_again(images=1600)
    extended = budget.events.all()[2:]
    assert [(e["stage"], e["at"], e["images"], e["why"]) for e in extended] == [
        (0, 800, 1600, "extended"),
        (1, 400, 1600, "extended"),
    ]
    assert [e["checkpoint_images"] for e in extended] == [200, 200]
    assert budget.totals(392) == [800, 800]
    assert budget.totals(800) == [1600, 1600]
    assert budget.said == [f"stage {k}: extended from 800 to 1,600 images" for k in range(2)]
    budget.ask_again(images=1600)
    assert len(budget.events.all()) == 4


def test_more_minutes_make_it_longer_in_proportion(budget: Budget) -> None:
    first = budget.plan(minutes=10.0)
    budget.ask_again(minutes=25.0)
    for before, after in zip(first, budget.events.all()[2:], strict=True):
        assert after["images"] == pytest.approx(2.5 * before["images"], abs=4)
        assert after["seconds"] == pytest.approx(2.5 * before["seconds"])
        assert (after["asked_minutes"], after["asked_images"]) == (25.0, None)


def test_more_minutes_for_a_stage_that_was_shortened(budget: Budget) -> None:
    """Its speed is what it was: twice the time gives twice the images that it got to."""
    budget.plan(minutes=10.0)
    budget.events.append("budget", stage=0, at=8000, images=16_000, checkpoint_images=80, seconds=450.0, why="late")
    checkpointed(budget, 16_000)
    budget.ask_again(todo=(0,), minutes=20.0)
    assert budget.events.all()[-1]["images"] == 32_000


@pytest.mark.parametrize(
    ("first", "then", "told"),
    [
        ({"images": 8_000_000}, {"images": 7_999_999}, ("--images 8000000", "--images 7999999")),
        ({"minutes": 10.0}, {"minutes": 9.5}, ("--minutes 10", "--minutes 9.5")),
        ({"minutes": 10.0}, {"images": 800}, ("--minutes 10", "--images 800")),
        ({"images": 800}, {"minutes": 100.0}, ("--images 800", "--minutes 100")),
        ({}, {"minutes": 30.0}, ("--minutes 60", "--minutes 30")),
    ],
)
def test_smaller_budget_or_one_of_the_other_kind_is_refused_naming_both(
    budget: Budget, first: dict[str, Any], then: dict[str, Any], told: tuple[str, str]
) -> None:
    budget.plan(**first)
    with pytest.raises(UserError) as error:
        budget.ask_again(**then)
    assert f"was started with {told[0]}, now it is {told[1]};" in str(error.value)
    assert len(budget.events.all()) == 2


def test_one_refused_stage_leaves_all_as_they_were(budget: Budget) -> None:
    budget.plan(todo=(0,), images=800)
    budget.plan(todo=(1,), images=2000)
    with pytest.raises(UserError, match="--images 2000, now it is --images 1600"):
        budget.ask_again(images=1600)
    assert len(budget.events.all()) == 2
    budget.ask_again(todo=(0,), images=1600)
    assert budget.totals(0) == [1600, 2000]


def test_killed_between_two_extensions_the_other_is_made_up_for(
    budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget.plan(images=800)
    append = Events.append

    def one_only(self: Events, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if kwargs["stage"] == 1:
            raise KeyboardInterrupt
        return append(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Events, "append", one_only)
        with pytest.raises(KeyboardInterrupt):
            budget.ask_again(images=1600)
    budget.ask_again(images=1600)
    assert [(e["stage"], e["images"]) for e in budget.events.all()[2:]] == [(0, 1600), (1, 1600)]
