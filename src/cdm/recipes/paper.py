"""The networks of Ho et al. 2021, *Cascaded Diffusion Models for High Fidelity Image Generation*.

Multipliers, blocks, attention and heads are the paper's; resampling in residual blocks is our reading. Parameters are
our count, with 1000 classes.
"""

from __future__ import annotations

from cdm.config import NetConfig

IMAGENET_CLASSES = 1000


def base_32(num_labels: int = IMAGENET_CLASSES, channels: int = 3) -> NetConfig:
    """The base model, 32x32, learned variances. 826 M parameters."""
    return NetConfig(
        image_size=32,
        in_channels=channels,
        out_channels=2 * channels,
        width=256,
        multipliers=(1, 2, 3, 4),
        num_blocks=6,
        attention=(16, 8),
        num_heads=4,
        dropout=0.1,
        num_labels=num_labels,
    )


def sr_32_64(num_labels: int = IMAGENET_CLASSES, channels: int = 3) -> NetConfig:
    """32x32 to 64x64, learned variances, Gaussian conditioning augmentation. 752 M parameters."""
    return NetConfig(
        image_size=64,
        in_channels=2 * channels,
        out_channels=2 * channels,
        width=256,
        multipliers=(1, 2, 3, 4),
        num_blocks=5,
        attention=(16, 8),
        num_heads=4,
        dropout=0.1,
        num_labels=num_labels,
        has_aug_level=True,
    )


def sr_64_128(num_labels: int = IMAGENET_CLASSES, channels: int = 3) -> NetConfig:
    """64x64 to 128x128, fixed variance, blur augmentation. 575 M parameters."""
    return NetConfig(
        image_size=128,
        in_channels=2 * channels,
        out_channels=channels,
        width=128,
        multipliers=(1, 2, 4, 8, 8),
        num_blocks=3,
        attention=(16,),
        num_heads=1,
        num_labels=num_labels,
    )


def sr_64_256(num_labels: int = IMAGENET_CLASSES, channels: int = 3) -> NetConfig:
    """64x64 to 256x256, fixed variance, blur augmentation. 634 M parameters."""
    return NetConfig(
        image_size=256,
        in_channels=2 * channels,
        out_channels=channels,
        width=128,
        multipliers=(1, 2, 4, 4, 8, 8),
        num_blocks=3,
        attention=(16,),
        num_heads=1,
        num_labels=num_labels,
    )
