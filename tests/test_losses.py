"""Losses: zero for a perfect net, levels and labels drawn as said, the hybrid loss and its bound by brute force."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.fakes import function_stage, random_stage, stage_config
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from cdm.conditioning import quantise
from cdm.config import AugmentationConfig, ConfigError, DensityConfig, LossConfig, ScheduleConfig, StageConfig
from cdm.losses import (
    Noised,
    make_cond,
    noise_batch,
    prior_bits_per_dim,
    stage_loss,
    training_levels,
    vlb_term,
)
from cdm.noise.process import target
from cdm.rng import Rng
from cdm.stage import Stage
from cdm.types import Batch, Prediction

KINDS = ["eps", "x0", "v", "edm"]
RNG = Rng(2, 0)
TABLE = ScheduleConfig(kind="cosine_table", num_timesteps=6)


def draw(seed: int, batch: int = 16, channels: int = 1, size: int = 4) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


def make_batch(size: int = 4, count: int = 16, first: int = 40, labels: Tensor | None = None) -> Batch:
    return Batch(quantise(0.5 * draw(0, count, size=size)), labels, torch.arange(count) + first)


Answer = Callable[[Noised], Tensor]


def stage_that_knows(config: StageConfig, batch: Batch, answer: Answer, rng: Rng = RNG) -> Stage:
    """Its net gives ``answer`` of the very noise that the loss draws."""
    known: list[Tensor] = []
    stage = function_stage(config, lambda x, noise_input, labels, aug_input: known[0])
    known.append(answer(noise_batch(stage, batch, rng)))
    return stage


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", ["simple", "min_snr", "sigmoid"])
@pytest.mark.parametrize("low", [0, 2], ids=["base", "sr"])
def test_a_perfect_net_has_no_loss(kind, weight, low):
    config, batch = stage_config(4, low, prediction=kind, loss=LossConfig(weight=weight)), make_batch()
    perfect: Answer = lambda noised: target(kind, batch.x0, noised.eps, noised.logsnr, config.sigma_data)  # noqa: E731
    out = stage_loss(stage_that_knows(config, batch, perfect), batch, RNG)
    assert out.loss.abs().max() < 1e-9 and out.mse.abs().max() < 1e-9
    shifted = stage_loss(stage_that_knows(config, batch, lambda noised: perfect(noised) + 2), batch, RNG)
    torch.testing.assert_close(shifted.mse, torch.full((16,), 4.0))
    assert (shifted.loss > 0).all() and torch.equal(shifted.loss, shifted.mse) == (weight == "simple")


@pytest.mark.parametrize("weight", ["min_snr", "sigmoid"])
@pytest.mark.parametrize(
    "schedule", [ScheduleConfig(shift=-1.0), ScheduleConfig(kind="cosine_table")], ids=["t", "table"]
)
def test_one_estimate_costs_the_same_whatever_the_net_predicts(weight, schedule):
    """The same wrong x0_hat and the eps_hat that belongs to it, read as each kind's output."""
    batch, losses = make_batch(count=64), []

    def wrong(config: StageConfig) -> Answer:
        def answer(noised: Noised) -> Tensor:
            x0_hat = batch.x0 + 0.3 * draw(8, 64)
            alpha, sigma = (torch.sigmoid(s * noised.logsnr.double()).sqrt()[:, None, None, None] for s in (1, -1))
            eps_hat = (noised.x_t - alpha * x0_hat) / sigma
            return target(config.prediction, x0_hat.double(), eps_hat, noised.logsnr.double(), config.sigma_data)

        return answer

    for kind in KINDS:
        config = stage_config(4, prediction=kind, schedule=schedule, loss=LossConfig(weight=weight, param=2.0))
        losses.append(stage_loss(stage_that_knows(config, batch, wrong(config)), batch, RNG).loss)
    assert losses[0].std() > 0
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-3, atol=1e-6)


def test_the_expected_loss_does_not_depend_on_the_density():
    """Drawing levels from another density and dividing by it: the same mean, over 20,000 evenly spread draws."""
    batch, means = make_batch(count=20_000), []
    for density in ("schedule", "logsnr", "lognormal"):
        config = stage_config(4, loss=LossConfig(weight="sigmoid", param=0.0), density=DensityConfig(kind=density))

        def answer(noised: Noised) -> Tensor:
            return (
                target("v", batch.x0, noised.eps, noised.logsnr, 0.5)
                + torch.sigmoid(noised.logsnr)[:, None, None, None]
            )

        means.append(stage_loss(stage_that_knows(config, batch, answer), batch, RNG).loss.double().mean().item())
    assert means[1] == pytest.approx(means[0], rel=2e-3) and means[2] == pytest.approx(means[0], rel=2e-3)


@pytest.mark.parametrize("first", [0, 77, 10**6, 10**10])
def test_training_levels_are_spread_evenly(first):
    """Every run of neighbours covers (0, 1): no gap above 3 / n, and the mean within 2 / n of the middle."""
    for count in (8, 32, 256, 2048):
        u = training_levels(RNG, torch.arange(count) + first)
        assert u.dtype == torch.float64 and u.min() > 0 and u.max() < 1
        edges = torch.cat([torch.zeros(1), u.sort().values, torch.ones(1)])
        assert edges.diff().max().item() < 3 / count
        assert abs(u.mean().item() - 0.5) < 2 / count


def test_training_levels_are_a_function_of_position_stage_and_attempt():
    index = torch.arange(32)
    u = training_levels(RNG, index)
    assert torch.equal(training_levels(RNG, index[5:9]), u[5:9])
    others = [training_levels(rng, index) for rng in (Rng(3), Rng(2, 1), Rng(2, 0, attempt=1))]
    assert all((other - u).abs().min() > 1e-6 for other in others)


def test_labels_are_dropped_at_their_rate():
    count = 100_000
    labels = torch.arange(count) % 3
    batch = Batch(torch.zeros(count, 1, 1, 1), labels, torch.arange(count))
    config = stage_config(4, num_labels=4)
    for rate in (0.1, 0.5):
        stage = random_stage(replace(config, label_dropout=rate), num_classes=3)
        got = make_cond(stage, batch, RNG)[0].labels
        dropped = got == 3
        assert dropped.double().mean().item() == pytest.approx(rate, abs=5 * math.sqrt(rate * (1 - rate) / count))
        assert torch.equal(got[~dropped], labels[~dropped])
        some = Batch(batch.x0[50:60], labels[50:60], batch.index[50:60])
        assert torch.equal(make_cond(stage, some, RNG)[0].labels, got[50:60])
    kept = make_cond(random_stage(config, num_classes=3), batch, RNG)[0].labels
    assert torch.equal(kept, labels)


def test_the_loss_of_an_image_does_not_depend_on_its_batch():
    config = stage_config(16, 8, num_labels=4, label_dropout=0.3)
    stage, batch = random_stage(config, 1, num_classes=3), make_batch(16, labels=torch.arange(16) % 3)
    whole = stage_loss(stage, batch, RNG).loss
    for rows in (slice(0, 1), slice(3, 9)):
        part = Batch(batch.x0[rows], batch.labels[rows], batch.index[rows])
        torch.testing.assert_close(stage_loss(stage, part, RNG).loss, whole[rows], rtol=1e-4, atol=1e-5)
    assert whole.unique().numel() == 16


def hybrid(**loss: Any) -> StageConfig:
    return stage_config(4, schedule=TABLE, prediction="eps", variance="learned", loss=LossConfig(**loss))


@pytest.mark.parametrize("weight", [0.001, 10.0])
def test_the_bound_teaches_the_variance_alone(weight):
    """Stop-gradient of Nichol & Dhariwal 2021, section 3.1."""
    grads, batch = [], make_batch()
    for vlb_weight in (0.0, weight):
        output = torch.cat([draw(3), 0.5 * draw(4)], dim=1).requires_grad_()
        stage = function_stage(hybrid(vlb_weight=vlb_weight), lambda *inputs, output=output: output)
        stage_loss(stage, batch, RNG).loss.sum().backward()
        grads.append(output.grad.chunk(2, dim=1))
    (mean_without, variance_without), (mean_with, variance_with) = grads
    assert torch.equal(mean_with, mean_without) and mean_with.abs().min() > 0
    assert (variance_without == 0).all() and variance_with.abs().max() > 1e-6


def test_the_hybrid_loss_adds_the_bound_times_the_table():
    """L_simple + vlb_weight * T * the mean term in bits per dimension."""
    batch = make_batch()
    stage = function_stage(hybrid(vlb_weight=0.25), lambda *inputs: torch.cat([draw(3), 0.5 * draw(4)], dim=1))
    out, noised = stage_loss(stage, batch, RNG), noise_batch(stage, batch, RNG)
    bound = vlb_term(
        stage.denoiser, stage.denoiser(noised.x_t, noised.logsnr, noised.cond), batch.x0, noised.x_t, noised.logsnr
    )
    torch.testing.assert_close(out.loss, out.mse + 0.25 * 6 * bound)
    torch.testing.assert_close(out.mse, (draw(3) - noised.eps).square().mean((1, 2, 3)))


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_continuous_stages_refuse_learned_variances(kind):
    with pytest.raises(ConfigError, match="learned variances need a discrete noise table"):
        stage_config(4, schedule=ScheduleConfig(kind=kind), variance="learned")


def brute_force(i: int, lam: Tensor, x0: Tensor, x_t: Tensor, x0_hat: Tensor, fraction: Tensor | None) -> Tensor:
    """One term in nats from the textbook: Ho et al. 2020, eqs. 5 to 7 and 13, Nichol & Dhariwal 2021, eq. 15."""
    abar = torch.sigmoid(lam)
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    beta = 1 - abar / before
    beta_tilde = (1 - before) / (1 - abar) * beta
    small = beta_tilde[max(i, 1)]  # that of entry 0 would be 0
    logvar = beta[i].log() if fraction is None else fraction * beta[i].log() + (1 - fraction) * small.log()
    from_x0 = before[i].sqrt() * beta[i] / (1 - abar[i])
    from_x_t = (1 - beta[i]).sqrt() * (1 - before[i]) / (1 - abar[i])
    model = Normal(from_x0 * x0_hat + from_x_t * x_t, (logvar / 2).exp())
    if i > 0:
        return kl_divergence(Normal(from_x0 * x0 + from_x_t * x_t, beta_tilde[i].sqrt()), model)
    upper = torch.where(x0 > 0.999, 1.0, model.cdf(x0 + 1 / 255))
    lower = torch.where(x0 < -0.999, 0.0, model.cdf(x0 - 1 / 255))
    return -torch.log(upper - lower)


@pytest.mark.parametrize("learned", [True, False])
def test_terms_of_the_bound_are_the_textbook_ones(learned):
    """Every entry of a tiny table, 0 included, some pixels black and some white."""
    stage = random_stage(stage_config(4, schedule=TABLE, prediction="eps"))
    lam = stage.denoiser.table
    x0 = quantise(draw(0, 6).double())
    assert (x0.abs() == 1).any() and (x0.abs() < 1).any()
    alpha, sigma = (torch.sigmoid(s * lam).sqrt()[:, None, None, None] for s in (1, -1))
    x_t = alpha * x0 + sigma * draw(1, 6)
    x0_hat = x0 + 0.02 * draw(2, 6)
    fraction = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(3)).double() if learned else None
    got = vlb_term(stage.denoiser, Prediction(x0_hat, x0_hat, fraction), x0, x_t, lam.float())
    for i in range(6):
        rows = (x[i] for x in (x0, x_t, x0_hat))
        nats = brute_force(i, lam, *rows, None if fraction is None else fraction[i])
        assert got[i].item() == pytest.approx(nats.mean().item() / math.log(2), rel=1e-6)


def test_the_prior_term():
    """KL(N(alpha_T x0, sigma_T^2) || N(0, 1)) at the table's noisiest entry, here far from pure noise."""
    stage = random_stage(stage_config(4, schedule=ScheduleConfig(kind="cosine_table", num_timesteps=2, shift=6.0)))
    alpha2 = torch.sigmoid(stage.denoiser.table[-1])
    x0 = draw(0).double()
    truth = kl_divergence(Normal(alpha2.sqrt() * x0, (1 - alpha2).sqrt()), Normal(0.0, 1.0)).mean((1, 2, 3)) / math.log(
        2
    )
    assert truth.min() > 0.01
    torch.testing.assert_close(prior_bits_per_dim(stage.denoiser, x0), truth, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["none", "gaussian", "blur"])
@pytest.mark.parametrize(
    "schedule", [ScheduleConfig(), ScheduleConfig(kind="cosine_table")], ids=["continuous", "table"]
)
def test_batches_are_noised_where_the_images_are(kind, schedule):
    """Positions stay on the CPU, all else goes with the images; the meta device refuses to mix, as a GPU does."""
    config = stage_config(
        16, 8, num_labels=4, label_dropout=0.1, schedule=schedule, augmentation=AugmentationConfig(kind=kind)
    )
    batch = Batch(
        torch.zeros(4, 1, 16, 16, device="meta"), torch.zeros(4, dtype=torch.int64, device="meta"), torch.arange(4)
    )
    noised = noise_batch(random_stage(config, 1, num_classes=3), batch, RNG)
    for made in (noised.x_t, noised.eps, noised.logsnr, noised.cond.labels, noised.cond.low_res):
        assert made.device.type == "meta"
