"""A data set in memory, or mapped from a cache file: all images at one size."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8, UInt16

from cdm.data.pixels import FULL_8, Window
from cdm.errors import UserError


@dataclass(frozen=True)
class ImageArray:
    """All images of a data set, square, at one size.

    images: uint8 or uint16 ``[N, C, S, S]``; an ``np.memmap`` if the data is over the memory limit.
    labels: int64 ``[N]``, or None without classes.
    class_names: sorted; empty without classes.
    names: path of each image below the data's top.
    fingerprint: of the source.
    window: intensities (low, high) that become -1 and 1.
    bit_depth: 8 or 16.
    skipped: (name, reason) of each file that was left out.
    warnings: sentences for the user.
    cache_file: where ``images`` is mapped from, or None.
    hashes: of each file's content, 12 hex digits (of its name for a built-in letter); empty where there are no files.
    """

    images: UInt8[np.ndarray, "n c s s"] | UInt16[np.ndarray, "n c s s"]
    labels: Int64[np.ndarray, " n"] | None
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    fingerprint: str
    window: Window = FULL_8
    bit_depth: int = 8
    skipped: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    cache_file: Path | None = None
    hashes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> int:
        return self.images.shape[-1]

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def is_grey(self) -> bool:
        """Whether the three channels of a colour set are the same in all of 256 images, evenly taken."""
        some = (self.images[int(i)] for i in np.linspace(0, len(self) - 1, min(256, len(self))))
        return self.channels == 3 and all(bool((one == one[:1]).all()) for one in some)

    def with_classes(self, class_names: tuple[str, ...]) -> ImageArray:
        """The same images labelled by another data set's list of classes (validation by the training classes).

        Without classes there, labels are dropped. Raises ``UserError`` for a class that the list does not have.
        """
        if not class_names:
            return dataclasses.replace(self, labels=None, class_names=())
        unknown = sorted(set(self.class_names) - set(class_names))
        if self.labels is None or unknown:
            got = f"the class {unknown[0]!r}" if unknown else "images without class folders"
            raise UserError(
                f"got {got}; expected the classes {', '.join(class_names[:8])}{', ...' * (len(class_names) > 8)}."
            )
        to = np.array([class_names.index(name) for name in self.class_names], dtype=np.int64)
        return dataclasses.replace(self, labels=to[self.labels], class_names=class_names)
