"""Counter-based randomness: a pure function of its key, like independent noise in everything that training can see.

Statistical bounds are five standard errors (six where thousands of numbers are looked at) for the fixed seeds here.
"""

from itertools import product
from math import sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cdm import rng as module
from cdm.rng import Purpose, Rng

NOISE = Purpose.TRAIN_NOISE
DRAWS = {
    "bits": lambda rng, index: rng.bits(NOISE, index, 5),
    "int32": lambda rng, index: rng.int32(NOISE, index, (3, 3), step=2),
    "uniform": lambda rng, index: rng.uniform(NOISE, index, (7,)),
    "scalar": lambda rng, index: rng.uniform(NOISE, index),
    "normal": lambda rng, index: rng.normal(NOISE, index, (3, 5, 3), step=1),
    "below": lambda rng, index: rng.below(NOISE, index, 10),
}
indices = st.lists(st.integers(0, 2**62), min_size=1, max_size=9)
seeds = st.integers(-(2**63), 2**64)


# --- a pure function of (seed, stage, attempt, purpose, index, step, element) -----------------------------------------


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@given(index=indices, seed=seeds, cut=st.integers(0, 9))
def test_same_bits_for_every_batch(draw, index: list[int], seed: int, cut: int):
    rng, whole = Rng(seed), torch.tensor(index)
    together = draw(rng, whole)
    assert torch.equal(together, torch.cat([draw(rng, row) for row in whole.split(1)]))
    assert torch.equal(together.flip(0), draw(rng, whole.flip(0)))
    assert torch.equal(together[cut:], draw(rng, whole[cut:]))
    assert torch.equal(together[::2], draw(Rng(seed), whole[::2]))


@pytest.mark.parametrize("kind", ["int32", "uniform", "normal"])
@given(index=indices, few=st.integers(1, 40), more=st.integers(0, 40))
def test_element_does_not_depend_on_the_count(kind: str, index: list[int], few: int, more: int):
    draw = getattr(Rng(3), kind)
    long = draw(NOISE, torch.tensor(index), (few + more,))
    assert torch.equal(draw(NOISE, torch.tensor(index), (few,)), long[:, :few])


def test_shape_is_only_a_view():
    index = torch.arange(4)
    flat = Rng(1).normal(NOISE, index, (60,))
    assert torch.equal(Rng(1).normal(NOISE, index, (3, 4, 5)), flat.view(4, 3, 4, 5))


def test_empty_batch_and_empty_shape():
    nobody = torch.zeros(0, dtype=torch.int64)
    assert Rng(1).normal(NOISE, nobody, (3, 2, 2)).shape == (0, 3, 2, 2)
    assert Rng(1).uniform(NOISE, nobody).shape == Rng(1).below(NOISE, nobody, 3).shape == (0,)
    assert Rng(1).uniform(NOISE, torch.arange(5)).shape == (5,)


def test_at_stage_changes_the_stage_alone():
    assert Rng(5, 1, 2).at_stage(3) == Rng(5, 3, 2)


# --- the integers are SplitMix64, computed here a second time with Python's integers ----------------------------------


def splitmix(state: int) -> int:
    """Finaliser of Steele, Lea & Flood 2014, figure 13, on unsigned 64-bit integers."""
    state &= 2**64 - 1
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


def unsigned(x: Tensor) -> list[int]:
    return [value % 2**64 for value in x.tolist()]


def test_element_hash_is_the_published_sequence():
    # First four outputs of SplitMix64 from state 0, as in the test vectors of Vigna's C code and of Java and Julia.
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert unsigned(module._element_hash(4, torch.device("cpu"))) == expected


@given(state=st.integers(0, 2**64 - 1))
def test_mixers_agree_with_unsigned_arithmetic(state: int):
    signed = torch.tensor([state - 2**64 if state >= 2**63 else state])
    assert unsigned(module._mix_(signed)) == [splitmix(state)] == [module._mix_int(state)]


@given(index=indices, seed=seeds)
def test_word_is_key_xor_element_mixed(index: list[int], seed: int):
    keys = Rng(seed, 2, 1).keys(NOISE, torch.tensor(index), step=4)
    words = Rng(seed, 2, 1).bits(NOISE, torch.tensor(index), 3, step=4)
    golden = 0x9E3779B97F4A7C15
    for key, row in zip(unsigned(keys), words, strict=True):
        assert unsigned(row) == [splitmix(key ^ splitmix((j + 1) * golden)) for j in range(3)]


def test_int32_are_the_halves_of_the_words_low_half_first():
    words = Rng(1).bits(NOISE, torch.arange(3), 4)
    halves = torch.stack([words & 0xFFFFFFFF, (words >> 32) & 0xFFFFFFFF], -1).flatten(1)
    assert torch.equal(Rng(1).int32(NOISE, torch.arange(3), (8,)).long() & 0xFFFFFFFF, halves)


# --- streams are independent ------------------------------------------------------------------------------------------

NEIGHBOURS = {
    "index": lambda k, n: Rng(1).normal(NOISE, torch.tensor([k]), (n,)),
    "far index": lambda k, n: Rng(1).normal(NOISE, torch.tensor([k << 32]), (n,)),
    "step": lambda k, n: Rng(1).normal(NOISE, torch.tensor([0]), (n,), step=k),
    "purpose": lambda k, n: Rng(1).normal(list(Purpose)[k % len(Purpose)], torch.tensor([k // len(Purpose)]), (n,)),
    "stage": lambda k, n: Rng(1, stage=k).normal(NOISE, torch.tensor([0]), (n,)),
    "seed": lambda k, n: Rng(k).normal(NOISE, torch.tensor([0]), (n,)),
    "attempt": lambda k, n: Rng(1, attempt=k).normal(NOISE, torch.tensor([0]), (n,)),
    "diagonal": lambda k, n: Rng(k, stage=64 - k).normal(NOISE, torch.tensor([k]), (n,), step=64 - k),
}


@pytest.mark.parametrize("stream", NEIGHBOURS.values(), ids=NEIGHBOURS)
def test_neighbouring_streams_are_uncorrelated(stream):
    count, n = 64, 4096
    z = torch.cat([stream(k, n) for k in range(count)]).double()
    bound = 6 / sqrt(n)  # 2,016 pairs
    for values in (z, z.abs(), z.sign()):
        correlation = torch.corrcoef(values) - torch.eye(count)
        assert correlation.abs().max() < bound
    z -= z.mean(1, keepdim=True)
    for lag in (1, 2, 3, 64):  # element j of one stream with element j + lag of the next
        shifted = (z[:-1, :-lag] * z[1:, lag:]).mean(1)
        assert shifted.abs().max() < bound


def test_elements_of_one_stream_are_uncorrelated():
    n = 2**20
    z = Rng(2).normal(NOISE, torch.tensor([0]), (n,))[0].double()
    for values in (z, z.square() - 1):
        values = values / values.std()
        spectrum = torch.fft.rfft(values, 2 * n)
        autocorrelation = torch.fft.irfft(spectrum.abs().square())[1:5000] / n
        assert autocorrelation.abs().max() < 6 / sqrt(n)


def test_first_elements_over_indices_are_uncorrelated():
    """The element that decides flips and levels, read along the training stream."""
    n = 2**18
    u = Rng(2).uniform(Purpose.TRAIN_LEVEL, torch.arange(n)).double()
    values = (u - 0.5) * sqrt(12)
    autocorrelation = torch.fft.irfft(torch.fft.rfft(values, 2 * n).abs().square())[1:5000] / n
    assert autocorrelation.abs().max() < 6 / sqrt(n)
    cells = (u[:-1] * 32).long() * 32 + (u[1:] * 32).long()
    assert_even(torch.bincount(cells, minlength=1024))


def test_no_words_are_shared_between_streams():
    """2^20 words of 64 bits: among truly random ones a repeat has probability 3e-8."""
    index, purposes = torch.tensor([0, 1, 2, 3, 64, 2**20, 2**32, 2**62]), [NOISE, Purpose.AUG_NOISE]
    grid = list(product((0, 1, 2, 2**32), (0, 1), (0, 1), purposes, (0, 1, 2, 256)))
    words = torch.cat([Rng(a, b, c).bits(d, index, 1024, step=e).flatten() for a, b, c, d, e in grid])
    assert words.numel() == 2**20
    assert words.unique().numel() == words.numel()


def test_fields_of_the_key_do_not_stand_in_for_each_other():
    small = range(4)
    grid = list(product(small, small, small, list(Purpose)[:4], small))
    keys = torch.stack([Rng(a, b, c).keys(d, torch.arange(16), step=e) for a, b, c, d, e in grid])
    assert keys.unique().numel() == keys.numel() == 4**5 * 16


@pytest.mark.parametrize("bit", [0, 1, 7, 31, 32, 47, 61])
def test_one_bit_of_the_index_changes_every_output_bit_half_the_time(bit: int):
    n = 20_000
    index = torch.arange(n)
    before, after = (Rng(9).bits(NOISE, i, 2) for i in (index, index ^ (1 << bit)))
    changed = (((before ^ after)[..., None] >> torch.arange(64)) & 1).double().mean(0)
    assert (changed - 0.5).abs().max() < 6 * 0.5 / sqrt(n)


# --- distributions ----------------------------------------------------------------------------------------------------


def assert_even(counts: Tensor) -> None:
    """Chi-square of equal expected counts, within five standard deviations on both sides (too even is wrong too)."""
    expected = counts.sum().item() / len(counts)
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    freedom = len(counts) - 1
    assert abs(chi_square - freedom) < 5 * sqrt(2 * freedom)


def test_uniform_is_even_and_open():
    u = Rng(4).uniform(NOISE, torch.arange(64), (2**14,))
    assert u.dtype == torch.float64
    assert_even(torch.bincount((u.flatten() * 1000).long(), minlength=1000))
    assert torch.equal(u * 2**33 % 2, torch.ones_like(u))  # odd multiples of 2^-33: never 0, never 1


def test_uniform_stays_open_at_both_ends(monkeypatch: pytest.MonkeyPatch):
    ends = torch.tensor([[-(2**31), 2**31 - 1]], dtype=torch.int32)
    monkeypatch.setattr(Rng, "int32", lambda *_: ends)
    low, high = Rng(0).uniform(NOISE, torch.arange(1), (2,))[0].tolist()
    assert low == 2**-33
    assert high == 1 - 2**-33


@pytest.mark.parametrize("byte", range(8))
def test_every_byte_of_a_word_is_even(byte: int):
    words = Rng(4).bits(NOISE, torch.arange(256), 2**10)
    assert_even(torch.bincount(((words >> (8 * byte)) & 255).flatten(), minlength=256))


def test_below_is_even_and_in_range():
    n = 2**18
    numbers = Rng(4).below(Purpose.CROP, torch.arange(n), 7)
    assert_even(torch.bincount(numbers))
    assert numbers.min() == 0
    assert numbers.max() == 6
    assert not Rng(4).below(Purpose.CROP, torch.arange(100), 1).any()


def normals(count: int) -> Tensor:
    return Rng(11).normal(NOISE, torch.arange(count >> 12), (2**12,)).flatten()


def test_moments_of_normals():
    n = 2**21
    z = normals(n).double()
    # Standard errors of the first six raw moments: sqrt((E z^2k - (E z^k)^2) / n).
    for power, mean, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (5, 0, 945), (6, 15, 10170)]:
        assert abs((z**power).mean().item() - mean) < 5 * sqrt(variance / n)


def test_distance_of_normals_from_the_exact_law():
    n = 2**21
    z = normals(n).double().sort().values
    exact = torch.special.ndtr(z)
    rank = torch.arange(n + 1, dtype=torch.float64) / n
    distance = max((rank[1:] - exact).max().item(), (exact - rank[:-1]).max().item())
    assert distance < 1.95 / sqrt(n)  # Kolmogorov's law: exceeded with probability 0.001


@pytest.mark.parametrize("threshold", [1.0, 2.0, 3.0, 4.0, 4.5])
@pytest.mark.parametrize("side", [-1, 1])
def test_tails_of_normals(threshold: float, side: int):
    n = 2**22
    expected = torch.special.ndtr(torch.tensor(-threshold, dtype=torch.float64)).item() * n
    assert abs((side * normals(n) > threshold).sum().item() - expected) < 5 * sqrt(expected)


def test_normal_is_the_quantile_at_every_scale(monkeypatch: pytest.MonkeyPatch):
    """All small integers, where the quantile is steepest, and logarithmically spaced ones up to the median."""
    spread = torch.logspace(0, 31, 200_000, base=2, dtype=torch.float64).long().clamp(max=2**31 - 1)
    code = torch.cat([torch.arange(2**16), spread]).unique().int()
    upper = -(2**31) | code  # the sign bit is the sign of the normal
    monkeypatch.setattr(Rng, "int32", lambda *_: torch.cat([code, upper])[None])
    z = Rng(0).normal(NOISE, torch.arange(1), (2 * len(code),))[0]
    assert z.dtype == torch.float32
    assert torch.equal(z[: len(code)], -z[len(code) :])
    assert (z[: len(code)].diff() >= 0).all()
    exact = torch.special.ndtri((code.long() | 1).double() / 2**32)
    assert (z[: len(code)].double() - exact).abs().max() < 1e-5
    assert 6.2 < z.max().item() < 6.3


# --- permutations and seeds -------------------------------------------------------------------------------------------


@given(size=st.integers(0, 300), step=st.integers(0, 1000), seed=seeds)
def test_permutation_has_every_number_once(size: int, step: int, seed: int):
    order = Rng(seed).permutation(Purpose.ORDER, size, step)
    assert torch.equal(order.sort().values, torch.arange(size))


def test_permutation_differs_by_epoch_and_is_even():
    size, epochs = 16, 2000
    orders = torch.stack([Rng(6).permutation(Purpose.ORDER, size, epoch) for epoch in range(epochs)])
    assert orders.unique(dim=0).shape[0] == epochs
    assert torch.equal(orders[5], Rng(6).permutation(Purpose.ORDER, size, 5))
    for place in range(size):
        assert_even(torch.bincount(orders[:, place], minlength=size))
    fixed_points = (orders == torch.arange(size)).sum(1).double().mean().item()  # mean 1, variance 1
    assert abs(fixed_points - 1) < 5 / sqrt(epochs)


def test_torch_seeds_are_valid_and_distinct():
    made = [Rng(a, b).torch_seed(c) for a, b, c in product(range(10), range(3), (Purpose.INIT, NOISE))]
    assert len(set(made)) == len(made)
    assert all(0 <= seed < 2**63 for seed in made)
    torch.Generator().manual_seed(max(made))
