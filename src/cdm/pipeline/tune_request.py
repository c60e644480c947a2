"""What a user asks of ``cdm tune``."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path

from cdm.errors import UserError
from cdm.pipeline.augmentation_request import parse_levels
from cdm.pipeline.evaluate_request import EvaluateRequest

AXES = ("steps", "level")
"""steps: sampler, grid and number of evaluations; level: augmentation level and hand-over."""
METRICS = ("fd", "kid")
HAND_OVERS = ("non_truncated", "truncated")
LEAST_IMAGES, MOST_IMAGES = 256, 1_000_000
"""Fewer, and the Fréchet distance on 128 domain features tells nothing; more, and what is told of each does not fit."""


@dataclass(frozen=True, kw_only=True)
class TuneRequest:
    """Everything ``cdm tune`` takes.

    run: folder, whose defaults are set. data: real images kept from training. images: of each candidate.
    axes: what is searched, of ``AXES``. Of the level: hand_over, metric, and levels, the range (None: all trained at).
    """

    run: Path
    data: str
    train_data: str | None = None
    minutes: float = 30.0
    images: int = 1024
    axes: tuple[str, ...] = ("steps",)
    hand_over: str = "both"
    metric: str = "fd"
    levels: str | None = None
    seed: int = 0
    batch_size: int = 128
    device: str | None = None
    precision: str = "auto"
    threads: int | None = None
    command: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.minutes < inf:
            raise UserError(f"--minutes is {self.minutes}; expected a number above 0.")
        for name in self.axes:
            if name not in AXES:
                raise UserError(f"--axis has {name!r}; expected {' or '.join(AXES)}, or both: steps,level.")
        if self.hand_over not in ("both", *HAND_OVERS):
            raise UserError(f"--hand-over is {self.hand_over!r}; expected both, {' or '.join(HAND_OVERS)}.")
        if self.metric not in METRICS:
            raise UserError(f"--metric is {self.metric!r}; expected {' or '.join(METRICS)}.")
        if self.levels is not None:
            parse_levels(self.levels, "--levels")
        given = {"--hand-over": self.hand_over != "both", "--metric": self.metric != "fd",
                 "--levels": self.levels is not None}  # fmt: skip
        if "level" not in self.axes and any(given.values()):
            flag = next(flag for flag, is_given in given.items() if is_given)
            raise UserError(f"got {flag}, but the axis is steps; expected it with --axis level or steps,level.")
        if self.images < LEAST_IMAGES:
            raise UserError(f"-n is {self.images}; expected at least {LEAST_IMAGES} images of each candidate.")
        if self.images > MOST_IMAGES:
            raise UserError(f"-n is {self.images:,}; expected at most {MOST_IMAGES:,} images of each candidate.")
        if self.batch_size < 1:
            raise UserError(f"--batch-size is {self.batch_size}; expected at least 1.")
        if not 0 <= self.seed < 2**31:
            raise UserError(f"--seed is {self.seed}; expected 0 to {2**31 - 1}.")

    @property
    def out(self) -> Path:
        return self.run / "tuning"

    @property
    def axis_minutes(self) -> float:
        """Of each axis."""
        return self.minutes / len(self.axes)

    def check_run(self) -> None:
        if not (self.run / "cascade.json").exists():
            raise UserError(
                f"{self.run} is not a run folder (no cascade.json in it); expected the --out of `cdm train`."
            )

    def judged(self) -> EvaluateRequest:
        """What is read to judge by."""
        return EvaluateRequest(
            subject=str(self.run), data=self.data, train_data=self.train_data, out=self.out, num=self.images,
            seed=self.seed, batch_size=self.batch_size, device=self.device, precision=self.precision,
            threads=self.threads,
        )  # fmt: skip
