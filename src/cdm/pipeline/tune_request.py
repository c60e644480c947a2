"""What a user asks of ``cdm tune``."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path

from cdm.errors import UserError

LEAST_IMAGES = 256
"""Fewer, and the Fréchet distance on 128 domain features tells nothing."""


@dataclass(frozen=True, kw_only=True)
class TuneRequest:
    """Everything ``cdm tune`` takes.

    run: folder, whose defaults are set. data: real images kept from training. images: of each candidate.
    """

    run: Path
    data: str
    train_data: str | None = None
    minutes: float = 30.0
    images: int = 1024
    seed: int = 0
    batch_size: int = 128
    device: str | None = None
    precision: str = "auto"
    threads: int | None = None
    command: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.minutes < inf:
            raise UserError(f"--minutes is {self.minutes}; expected a number above 0.")
        if self.images < LEAST_IMAGES:
            raise UserError(f"-n is {self.images}; expected at least {LEAST_IMAGES} images of each candidate.")
        if self.batch_size < 1:
            raise UserError(f"--batch-size is {self.batch_size}; expected at least 1.")
        if not 0 <= self.seed < 2**31:
            raise UserError(f"--seed is {self.seed}; expected 0 to {2**31 - 1}.")

    @property
    def out(self) -> Path:
        return self.run / "tuning"
