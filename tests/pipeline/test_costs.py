"""What an image costs: evaluations are those that sampling makes, FLOPs those of the net, and time grows with both."""

from __future__ import annotations

import pytest
import torch
from tests.fakes import random_cascade, stage_config

from cdm.cascade import Cascade
from cdm.nn.flops import count_flops
from cdm.pipeline.costs import stage_costs, told_costs


@pytest.fixture(scope="module")
def cascade() -> Cascade:
    options = {"channels": 3, "num_labels": 4}
    return random_cascade(stage_config(8, **options), stage_config(32, 8, **options), classes="abc")


@pytest.mark.parametrize(
    "asked",
    [{"steps": (6, 4)}, {"steps": (7, 4), "sampler": "heun,dpmpp"}, {"steps": (8, 4), "hand_over": "truncated"}],
    ids=["plain", "heun", "truncated"],
)
def test_evaluations_are_those_that_sampling_makes(cascade: Cascade, asked: dict, monkeypatch) -> None:
    settings = cascade.settings(**asked)
    costs = stage_costs(cascade, settings, 2)
    calls = [0, 0]
    for stage in cascade.stages:
        forward = stage.net.forward

        def counted(*inputs, index=stage.index, forward=forward):
            calls[index] += 1
            return forward(*inputs)

        monkeypatch.setattr(stage.net, "forward", counted)
    assert cascade.sample([0, 1], settings=settings).evaluations == tuple(cost.evaluations for cost in costs)
    assert calls == [cost.evaluations for cost in costs]
    assert [cost.flops for cost in costs] == [
        calls[k] * count_flops(stage.config.net, stage.config.size) for k, stage in enumerate(cascade.stages)
    ]


def test_shares_are_of_all_seconds(cascade: Cascade) -> None:
    told = told_costs(stage_costs(cascade, cascade.settings(steps=(2, 64)), 4))
    assert sum(row["share"] for row in told) == pytest.approx(1)
    assert told[1]["share"] > 0.9 and told[1]["seconds"] > told[0]["seconds"] > 0
    assert all(torch.isfinite(torch.tensor(row["seconds"])) for row in told)
