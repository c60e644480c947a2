"""``cdm evaluate --save``: the judged images as a folder, a zip or ADM's ``.npz``. ``--save-statistics``: ADM's
reference statistics of the real ones."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image as PILImage

from cdm.artifacts import make_folder, write_atomic
from cdm.config import to_dict
from cdm.data.save import read_png_info, save_png, suffix_for
from cdm.errors import UserError
from cdm.evaluate.extractors.base import Extractor
from cdm.evaluate.npz import write_images, write_reference
from cdm.pipeline.evaluate_figures import Ledger
from cdm.pipeline.evaluate_request import EvaluateRequest
from cdm.pipeline.generate import ImageStore, RunImages
from cdm.pipeline.image_source import Images, ImageSource, MixedImages, key_of
from cdm.pipeline.reference import RealImages, ReferenceCache
from cdm.runtime import precision_name
from cdm.train.log import counted

Say = Callable[[str], None]


def file_name(source: ImageSource, i: int) -> str:
    """``A/A-000012.png``, or ``image-000012.png`` without classes: what ``cdm train`` and ``cdm evaluate`` read."""
    suffix, number = suffix_for(source.shape[0], 8), _number(source, i)
    if source.labels is None or not source.class_names:
        return f"image-{number:06d}{suffix}"
    name = source.class_names[source.labels[i]]
    return f"{name}/{name}-{number:06d}{suffix}"


def _number(source: ImageSource, i: int) -> int:
    """Place of image ``i``: stored images keep theirs, so that what is saved of them is judged in the same order."""
    return int(source.numbers[i]) if isinstance(source, MixedImages) else i


ARCHIVES = (".zip", ".npz")


def is_archive(save: str | None) -> bool:
    """Whether ``--save`` names one file, and no folder."""
    return save is not None and Path(save).suffix.lower() in ARCHIVES


def _key(request: EvaluateRequest, source: ImageSource) -> str:
    """Names an archive that this evaluation has written, so that the next call does not take it for another's."""
    return key_of("saved", str(Path(request.save or "").resolve()), source.key, source.count)


def check_save(request: EvaluateRequest, source: ImageSource, ledger: Ledger) -> None:
    """Refuse a ``--save`` that would overwrite something else, before anything is computed."""
    if request.save is None:
        return
    path = Path(request.save)
    if is_archive(request.save):
        if path.exists() and not request.force and ledger.get(_key(request, source)) is None:
            raise UserError(f"{path} exists already; use --force to overwrite it, or another --save.")
    elif path.exists() and not path.is_dir():
        raise UserError(f"--save {path} is a file; expected a folder to make, or a name that ends in .zip or .npz.")


@dataclass(frozen=True)
class StatisticsFile:
    """``--save-statistics``: Inception's statistics of the validation images, what ADM's evaluator compares with."""

    path: Path
    real: RealImages
    ledger: Ledger

    @classmethod
    def asked(cls, request: EvaluateRequest, val: RealImages | None, ledger: Ledger) -> StatisticsFile | None:
        """None where it was not asked for. Refuses what would overwrite something else, before anything is computed."""
        if request.save_statistics is None:
            return None
        if val is None:
            raise UserError(
                f"got --save-statistics, but {request.data} holds statistics only; expected real images: give them as "
                "--data."
            )
        made = cls(request.save_statistics, val, ledger)
        if made.path.exists() and not request.force and ledger.get(made._key) is None:
            raise UserError(f"{made.path} exists already; use --force to overwrite it, or another --save-statistics.")
        return made

    @property
    def _key(self) -> str:
        return key_of("statistics", str(self.path.resolve()), self.real.key)

    def find_extractor(self, extractors: Sequence[Extractor]) -> Extractor:
        """Raises ``UserError`` where Inception is not among them."""
        for extractor in extractors:
            if extractor.name == "inception":
                return extractor
        raise UserError(
            "--save-statistics keeps Inception's statistics, and Inception is not among the extractors here; expected "
            "its weights (--extractor-weights inception=PATH), inception in --extractors and a metric that uses it."
        )

    def write(self, cache: ReferenceCache, extractors: Sequence[Extractor], say: Say) -> None:
        extractor = self.find_extractor(extractors)
        make_folder(self.path.parent)
        write_reference(self.path, *(cache.stats(self.real, extractor, name) for name in ("main", "spatial")))
        self.ledger.put(self._key, True)
        say(f"statistics of {counted(self.real.count, 'real image')} saved in {self.path}")


class FolderSink:
    """One file per image; those that an earlier call left, of the same images, are kept."""

    stage = -1

    def __init__(self, folder: Path, request: EvaluateRequest, source: ImageSource, run: RunImages | None) -> None:
        self.folder, self.source, self.force = folder, source, request.force
        self.count = source.count
        self._names = [file_name(source, i) for i in range(source.count)]
        self._told: dict[str, Any] = {"made_by": "cdm evaluate", "images": source.key}
        if run is not None:
            self._told |= {
                "run": request.subject,
                "seed": run.seed,
                "settings": to_dict(run.settings),
                "weights": request.run_weights,
                "weights_hash": run.cascade.hash,
                "precision": precision_name(run.cascade.stages[0].denoiser.dtype),
            }

    def missing(self) -> Int64[np.ndarray, " m"]:
        """Raises ``UserError`` for a file of other images, without ``--force``."""
        there = [(self.folder / name).exists() for name in self._names]
        for i in np.flatnonzero(there).tolist():
            if self._of_these(self.folder / self._names[i]):
                continue
            if not self.force:
                raise UserError(
                    f"{self.folder / self._names[i]} exists already and is of other images; use --force to overwrite, "
                    "or another --save."
                )
            there[i] = False
        return np.flatnonzero(~np.array(there, dtype=bool))

    def _of_these(self, path: Path) -> bool:
        try:
            return read_png_info(path).get("images") == self.source.key
        except UserError:
            return False

    def write(self, indices: Int64[np.ndarray, " b"], images: Images) -> None:
        for i, image in zip(indices.tolist(), images, strict=True):
            path = self.folder / self._names[i]
            make_folder(path.parent)
            named = None if self.source.labels is None else self.source.class_names[self.source.labels[i]]
            save_png(path, image, self._told | {"class": named, "index": _number(self.source, i)})


def pack(request: EvaluateRequest, source: ImageSource, store: ImageStore, ledger: Ledger, say: Say) -> None:
    """Write the archive in one go from the images kept in the working folder, unless an earlier call did."""
    if request.save is None:
        return
    path = Path(request.save)
    if is_archive(request.save) and not (path.exists() and ledger.get(_key(request, source))):
        make_folder(path.parent)
        if path.suffix.lower() == ".zip":
            write_atomic(path, lambda file: _write_zip(file, source, store.images()))
        else:
            order = np.argsort([_number(source, i) for i in range(source.count)])
            labels = None if source.labels is None else source.labels[order]
            write_images(path, _blocks(store, order), source.count, source.shape, labels)
        ledger.put(_key(request, source), True)
    say(f"{counted(source.count, 'image')} saved in {path}")


def _blocks(store: ImageStore, order: Int64[np.ndarray, " n"]) -> Iterator[Images]:
    images = store.images()
    for start in range(0, len(order), 256):
        yield torch.from_numpy(images[order[start : start + 256]])


def _write_zip(file: Any, source: ImageSource, images: np.ndarray) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:  # PNG is compressed already
        for i, image in enumerate(images):
            buffer = io.BytesIO()
            if suffix_for(len(image), 8) == ".npy":
                np.save(buffer, image.transpose(1, 2, 0), allow_pickle=False)
            else:
                pixels = image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
                PILImage.fromarray(pixels).save(buffer, "PNG")
            archive.writestr(file_name(source, i), buffer.getvalue())
