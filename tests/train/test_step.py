"""One update: gradients, clipping, AdamW, averages, dropout, and what a step that is not finite leaves alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.tiny import Images, awake, make_stage, same, stage_config
from torch import Tensor

from cdm.artifacts import load_tensors, save_tensors
from cdm.config import ConfigError
from cdm.losses import stage_loss
from cdm.rng import Rng
from cdm.train import step as step_module
from cdm.train.ema import std_to_gamma
from cdm.train.step import Trainee, make_dropout
from cdm.types import Batch

RNG = Rng(5)
STAGES: dict[str, dict[str, Any]] = {"base": {}, "sr": {"size": 16, "low": 8}, "muon": {"optimizer": "muon"}}


def trainee(**config: Any) -> Trainee:
    return Trainee(awake(make_stage(stage_config(**config))))


def batch(step: int = 0, size: int = 8, rng: Rng = RNG) -> Batch:
    return Images(size)(rng, torch.arange(8 * step, 8 * step + 8))


def gradients(t: Trainee) -> Tensor:
    return torch.cat([p.grad.flatten() for p in t.params if p.grad is not None])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("micro", [1, 3, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(stage: str, micro: int) -> None:
    got = []
    for micro_batch in (0, micro):
        t = trainee(**STAGES[stage], dropout=0.3, micro_batch=micro_batch, grad_clip=0.0)
        t.step(batch(size=t.stage.config.size), RNG, 1e-3)
        got.append((gradients(t), *t.read_means()))
    whole, parts = got
    assert len(whole[0]) == sum(p.numel() for p in t.params)
    assert float((whole[0] - parts[0]).norm() / whole[0].norm()) < 1e-6
    assert parts[1:] == pytest.approx(whole[1:], rel=1e-6)


def test_gradient_is_that_of_the_mean_loss() -> None:
    t = trainee(grad_clip=0.0)
    loss = stage_loss(t.stage, batch(), RNG).loss.mean()
    wanted = torch.autograd.grad(loss, t.params)
    t.step(batch(), RNG, 0.0)
    for p, grad in zip(t.params, wanted, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, grad, rtol=1e-5, atol=1e-7)
    assert t.read_means()[0] == pytest.approx(float(loss.detach()), rel=1e-6)


@pytest.mark.parametrize("clip", [0.05, 1e6])
def test_updates_are_those_of_plain_adamw_with_clipping(clip: float) -> None:
    """Against torch's own unfused AdamW and clip_grad_norm_; the norm that is told is that before clipping."""
    t = trainee(grad_clip=clip, weight_decay=0.1)
    twin = awake(make_stage(t.stage.config))
    params = list(twin.net.parameters())
    begin = torch.cat([p.detach().flatten() for p in params])
    optimizer = torch.optim.AdamW(params, betas=t.stage.config.optim.betas, weight_decay=0.1, fused=False)
    for k, lr in enumerate((1e-3, 2e-3, 5e-4)):
        t.step(batch(k), RNG, lr)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        stage_loss(twin, batch(k), RNG).loss.mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(params, clip)
        assert t.read_means()[1] == pytest.approx(float(norm), rel=1e-5)
        assert float(norm) > 0.05
        optimizer.step()
    moved, wanted = (torch.cat([p.detach().flatten() for p in own]) - begin for own in (t.params, params))
    # in all, as Adam makes much of rounding where a gradient is truly 0 (the bias of attention's keys)
    assert float((moved - wanted).norm() / wanted.norm()) < 1e-3
    assert float(gradients(t).norm()) == pytest.approx(min(clip, float(norm)), rel=1e-4)


def test_averages_follow_images_seen() -> None:
    """theta-hat = sum of theta_i times the part of the profile t^gamma between n_(i-1) and n_i images."""
    t = trainee(lr=0.05)
    history = []
    for k in range(5):
        t.step(batch(k), RNG, 0.05)
        history.append([p.detach().clone() for p in t.params])
    assert t.images_seen == 40
    for sigma_rel, averaged in zip((0.05, 0.10), t.ema.params, strict=True):
        ends = (torch.arange(6, dtype=torch.float64) * 8) ** (std_to_gamma(sigma_rel) + 1)
        parts = (ends[1:] - ends[:-1]) / ends[-1]
        for i, value in enumerate(averaged):
            wanted = sum(part * theta[i].double() for part, theta in zip(parts, history, strict=True))
            torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-6)
    assert not torch.equal(t.ema.params[0][0], t.ema.params[1][0])


# ---- steps that are not finite ---------------------------------------------------------------------------------------


def nan_in_input(t: Trainee, monkeypatch: pytest.MonkeyPatch, made: Batch) -> None:
    made.x0[3, 0, 2, 2] = torch.nan


def nan_in_loss(t: Trainee, monkeypatch: pytest.MonkeyPatch, made: Batch) -> None:
    def losing(*args: Any) -> Any:
        out = stage_loss(*args)
        out.loss[0] = torch.inf  # a constant: gradients stay finite
        return out

    monkeypatch.setattr(step_module, "stage_loss", losing)


def nan_in_gradient(t: Trainee, monkeypatch: pytest.MonkeyPatch, made: Batch) -> None:
    t.params[-1].register_hook(lambda grad: grad * torch.nan)


def infinite_gradient(t: Trainee, monkeypatch: pytest.MonkeyPatch, made: Batch) -> None:
    t.params[0].register_hook(lambda grad: torch.full_like(grad, -torch.inf))


@pytest.mark.parametrize("plant", [nan_in_input, nan_in_loss, nan_in_gradient, infinite_gradient])
@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_step_that_is_not_finite_changes_nothing(
    plant: Callable[[Trainee, pytest.MonkeyPatch, Batch], None],
    before: int,
    optimizer: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    t = trainee(weight_decay=0.1, micro_batch=4, optimizer=optimizer)
    for k in range(before):
        t.step(batch(k), RNG, 1e-3)
    t.read_means()
    old = {name: x.clone() for name, x in t.state()[0].items()}
    bad = batch(before)
    with monkeypatch.context() as patch:
        plant(t, patch, bad)
        t.step(bad, RNG, 1e-3)
    new = t.state()[0]
    for name, value in new.items():
        if name.startswith("ema-"):  # moves on towards weights that stayed
            assert torch.isfinite(value).all()
        elif name in old:
            assert torch.equal(value, old[name]), name
        else:  # the first step of all makes empty moments
            assert before == 0 and not value.any(), name
    assert (t.images_seen, float(t.skipped), float(t.bad_run)) == (8 * before + 8, 1, 1)
    assert all(mean != mean for mean in t.read_means())


def test_run_goes_on_after_a_skipped_step_as_if_it_had_not_been() -> None:
    t, twin = trainee(), trainee()
    bad = batch(0)
    bad.x0[:] = torch.nan
    t.step(bad, RNG, 1e-3)
    for k in (1, 2):
        t.step(batch(k), RNG, 1e-3)
        twin.step(batch(k), RNG, 1e-3)
    a, b = ({n: x for n, x in u.state()[0].items() if not n.startswith("ema-")} for u in (t, twin))
    assert same(a, b)
    assert t.read_means() == twin.read_means()


def test_longest_run_of_skipped_steps_is_counted() -> None:
    t = trainee()
    for k, is_bad in enumerate([1, 0, 1, 1, 1, 0, 1, 1]):
        made = batch(k)
        if is_bad:
            made.x0[0] = torch.nan
        t.step(made, RNG, 1e-3)
    assert (float(t.skipped), float(t.bad_run), float(t.max_bad_run)) == (6, 2, 3)
    t.start_attempt(1, 0.5)
    assert (float(t.skipped), float(t.bad_run), float(t.max_bad_run)) == (6, 0, 0)


def test_attempt_scales_the_learning_rate() -> None:
    t, twin = trainee(), trainee()
    t.start_attempt(1, 0.25)
    t.step(batch(), RNG, 4e-3)
    twin.step(batch(), RNG, 1e-3)
    assert all(torch.equal(p, q) for p, q in zip(t.params, twin.params, strict=True))


# ---- state -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_saved_and_loaded_state_goes_on_bit_for_bit(stage: str, tmp_path: Path) -> None:
    config = {**STAGES[stage], "dropout": 0.2, "weight_decay": 0.01}
    size = STAGES[stage].get("size", 8)
    straight, first = trainee(**config), trainee(**config)
    for k in range(6):
        made = batch(k, size)
        if k in (1, 3):
            made.x0[0] = torch.nan
        straight.step(made, RNG, 1e-3)
        if k < 4:
            first.step(made, RNG, 1e-3)
    save_tensors(tmp_path / "state.safetensors", *first.state())
    second = trainee(**config)
    second.load(*load_tensors(tmp_path / "state.safetensors"))
    for k in (4, 5):
        second.step(batch(k, size), RNG, 1e-3)
    tensors, meta = straight.state()
    assert same(second.state()[0], tensors)
    assert second.state()[1] == meta
    assert (meta["images_seen"], meta["skipped"], meta["bad_run"], meta["max_bad_run"]) == (48, 2, 0, 1)


@pytest.mark.parametrize(
    ("other", "told"),
    [({"optimizer": "muon"}, "momentum/"), ({"size": 16, "low": 8}, "param/embed_aug"), ({"dropout": 0.1}, "")],
)
def test_state_of_another_network_or_optimiser_is_refused(other: dict[str, Any], told: str) -> None:
    t = trainee(**other)
    if not told:  # the same network
        return t.load(*trainee().state())
    with pytest.raises(ConfigError, match=f"does not fit this network: {told}.* is nothing, expected "):
        t.load(*trainee().state())


@pytest.mark.parametrize("stage", STAGES)
def test_step_never_waits_for_the_device(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    t = trainee(**STAGES[stage], dropout=0.1, micro_batch=4)
    made = [batch(k, t.stage.config.size) for k in range(2)]
    t.step(made[0], RNG, 1e-3)

    def waits(self: Tensor, *args: object) -> None:
        raise AssertionError("the value of a tensor was asked for")

    with monkeypatch.context() as patch:
        for name in ("item", "__float__", "__int__", "__bool__", "__index__", "tolist", "numpy", "cpu"):
            patch.setattr(Tensor, name, waits)
        t.step(made[1], RNG, 1e-3)
    assert t.images_seen == 16


# ---- dropout ---------------------------------------------------------------------------------------------------------


def test_dropout_masks_survive_checkpointing() -> None:
    got = []
    for checkpointing in (False, True):
        t = trainee(dropout=0.4, checkpointing=checkpointing, grad_clip=0.0)
        assert t.stage.net.checkpointing == checkpointing
        t.step(batch(), RNG, 1e-3)
        got.append(gradients(t))
    assert torch.equal(*got)
    t = trainee(grad_clip=0.0)
    t.step(batch(), RNG, 1e-3)
    assert not torch.allclose(gradients(t), got[0], rtol=1e-2)  # there was dropout


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_dropout_keeps_its_share_and_the_mean(probability: float) -> None:
    ones = torch.ones(64, 4, 16, 16)
    out = make_dropout(RNG, torch.arange(64))(ones, 3, probability)
    kept = out != 0
    n = ones.numel()
    assert float(kept.double().mean()) == pytest.approx(1 - probability, abs=5 * (probability / n) ** 0.5)
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 1 / (1 - probability)))


def test_dropout_masks_depend_on_position_layer_and_attempt_alone() -> None:
    ones = torch.ones(8, 4, 8, 8)
    index = torch.arange(100, 108)
    mask = make_dropout(RNG, index)(ones, 0, 0.5)
    assert torch.equal(make_dropout(RNG, index[3:5])(ones[:2], 0, 0.5), mask[3:5])
    others = [
        make_dropout(RNG, index)(ones, 1, 0.5),
        make_dropout(RNG, index + 8)(ones, 0, 0.5),
        make_dropout(Rng(RNG.seed, attempt=1), index)(ones, 0, 0.5),
        make_dropout(Rng(RNG.seed, stage=1), index)(ones, 0, 0.5),
    ]
    for other in others:
        assert float((other == mask).double().mean()) == pytest.approx(0.5, abs=0.06)
