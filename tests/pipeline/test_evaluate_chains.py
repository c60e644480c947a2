"""Which augmentation levels a diagnosis tries beside the one in use."""

import pytest

from cdm.pipeline.evaluate_chains import LEVELS_MOST, levels_to_try


@pytest.mark.parametrize(
    ("used", "level_max", "tried"),
    [
        (0.0, 1.0, [0.1, 0.2]),
        (0.01, 1.0, [0.02, 0.1, 0.2]),
        (0.1, 1.0, [0.05, 0.2]),
        (0.2, 1.0, [0.1, 0.4]),
        (0.3, 1.0, [0.1, 0.2, 0.6]),
        (0.3, 0.3, [0.1, 0.15, 0.2]),
        (0.8, 1.0, [0.1, 0.2, 1.0]),
        (0.0, 0.05, [0.05]),
        (0.0, 0.0, []),
    ],
)
def test_levels_lie_around_the_one_in_use(used: float, level_max: float, tried: list[float]) -> None:
    assert levels_to_try(used, level_max) == pytest.approx(tried)
    assert len(tried) <= LEVELS_MOST
