"""Distance against augmentation level, for SR fed with generated and with real low-res images, and what it says.

On generated images noise hides the faults of the stage below; on real ones there are none, so noise only loses
information (Ho et al. 2021, section 4). Between both lies what the level is chosen for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Gap:
    """How much worse, with a 95 % interval; above 0: worse."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LevelPoint:
    """One level s as its stage is told it (log-SNR), and its distance to real images with a 95 % interval.

    against_best, against_first: how much worse it is than the best and the first point of its curve, on the same seeds;
    against_real: than real low-res images at this level. None: it is that point itself, or there is none.
    paired: ends of ``against_best`` as distances.
    """

    level: float
    logsnr: float
    distance: float
    low: float | None
    high: float | None
    against_best: Gap | None = None
    against_first: Gap | None = None
    against_real: Gap | None = None
    paired: tuple[float, float] | None = None

    @property
    def noise_ratio(self) -> float:
        """sigma / alpha; 0 at level 0, where there is no noise at all."""
        return math.exp(-self.logsnr / 2) if self.level > 0 else 0.0

    def told(self) -> dict[str, Any]:
        return asdict(self) | {"noise_ratio": self.noise_ratio}


@dataclass(frozen=True)
class LevelCurves:
    """generated: by hand-over. images: of each point. missing: points that the time did not suffice for."""

    stage: str
    images: int
    generated: Mapping[str, tuple[LevelPoint, ...]]
    real: tuple[LevelPoint, ...]
    missing: int = 0

    def told(self) -> dict[str, Any]:
        return {
            "stage": self.stage, "images": self.images, "words": self.words, "missing": self.missing,
            "generated": {how: [point.told() for point in points] for how, points in self.generated.items()},
            "real": [point.told() for point in self.real],
        }  # fmt: skip

    @property
    def words(self) -> list[str]:
        """Where the curves part and meet, in sentences; also when they do not."""
        said = [_minimum(how, points) for how, points in self.generated.items() if points]
        main = next(iter(self.generated.values()), ())
        if main and self.real:
            said += [_compounding(main), _loss(self.real)]
        return said


def _is_worse(gap: Gap | None) -> bool:
    return gap is not None and gap.low > 0


def _minimum(how: str, points: Sequence[LevelPoint]) -> str:
    best = min(points, key=lambda point: point.distance)
    begin = f"On generated low-res images ({how}) the distance is smallest at level {best.level:g}"
    ends = (points[0], points[-1])
    if best is points[-1]:
        return f"{begin}, the upper end of what was searched: there may be better beyond it."
    if best is points[0]:
        return f"{begin}, the lower end of what was searched" + (
            ": noise does not help here." if best.level == 0 else ": there may be better below it."
        )
    beyond = [_is_worse(end.against_best) for end in ends]
    if all(beyond):
        return f"{begin}, and both ends are worse beyond the intervals."
    if not any(beyond):
        return (
            f"{begin}, but neither end is worse beyond the intervals: the level matters little, or the images are few."
        )
    worse, other = ends if beyond[0] else ends[::-1]
    return f"{begin}; level {worse.level:g} is worse beyond the intervals, level {other.level:g} is not."


def _compounding(generated: Sequence[LevelPoint]) -> str:
    """Where generated low-res images stop to cost anything against real ones."""
    pairs = [point for point in generated if point.against_real is not None]
    apart = [_is_worse(point.against_real) for point in pairs]
    if not pairs:
        return "No level was measured on both kinds of images."
    if not any(apart):
        return (
            "At no level are generated low-res images worse than real ones beyond the intervals: no compounding error "
            "shows, and the stage below is good enough for any level."
        )
    if all(apart):
        return (
            "Generated low-res images are worse than real ones up to the highest level: the curves do not meet, and "
            "what the stage below gets wrong is more than this noise hides."
        )
    last = max(k for k, is_apart in enumerate(apart) if is_apart)
    if last == len(pairs) - 1:
        return (
            "Generated low-res images are worse than real ones at some levels, the highest among them: where the "
            "curves meet cannot be told."
        )
    return (
        f"Generated low-res images are worse than real ones up to level {pairs[last].level:g}; from level "
        f"{pairs[last + 1].level:g} on no difference is told beyond the intervals: what compounding error is left "
        "there is too small for so many images to show."
    )


def _loss(real: Sequence[LevelPoint]) -> str:
    """Where noise costs information on images without fault."""
    first = real[0]
    lost = [point for point in real[1:] if _is_worse(point.against_first)]
    if not lost:
        return (
            f"On real low-res images no level is worse than {first.level:g} beyond the intervals: a loss of "
            "information does not show."
        )
    return (
        f"On real low-res images level {lost[0].level:g} is the first that is worse than {first.level:g} beyond the "
        "intervals: there loss of information begins."
    )
