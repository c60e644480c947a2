"""Power-function averages of the weights (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of
Diffusion Models", section 3.1): the average forgets at a rate relative to the length of training so far."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def std_to_gamma(sigma_rel: float) -> float:
    """Exponent gamma of the profile t^gamma whose standard deviation is ``sigma_rel`` times the length of training.

    Args:
        sigma_rel: in (0, 1 / sqrt(12)); at the upper end gamma is 0, the plain mean of all weights so far.
    """
    if not 0 < sigma_rel < 12**-0.5:
        raise ValueError(f"the width of an EMA profile is {sigma_rel}; expected between 0 and 0.288, for example 0.05.")
    # sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^-1 (gamma + 3)^(-1/2), squared and multiplied out.
    inverse = float(sigma_rel) ** -2
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


def beta(gamma: float, images_before: int, images_after: int) -> float:
    """Share of the old average that is kept by an update: (before / after)^(gamma + 1), 0 at the first update.

    The product over any steps depends on their ends alone, so the average follows images and not steps.
    """
    return (images_before / images_after) ** (gamma + 1)


class Ema:
    """Averages of one set of weights, a pure function of the weights and of images seen.

    Attributes:
        profiles: sigma_rel of every average.
        params: per profile, one float32 tensor per weight, on the weights' device. May be written to (resume).
    """

    def __init__(self, profiles: Sequence[float], params: Sequence[Tensor]) -> None:
        self.profiles = tuple(profiles)
        self.params = [[p.detach().to(torch.float32, copy=True) for p in params] for _ in self.profiles]
        self._gammas = [std_to_gamma(profile) for profile in self.profiles]

    @torch.no_grad()
    def update(self, params: Sequence[Tensor], images_before: int, images_after: int) -> None:
        """Takes in the weights after a step that saw images ``images_before`` to ``images_after``."""
        assert 0 <= images_before < images_after
        new = [p.detach().float() for p in params]
        for gamma, old in zip(self._gammas, self.params, strict=True):
            share = 1 - beta(gamma, images_before, images_after)
            torch._foreach_lerp_(old, new, share)  # pyright: ignore[reportPrivateImportUsage]
