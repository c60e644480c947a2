"""Muon: momentum whose matrices are orthogonalised before each update (Jordan et al. 2024, "Muon: an optimizer for
hidden layers in neural networks"), so that every direction of a layer learns at the same rate."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic: five rounds bring singular values between about 0.02 and 1 to between 0.68 and 1.14."""
ROUNDS = 5
UPDATE_RMS = 0.2
"""Root mean square of AdamW's usual update; with it one learning rate suits both (Liu et al. 2025, section 2.2)."""

Matrices = Float[Tensor, "k rows columns"]


def orthogonalise(x: Matrices) -> Matrices:
    """U V^T of each matrix U S V^T, nearly: its singular values become about 1, tiny ones (rank) stay small.

    The rounds X <- (a + b X X^T + c (X X^T)^2) X only ever multiply X from the left by polynomials of the Gram matrix,
    so they run on that small square matrix, and X is multiplied once: a third of the time.
    """
    if x.shape[1] > x.shape[2]:
        return orthogonalise(x.mT).mT
    a, b, c = NEWTON_SCHULZ
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    gram = x @ x.mT
    one = a * torch.eye(gram.shape[1], dtype=x.dtype, device=x.device)

    def polynomial(gram: Matrices) -> Matrices:  # a + b gram + c gram^2 in two kernels: small nets wait for launches
        return torch.baddbmm(torch.add(one, gram, alpha=b), gram, gram, alpha=c)

    product = factor = polynomial(gram)
    for _ in range(ROUNDS - 1):
        gram = factor @ gram @ factor
        factor = polynomial(gram)
        product = factor @ product
    return product @ x


def as_matrix(weight: Tensor) -> Float[Tensor, "out rest"]:
    """A weight as ``[out, in]``; a convolution's as ``[out, height * width * in]``."""
    return (weight.permute(0, 2, 3, 1) if weight.ndim == 4 else weight).flatten(1)


def _like_weight(matrix: Float[Tensor, "out rest"], weight: Tensor) -> Tensor:
    if weight.ndim != 4:
        return matrix
    out, channels, height, width = weight.shape
    return matrix.view(out, height, width, channels).permute(0, 3, 1, 2)


class Muon:
    """Updates matrices and convolutions. ``momentum``: one buffer per parameter, in its shape; may be written to.

    ``parts``: how many matrices stand above each other in each parameter (scale and shift of a modulation are two).
    """

    def __init__(self, params: Sequence[Tensor], weight_decay: float = 0.0, parts: Sequence[int] | None = None) -> None:
        self.params = list(params)
        self.parts = [1] * len(self.params) if parts is None else list(parts)
        self.weight_decay = weight_decay
        self.momentum = [torch.zeros_like(p) for p in self.params]
        order = sorted(range(len(self.params)), key=self._shape)
        self._groups = [list(group) for _, group in groupby(order, key=self._shape)]

    def _shape(self, i: int) -> tuple[int, ...]:
        rows, columns = as_matrix(self.params[i]).shape
        return self.parts[i], rows // self.parts[i], columns

    @torch.no_grad()
    def step(self, lr: float | Float[Tensor, ""], bad: Float[Tensor, ""]) -> None:
        """One update from the gradients; where ``bad`` (on the device) is not 0 nothing changes."""
        skip = bad > 0
        for group in self._groups:
            updates = []
            for i in group:
                grad, old = self.params[i].grad, self.momentum[i]
                assert grad is not None
                old.copy_(torch.where(skip, old, torch.lerp(grad, old, MOMENTUM)))
                ahead = as_matrix(torch.lerp(grad, old, MOMENTUM))  # Nesterov's look ahead
                updates.append(ahead.unflatten(0, (self.parts[i], -1)))
            rows, columns = updates[0].shape[1:]
            scale = lr * UPDATE_RMS * max(rows, columns) ** 0.5
            for i, update in zip(group, orthogonalise(torch.cat(updates)).split(len(updates[0])), strict=True):
                weight = self.params[i]
                step = _like_weight(update.flatten(0, 1), weight) * scale + (lr * self.weight_decay) * weight
                weight.sub_(torch.where(skip, 0.0, step))
