"""What is said of both curves: where they part and meet, where the minimum lies; and that they can be drawn."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import pytest
from PIL import Image as PILImage

from cdm.evaluate.evaluation_plots import apart, levels_plot
from cdm.evaluate.level_curves import Gap, LevelCurves, LevelPoint

LEVELS = (0.0, 0.1, 0.2, 0.3)


def told(level: float) -> float:
    return 12.0 if level == 0 else -2 * math.log(math.tan(math.pi * level / 2))


def points(*values: float, reach: float = 1.0, real: Sequence[float] = ()) -> tuple[LevelPoint, ...]:
    """Every comparison is known to ``reach``, either way."""

    def gap(value: float, than: float) -> Gap:
        return Gap(1.0 * value - than, value - than - reach, value - than + reach)

    return tuple(
        LevelPoint(
            s, told(s), 1.0 * value, value - 3.0, value + 3.0, gap(value, min(values)), gap(value, values[0]),
            gap(value, real[k]) if real else None, (value - reach, value + reach),
        )
        for k, (s, value) in enumerate(zip(LEVELS, values, strict=False))
    )  # fmt: skip


def words(generated: Sequence[float], real: Sequence[float]) -> str:
    curves = LevelCurves("1-16", 256, {"non_truncated": points(*generated, real=real)}, points(*real))
    return "\n".join(curves.words)


def test_the_papers_picture() -> None:
    """Non-monotone on generated images, rising on real ones."""
    said = words((9, 5, 6.2, 8), (3, 3.5, 5.8, 7.5))
    assert "smallest at level 0.1, and both ends are worse beyond the intervals" in said
    assert "worse than real ones up to level 0.1; from level 0.2 on no difference is told" in said
    assert "level 0.2 is the first that is worse than 0 beyond the intervals: there loss of information begins" in said


@pytest.mark.parametrize(
    ("generated", "real", "expected"),
    [
        ((9, 8, 7, 6), (3, 3, 3, 3), "smallest at level 0.3, the upper end of what was searched"),
        ((9, 8, 7, 6), (3, 3, 3, 3), "the curves do not meet"),
        ((9, 8, 7, 6), (3, 3, 3, 3), "a loss of information does not show"),
        ((3, 3, 3, 3), (3, 3, 3, 3), "no compounding error shows"),
        ((5.2, 5, 5.1, 5.3), (5, 5, 5, 5), "neither end is worse beyond the intervals: the level matters little"),
        ((9, 5, 5.1, 5.3), (5, 5, 5, 5), "level 0 is worse beyond the intervals, level 0.3 is not"),
        ((5.3, 5, 5.1, 9), (5, 5, 5, 5), "level 0.3 is worse beyond the intervals, level 0 is not"),
        ((9, 10, 11, 12), (3, 3, 3, 3), "worse than real ones up to the highest level"),
        ((9, 10, 11, 12), (3, 3, 3, 3), "smallest at level 0, the lower end of what was searched: noise does not help"),
        ((2, 3, 4, 5), (3, 3, 3, 3), "where the curves meet cannot be told"),
    ],
)
def test_what_is_said_when_it_is_otherwise(generated, real, expected) -> None:
    assert expected in words(generated, real)


def test_without_real_images_only_the_minimum_is_told() -> None:
    assert len(LevelCurves("1-16", 9, {"truncated": points(3, 2, 4, 5)}, ()).words) == 1
    assert LevelCurves("1-16", 9, {"truncated": ()}, ()).words == []


def test_levels_are_told_in_all_three_units() -> None:
    clean, _, point, _ = points(1, 1, 1, 1)
    row = point.told()
    assert row["noise_ratio"] == pytest.approx(math.tan(0.1 * math.pi)) and row["level"] == 0.2
    assert row["logsnr"] == pytest.approx(-2 * math.log(row["noise_ratio"])) and clean.noise_ratio == 0


def test_the_picture_is_drawn_also_without_intervals() -> None:
    bare = [LevelPoint(p.level, p.logsnr, p.distance, None, None).told() for p in points(3, 2, 4, 5)]
    curves = {"generated": [p.told() for p in points(9, 5, 6, 8)], "generated, truncated": bare, "real": bare[:1]}
    image = PILImage.open(io.BytesIO(levels_plot(curves, "distance")))
    colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20) or ()}
    assert image.width > 600 and {(0x1F, 0x4E, 0x8C), (0x2F, 0x7D, 0x4F)} <= colours


def test_ticks_never_run_into_each_other() -> None:
    assert apart([0.0, 0.06, 0.1, 0.2, 0.25, 1.0], 0.09) == [0.0, 0.1, 0.2, 1.0]
    assert apart([], 0.1) == []
