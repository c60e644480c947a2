import torch

from cdm.conditioning import make_low_res
from cdm.evaluate.area import area_resize, take, take_resized
from cdm.nn.classifier import to_float


def images(n: int, side: int, channels: int = 3) -> torch.Tensor:
    return torch.randint(
        0, 256, (n, channels, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def test_whole_ratios_are_the_low_res_images_that_stages_are_trained_on():
    x = images(5, 24)
    low = make_low_res(to_float(x), 8)
    assert (area_resize(x, 8, 8).float() - (low + 1) * 127.5).abs().max() < 0.51  # halves may be rounded either way


def test_other_ratios_are_means_over_the_covered_area():
    x = images(2, 23, channels=1)
    for side in (9, 16):
        fine = x.double().repeat_interleave(side, 2).repeat_interleave(side, 3)  # 23 fine pixels to each new one
        means = torch.nn.functional.avg_pool2d(fine, 23)
        assert (area_resize(x, side, side) - means).abs().max() < 0.5 + 1e-9


def test_means_are_kept_and_enlarging_repeats_pixels():
    x = images(4, 30)
    torch.testing.assert_close(area_resize(x, 13, 17).double().mean((2, 3)), x.double().mean((2, 3)), atol=0.2, rtol=0)
    assert torch.equal(area_resize(x, 60, 90), x.repeat_interleave(2, 2).repeat_interleave(3, 3))
    assert area_resize(x, 30, 30) is x


def test_rows_of_tensors_and_of_arrays():
    x = images(6, 8)
    rows = torch.tensor([4, 1])
    assert torch.equal(take(x, rows), x[rows])
    assert torch.equal(take(x.numpy(), rows), x[rows])
    assert torch.equal(take_resized(x, rows, 4, 4), area_resize(x[rows], 4, 4))
    assert take_resized(x, rows[:0], 4, 4).shape == (0, 3, 4, 4)
