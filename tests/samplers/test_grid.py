"""Grids rise strictly, begin at the noisiest level, end where asked, and keep to a table."""

import math

import pytest
import torch

from cdm.config import ScheduleConfig
from cdm.errors import UserError
from cdm.noise.schedule import cosine_table, linear_table, make_schedule
from cdm.samplers import SPACINGS, make_grid

TABLE = cosine_table(1000)


def table_grid(num_steps, table=TABLE, **options):
    return make_grid(table[-1].item(), table[0].item(), num_steps, table=table, **options)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("num_steps", [1, 2, 16, 250])
def test_continuous(num_steps, spacing):
    grid = make_grid(-13.0, 11.0, num_steps, spacing=spacing)
    assert grid.dtype == torch.float64 and len(grid) == num_steps + 1
    assert grid[0].item() == pytest.approx(-13, abs=1e-12) and grid[-1] == math.inf
    assert num_steps == 1 or grid[-2].item() == pytest.approx(11, abs=1e-12)
    assert (grid.diff() > 0).all()
    assert grid[0] >= -13 and grid[-2] <= 11  # never outside what the denoiser knows


@pytest.mark.parametrize("spacing", ["index", *SPACINGS])
@pytest.mark.parametrize("table", [TABLE, linear_table(1000), cosine_table(50)], ids=["cosine", "linear", "short"])
@pytest.mark.parametrize("num_steps", [1, 7, 49, 50])
def test_tables_give_entries_only(num_steps, table, spacing):
    grid = table_grid(num_steps, table, spacing=spacing)
    assert len(grid) == num_steps + 1 and grid[-1] == math.inf
    assert grid[0] == table[-1]
    assert num_steps == 1 or grid[-2] == table[0]
    assert (grid.diff() > 0).all()
    assert torch.isin(grid[:-1], table).all()


@pytest.mark.parametrize("spacing", ["index", *SPACINGS])
def test_as_many_steps_as_entries_is_the_whole_table(spacing):
    assert torch.equal(table_grid(1000, spacing=spacing)[:-1], TABLE.flip(0))


def test_edm_levels_are_those_of_the_paper():
    """Karras et al. 2022, eq. 5 with rho = 7, its sigma written out."""
    high, low, count = math.exp(6.5), math.exp(-5.5), 18
    sigma = [(high ** (1 / 7) + i / (count - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(count)]
    got = make_grid(-13.0, 11.0, count, spacing="edm")[:-1]
    torch.testing.assert_close(torch.exp(-got / 2), torch.tensor(sigma, dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("shift", [0.0, -2.0])
def test_cosine_levels_are_even_in_their_schedules_time(shift):
    schedule = make_schedule(ScheduleConfig(kind="cosine", logsnr_min=-13.0, logsnr_max=11.0, shift=shift))
    got = make_grid(schedule.logsnr_min, schedule.logsnr_max, 9, spacing="cosine", shift=shift)[:-1]
    torch.testing.assert_close(schedule.t(got), torch.linspace(1, 0, 9, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("stop_at", [-5.0, 0.123, 10.0])
def test_a_hand_over_cuts_the_whole_run(stop_at):
    whole, cut = make_grid(-13.0, 11.0, 32), make_grid(-13.0, 11.0, 32, stop_at=stop_at)
    assert cut[-1] == stop_at
    assert torch.equal(cut[:-1], whole[: len(cut) - 1])
    assert whole[len(cut) - 1] >= stop_at


def test_a_hand_over_from_a_table_stops_at_the_nearest_entry():
    cut = table_grid(32, stop_at=1.0)
    assert cut[-1] == TABLE[(TABLE - 1.0).abs().argmin()]
    assert torch.equal(cut[:-1], table_grid(32)[: len(cut) - 1])
    assert (cut.diff() > 0).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: make_grid(-12.0, 12.0, 0), "at least 1 step"),
        (lambda: make_grid(-12.0, 12.0, 8, stop_at=13.0), "inside the stage's noise range"),
        (lambda: make_grid(-12.0, 12.0, 8, stop_at=-12.0), "inside the stage's noise range"),
        (lambda: make_grid(-12.0, 12.0, 8, spacing="index"), "needs a noise table"),
        (lambda: table_grid(1001), "at most 1000"),
        (lambda: table_grid(8, stop_at=-50.0), "inside the stage's noise range"),
    ],
)
def test_impossible_grids_are_refused(call, words):
    with pytest.raises(UserError, match=words):
        call()
