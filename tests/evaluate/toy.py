"""Small labelled images for tests of evaluation."""

import torch


def bars(n: int, seed: int, channels: int = 1, noise: float = 40.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy 16x16 images with a bright bar: flat, upright, or the one diagonal or the other; four classes in turn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    line = torch.arange(16)
    shapes = torch.zeros(4, 16, 16)
    shapes[0, 7:9], shapes[1, :, 7:9] = 1, 1
    shapes[2, line, line], shapes[3, line, 15 - line] = 1, 1
    grain = noise * torch.randn(n, channels, 16, 16, generator=generator)
    return (100 + 90 * shapes[labels][:, None] + grain).clamp(0, 255).to(torch.uint8), labels
