"""Muon against the singular value decomposition, and against its own definition step by step."""

from __future__ import annotations

import pytest
import torch
from tests.train.tiny import awake, make_stage, stage_config
from torch import Tensor

from cdm.train.muon import MOMENTUM, UPDATE_RMS, Muon, as_matrix, orthogonalise
from cdm.train.step import Trainee

GOOD, BAD = torch.zeros(()), torch.ones(())


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(2, 16, 16), (3, 8, 40), (1, 40, 8), (1, 1, 5)])
def test_orthogonalised_matrix_keeps_directions_and_evens_out_sizes(shape: tuple[int, int, int]) -> None:
    """U^T X' V is diagonal, with entries about 1 wherever the singular value was not tiny."""
    x = draw(*shape)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    turned = u.mT @ orthogonalise(x) @ vh.mT
    diagonal = torch.diagonal(turned, dim1=1, dim2=2)
    assert float((turned - torch.diag_embed(diagonal)).abs().max()) < 2e-3
    clear = s > 0.03 * x.norm(dim=(1, 2))[:, None]
    assert clear.double().mean() > 0.8
    assert 0.65 < float(diagonal[clear].min()) and float(diagonal.max()) < 1.25


def test_scale_does_not_matter_and_nothing_stays_nothing() -> None:
    x = draw(2, 6, 20)
    torch.testing.assert_close(orthogonalise(1e4 * x), orthogonalise(x), rtol=1e-3, atol=1e-4)
    assert not orthogonalise(torch.zeros(1, 4, 9)).any()


def test_rounds_on_the_gram_matrix_are_those_on_the_matrix_itself() -> None:
    """The published iteration, on the whole matrix in float64."""
    x = draw(1, 12, 50, seed=3)
    slow = x[0].double() / x[0].double().norm()
    for _ in range(5):
        square = slow @ slow.T
        slow = 3.4445 * slow + (-4.7750 * square + 2.0315 * square @ square) @ slow
    torch.testing.assert_close(orthogonalise(x)[0].double(), slow, rtol=1e-3, atol=1e-4)


def test_updates_follow_their_definition() -> None:
    """Three updates of a convolution, a matrix and its twin in shape, each worked out alone."""
    weights = [draw(6, 4, 3, 3).contiguous(memory_format=torch.channels_last), draw(5, 7), draw(5, 7, seed=1)]
    muon = Muon([w.clone() for w in weights], weight_decay=0.1)
    buffers = [torch.zeros_like(w) for w in weights]
    for step, lr in enumerate((1e-2, 2e-2, 5e-3)):
        for k, p in enumerate(muon.params):
            p.grad = draw(*p.shape, seed=10 * step + k)
            buffers[k] = MOMENTUM * buffers[k] + (1 - MOMENTUM) * p.grad
            ahead = MOMENTUM * buffers[k] + (1 - MOMENTUM) * p.grad
            matrix = ahead.permute(0, 2, 3, 1).reshape(len(ahead), -1) if ahead.ndim == 4 else ahead
            even = orthogonalise(matrix[None])[0] * UPDATE_RMS * max(matrix.shape) ** 0.5
            if ahead.ndim == 4:
                even = even.view(6, 3, 3, 4).permute(0, 3, 1, 2)
            weights[k] = weights[k] - lr * (even + 0.1 * weights[k])
        muon.step(lr, GOOD)
        assert all(p.grad.isfinite().all() for p in muon.params if p.grad is not None)
    for p, wanted in zip(muon.params, weights, strict=True):
        torch.testing.assert_close(p, wanted, rtol=1e-4, atol=1e-5)


def test_parts_of_a_weight_are_updated_as_weights_of_their_own() -> None:
    whole, halves = draw(6, 7), (draw(6, 7)[:3].clone(), draw(6, 7)[3:].clone())
    together, apart = Muon([whole], parts=[2]), Muon(halves)
    for step in range(3):
        whole.grad = draw(6, 7, seed=step)
        halves[0].grad, halves[1].grad = whole.grad[:3].clone(), whole.grad[3:].clone()
        together.step(1e-2, GOOD)
        apart.step(1e-2, GOOD)
    torch.testing.assert_close(whole, torch.cat(halves))


def test_bad_step_changes_neither_weights_nor_momentum() -> None:
    muon = Muon([draw(4, 3, 3, 3), draw(4, 4)])
    for p in muon.params:
        p.grad = draw(*p.shape, seed=5)
    muon.step(1e-2, GOOD)
    before = [x.clone() for x in (*muon.params, *muon.momentum)]
    for p in muon.params:
        p.grad = torch.full_like(p, torch.nan)
    muon.step(1e-2, BAD)
    assert all(torch.equal(a, b) for a, b in zip(before, (*muon.params, *muon.momentum), strict=True))


def test_embeddings_ends_and_vectors_stay_with_adamw() -> None:
    t = Trainee(awake(make_stage(stage_config(size=16, low=8, optimizer="muon"))))
    taken = set(t.muon_names)
    assert "middle.0.res.conv_in.weight" in taken and "middle.0.attention.qkv.weight" in taken
    by_name = dict(zip(t.names, t.params, strict=True))
    assert all(as_matrix(by_name[name]).ndim == 2 for name in taken)
    rest = {name for name in t.names if name not in taken}
    assert {"first.weight", "last.weight", "embed_label.weight", "embed_aug.out.weight"} <= rest
    assert sum(len(group["params"]) for group in t.optimizer.param_groups) == len(rest)
    assert not Trainee(make_stage(stage_config())).muon_names
