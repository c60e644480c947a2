"""Figures that were computed once are kept; a damaged line of them is computed again."""

import json
from pathlib import Path

from cdm.evaluate.intervals import Estimate
from cdm.pipeline.evaluate_figures import Desk, Ledger
from cdm.pipeline.evaluate_request import EvaluateRequest


def test_a_line_that_has_lost_a_part_is_computed_again(tmp_path: Path) -> None:
    file = tmp_path / "figures.jsonl"
    request = EvaluateRequest(subject="images", data="val", out=tmp_path)
    computed = []

    def compute() -> dict[str, Estimate]:
        computed.append(1)
        return {"kid": Estimate(0.5, None, None, "none")}

    def measure() -> float | None:
        desk = Desk(request, Ledger(file), lambda _: None)
        return desk.measure(["kid"], ["images"], compute)[0].value

    assert measure() == measure() == 0.5 and len(computed) == 1
    whole = json.loads(file.read_text())
    lost = [{"key": whole["key"]}, {"body": 1}, {"key": [1], "body": 1}]
    damaged = [*lost, whole | {"body": None}, whole | {"body": [{"no": "figure"}]}, whole | {"body": ["no figure"]}]
    for number, line in enumerate(damaged, start=2):
        file.write_text(json.dumps(line) + "\n")
        assert measure() == 0.5 and len(computed) == number
        assert measure() == 0.5 and len(computed) == number
