import pytest
import torch

from cdm.errors import UserError
from cdm.nn.classifier import Classifier, accuracy, augmented, predict, to_float, train_classifier
from cdm.rng import Rng


def bars(n: int, seed: int, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images with a bright bar: flat, upright, or the one diagonal or the other (mirror images)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    line = torch.arange(16)
    shapes = torch.zeros(4, 16, 16)
    shapes[0, 7:9], shapes[1, :, 7:9] = 1, 1
    shapes[2, line, line], shapes[3, line, 15 - line] = 1, 1
    noise = 40 * torch.randn(n, channels, 16, 16, generator=generator)
    return (100 + 90 * shapes[labels][:, None] + noise).clamp(0, 255).to(torch.uint8), labels


def test_learns_and_tells_mirror_images_apart() -> None:
    net = train_classifier(*bars(256, seed=0), epochs=14, seed=0)
    assert not net.training
    fresh, labels = bars(256, seed=1)
    assert accuracy(net, fresh, labels) > 0.95
    assert accuracy(net, fresh.flip(3), labels) < 0.55  # the diagonals are read as each other


def test_equal_seeds_give_equal_nets() -> None:
    images, labels = bars(256, seed=0, channels=1)
    before = torch.random.get_rng_state()
    nets = [train_classifier(images, labels, epochs=1, seed=seed).state_dict() for seed in (3, 3, 4)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(nets[0].values(), nets[1].values(), strict=True))
    assert not torch.equal(nets[0]["last.weight"], nets[2]["last.weight"])


def test_shapes_and_reading() -> None:
    net = Classifier(2, 7).eval()
    images = torch.randint(0, 256, (3, 2, 32, 24), dtype=torch.uint8)
    assert net(to_float(images)).shape == (3, 7)
    assert net.features(to_float(images)).shape == (3, 128)
    assert torch.equal(predict(net, images), net(to_float(images)).argmax(1))
    assert accuracy(net, images, predict(net, images)) == 1.0


def test_augmentation_shifts_and_recolours_a_little() -> None:
    x = torch.zeros(200, 3, 20, 20)
    x[:, :, 10, 10] = 1  # one bright pixel
    out = augmented(x, Rng(0), torch.arange(200))
    place = (out - out.amin(dim=(2, 3), keepdim=True)).sum(1).flatten(1).argmax(1)
    assert set((place // 20).tolist()) == set((place % 20).tolist()) == {8, 9, 10, 11, 12}
    level, height = out.amin(dim=(2, 3)), out.amax(dim=(2, 3)) - out.amin(dim=(2, 3))
    assert 0.15 < level.abs().max() <= 0.2 and 0.79 < height.min() < 0.85 and 1.15 < height.max() < 1.21
    torch.testing.assert_close(augmented(x[7:9], Rng(0), torch.arange(7, 9)), out[7:9])


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UserError, match="at least 128 images"):
        train_classifier(*bars(100, seed=0), epochs=1, seed=0)
