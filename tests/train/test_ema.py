"""Power-function averages against their closed form."""

import pytest
import torch

from cdm.train.ema import Ema, beta, std_to_gamma

PROFILES = (0.05, 0.10)


def implied_weights(profile: float, batches: list[int]) -> torch.Tensor:
    """Weight of each step in the average, measured: step i feeds the i-th unit vector."""
    ema = Ema((profile,), [torch.zeros(len(batches))])
    seen = 0
    for row, batch in zip(torch.eye(len(batches)), batches, strict=True):
        ema.update([row], seen, seen + batch)
        seen += batch
    return ema.params[0][0].double()


@pytest.mark.parametrize("profile", [0.01, 0.05, 0.10, 0.20, 0.28])
def test_gamma_gives_the_asked_width(profile: float) -> None:
    gamma = std_to_gamma(profile)
    # The distribution of tau / t under tau^gamma is Beta(gamma + 1, 1), whose standard deviation is known.
    assert ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5 == pytest.approx(profile, rel=1e-12)


def test_gammas_of_the_paper() -> None:
    # Karras et al. 2024, section 3.1: widths 0.05 and 0.10 are exponents 16.97 and 6.94.
    assert [round(std_to_gamma(p), 2) for p in PROFILES] == [16.97, 6.94]


@pytest.mark.parametrize("profile", [0.0, -0.1, 0.3, float("nan")])
def test_impossible_width_is_refused(profile: float) -> None:
    with pytest.raises(ValueError, match="expected between"):
        std_to_gamma(profile)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("batches", [[64] * 300, [64] * 100 + [16] * 400 + [128] * 60])
def test_average_is_a_power_function_of_images_seen(profile: float, batches: list[int]) -> None:
    ends = torch.tensor([0, *batches], dtype=torch.float64).cumsum(0)
    power = (ends / ends[-1]) ** (std_to_gamma(profile) + 1)
    weights = implied_weights(profile, batches)
    assert torch.allclose(weights, power.diff(), rtol=1e-4, atol=1e-9)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
    times = (ends[1:] + ends[:-1]) / 2 / ends[-1]
    mean = (weights * times).sum()
    width = float((weights * (times - mean) ** 2).sum().sqrt())
    assert width == pytest.approx(profile, rel=0.01)


def test_beta_depends_on_the_ends_alone() -> None:
    gamma = std_to_gamma(0.05)
    by_steps = 1.0
    for before in range(1000, 2000, 8):
        by_steps *= beta(gamma, before, before + 8)
    assert by_steps == pytest.approx(beta(gamma, 1000, 2000), rel=1e-10)
    assert beta(gamma, 0, 8) == 0


def test_first_update_copies_and_a_constant_stays() -> None:
    weights = [torch.randn(3, 2), torch.randn(5)]
    ema = Ema(PROFILES, [torch.full_like(w, 1e30) for w in weights])
    for step in range(200):
        ema.update(weights, 64 * step, 64 * (step + 1))
        assert all(torch.equal(a, w) for params in ema.params for a, w in zip(params, weights, strict=True))


def test_averages_are_float32_copies_in_the_layout_of_the_weights() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last).bfloat16())
    ema = Ema(PROFILES, [weight])
    for (average,) in ema.params:
        assert average.dtype == torch.float32 and not average.requires_grad
        assert average.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(average, weight.detach().float())
    with torch.no_grad():
        weight.zero_()
    assert all(bool(average.any()) for (average,) in ema.params)
    ema.update([weight], 10, 20)
    assert not torch.equal(ema.params[0][0], ema.params[1][0])


def test_resumed_average_is_the_same_bit_for_bit() -> None:
    path = torch.randn(50, 7).cumsum(0)
    straight, resumed = Ema(PROFILES, [path[0]]), Ema(PROFILES, [path[0]])
    for i, w in enumerate(path):
        straight.update([w], 16 * i, 16 * (i + 1))
        if i == 20:
            state = [[t.clone() for t in params] for params in resumed.params]
            resumed = Ema(PROFILES, [torch.zeros(7)])
            for mine, saved in zip(resumed.params, state, strict=True):
                mine[0].copy_(saved[0])
        resumed.update([w], 16 * i, 16 * (i + 1))
    assert all(torch.equal(a, b) for p, q in zip(straight.params, resumed.params, strict=True) for a, b in zip(p, q))  # noqa: B905
