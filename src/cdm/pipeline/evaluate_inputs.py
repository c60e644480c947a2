"""What ``cdm evaluate`` was given: the images to judge, and the real ones, checked against each other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdm.cascade import Cascade, load_config
from cdm.config import CascadeConfig, DataConfig, SamplingConfig, to_dict
from cdm.data.source import LETTERS_SPEC, open_source
from cdm.errors import UserError
from cdm.pipeline.evaluate_request import DEFAULT_NUM, EvaluateRequest, check_apart
from cdm.pipeline.generate import Progress, RunImages
from cdm.pipeline.held_out import read_held_out, recorded_rows, recorded_training
from cdm.pipeline.image_source import (
    FileImages,
    ImageSource,
    MixedImages,
    check_count,
    class_shares,
    is_npz,
    labels_in_turn,
    open_files,
)
from cdm.pipeline.npz_source import GivenStats, NpzImages, read_npz_array, read_npz_stats
from cdm.pipeline.reference import ROLES, RealImages, check_classes, load_array, make_real, own_size, shared_images
from cdm.settings import lost_grids
from cdm.train.log import counted

Say = Callable[[str], None]


@dataclass(frozen=True)
class Inputs:
    """Everything that is read before anything is computed.

    run: the cascade where a run is judged. val, train: real images, None where there are none. stats: statistics that
    stand for the real images of that role. warnings: sentences that the report repeats. own_sizes: shorter side of the
    real images of a role as they are stored, which may be more than what they are compared at.
    """

    source: ImageSource
    run: RunImages | None
    val: RealImages | None
    train: RealImages | None
    stats: dict[str, GivenStats]
    subject: dict[str, Any]
    warnings: tuple[str, ...]
    own_sizes: dict[str, int]

    @property
    def data(self) -> dict[str, dict[str, Any]]:
        """For the report."""
        told: dict[str, dict[str, Any]] = {}
        for role, real in (("val", self.val), ("train", self.train)):
            if real is not None:
                told[role] = {"where": real.where, "count": real.count, "fingerprint": real.fingerprint,
                              "size": real.shape[-1], "own_size": self.own_sizes.get(role, real.shape[-1]),
                              "classes": len(real.class_names)}  # fmt: skip
            elif role in self.stats:
                given = self.stats[role]
                told[role] = {"where": given.where, "count": 0, "fingerprint": given.fingerprint, "statistics": True}
        return told


def open_inputs(request: EvaluateRequest, progress: Progress, say: Say) -> Inputs:
    """Read what was named. Raises ``UserError`` for what does not fit together, before anything is computed."""
    config = _run_config(request)
    given: FileImages | NpzImages | None = None
    if config is None:
        _refuse_sampling(request)
        given = _open_images(request)
        channels, size, _ = given.shape
        names, like = given.class_names, None
    else:
        channels, size, names, like = config.data.channels, config.sizes[-1], config.class_names, config.data
        _settings(request, config)  # a wrong one is told before any data is read
    notes: list[str] = []
    training = recorded_training(Path(request.subject)) if config is not None else {}
    own_sizes: dict[str, int] = {}
    form = _Form(size, channels, like, names)
    real, stats = _real_sides(request, training, form, progress, say, notes, own_sizes)
    val, train = real.get("val"), real.get("train")
    source: ImageSource
    if config is not None:
        source, common = _run_images(request, config, val or train, notes), names
    else:
        assert given is not None
        stored, common = _same_classes(given, val, train)
        source = MixedImages(stored, request.num or stored.count)
    val, train = (_with_classes(real, common, notes) for real in (val, train))
    if val is not None and train is not None:
        _warn_of_unlike(val, train, notes)
    for note in notes:
        say(f"warning: {note}")
    run = source if isinstance(source, RunImages) else None
    return Inputs(source, run, val, train, stats, _subject(request, source), tuple(notes), own_sizes)


def _run_config(request: EvaluateRequest) -> CascadeConfig | None:
    subject = Path(request.subject)
    return load_config(subject) if (subject / "cascade.json").exists() else None


def _refuse_sampling(request: EvaluateRequest) -> None:
    """Options that only a run can follow."""
    for flag in ("seed", "steps", "sampler", "grid", "threshold", "aug_level", "hand_over", "weights", "precision"):
        if getattr(request, flag) is not None:
            raise UserError(
                f"got --{flag.replace('_', '-')}, but {request.subject} is no run folder; expected it where images "
                "are generated: leave it out."
            )


def _open_images(request: EvaluateRequest) -> FileImages | NpzImages:
    found = NpzImages(Path(request.subject)) if is_npz(request.subject) else open_files(request.subject)
    if request.num is not None:
        check_count(request.num, found.count, request.subject)
    return found


@dataclass(frozen=True)
class _Form:
    """What real images are brought to: the judged ones' size and channels, the run's bit depth and classes."""

    size: int
    channels: int
    like: DataConfig | None
    class_names: tuple[str, ...]


def _real_sides(
    request: EvaluateRequest, training: dict[str, Any], form: _Form, progress: Progress, say: Say, notes: list[str],
    own_sizes: dict[str, int],
) -> tuple[dict[str, RealImages], dict[str, GivenStats]]:  # fmt: skip
    """Validation and training images by role, and the statistics that stand for them or go before them."""
    real: dict[str, RealImages] = {}
    stats: dict[str, GivenStats] = {}
    held_out = _held_out_of(request, training, notes)
    train = request.train_data or _recorded(training, say)
    check_apart(request, "what the run was trained on", train)
    for role, spec in (("val", request.data), ("train", train)):
        if spec is None:
            notes.append(
                "no training images (--train-data): figures against them and the search for copies are left out, and a "
                "domain extractor is trained on the images of --data"
            )
        elif is_npz(spec):
            _read_npz(role, Path(spec).expanduser(), form, real, stats)
        else:
            array = load_array(spec, form.size, form.channels, form.like, say, progress)
            own_sizes[role] = own_size(spec, form.size)
            if own_sizes[role] > form.size:
                say(
                    f"the {ROLES[role]} images at {spec} are {own_sizes[role]} pixels (median shorter side), those "
                    f"judged {form.size}: they are compared at {form.size}, averaged down"
                )
            rows = None
            if role == "val" and held_out:
                rows = recorded_rows(Path(request.subject), array.names)[1]
                said = counted(len(rows), "image")
                say(f"{spec} is what the run was trained on; the {said} that it held out are the validation images")
            elif role == "train" and open_source(spec).fingerprint == training.get("fingerprint"):
                rows = recorded_rows(Path(request.subject), array.names)[0]
            real[role] = make_real(role, spec, array, rows)
    return real, stats


def _read_npz(
    role: str, path: Path, form: _Form, real: dict[str, RealImages], stats: dict[str, GivenStats]
) -> None:  # fmt: skip
    given = read_npz_stats(path)
    array = read_npz_array(path, form.size, form.channels, form.class_names)
    if given is not None:
        stats[role] = given
    if array is not None:
        real[role] = make_real(role, str(path), array)


def _recorded(training: dict[str, Any], say: Say) -> str | None:
    """The training data that the run was made of, if it is still there and still the same."""
    places = [place for place in (training.get("path"), training.get("data")) if place]
    if not places:
        return None
    there = [place for place in places if place == LETTERS_SPEC or Path(place).expanduser().exists()]
    if not there:
        say(f"the training images are not at {places[0]} any more; name them with --train-data")
        return None
    spec = there[0]
    if open_source(spec).fingerprint != training.get("fingerprint"):
        say(f"the images at {spec} are not those of the training any more: left out; --train-data takes them anyway")
        return None
    return spec


def _held_out_of(request: EvaluateRequest, training: dict[str, Any], notes: list[str]) -> frozenset[str]:
    """Names of the images held out, where --data is the very data that the run was trained on, wherever it lies; else
    none. Data that is not, but has all those names, is told of: most of it may have been trained on."""
    if not training or is_npz(request.data):
        return frozenset()
    source, held_out = open_source(request.data), frozenset[str]()
    if source.fingerprint == training["fingerprint"]:
        return read_held_out(Path(request.subject))
    with suppress(UserError):  # a damaged list matters to its own data alone
        held_out = read_held_out(Path(request.subject))
    if held_out and held_out <= {entry.path for entry in source.entries}:
        notes.append(
            f"{request.data} has all images that the run held out, yet other files than it was trained on: most of "
            "them may be training images; expected images kept from training"
        )
    return frozenset()


def _settings(request: EvaluateRequest, config: CascadeConfig) -> SamplingConfig:
    return Cascade(config, ()).settings(
        steps=request.steps, sampler=request.sampler, grid=request.grid, threshold=request.threshold,
        hand_over=request.hand_over,
        aug_level=None if request.aug_level is None else _levels(request.aug_level),
    )  # fmt: skip


def _run_images(
    request: EvaluateRequest, config: CascadeConfig, real: RealImages | None, notes: list[str]
) -> RunImages:
    """The run as a source; classes come as often as they do in the real images."""
    settings = _settings(request, config)
    notes += lost_grids(config, settings) if request.grid is None else []
    cascade = Cascade.load(
        request.subject,
        weights=request.run_weights,
        device=request.device,
        precision=request.precision or "auto",
        say=notes.append,
    )
    count = request.num or max(DEFAULT_NUM[0], min(DEFAULT_NUM[1], 0 if real is None else real.count))
    labels = None
    if config.num_classes:
        known = None
        if real is not None:
            known = check_classes(real.array, config.class_names, real.where).labels
            known = None if known is None else known[real.rows]
        labels = labels_in_turn(class_shares(known, config.num_classes), count)
        lacking = [] if known is None else sorted(set(range(config.num_classes)) - set(known.tolist()))
        if lacking:
            named = ", ".join(config.class_names[i] for i in lacking[:8])
            named += f" and {len(lacking) - 8} more" if len(lacking) > 8 else ""
            notes.append(f"{real.where if real else ''} has no image of {named}: none is generated of these classes")
    return RunImages(cascade, settings, request.seed or 0, labels, count, f"{Path(request.subject).resolve().name}")


def _same_classes(
    source: FileImages | NpzImages, val: RealImages | None, train: RealImages | None
) -> tuple[FileImages | NpzImages, tuple[str, ...]]:
    """Images labelled by the classes of the real ones, and these. Raises ``UserError`` for a class they lack, and for
    validation images of a class that the training images lack."""
    if val is not None and train is not None and val.class_names and train.class_names:
        odd = sorted(set(val.class_names) - set(train.class_names))
        if odd:
            raise UserError(
                f"the class {odd[0]!r} of {val.where} is not one of {train.where}, which has "
                f"{', '.join(train.class_names[:8])}; expected the same classes: give sets that match."
            )
    real = tuple(sorted({name for side in (val, train) if side is not None for name in side.class_names}))
    labelled = source.labelled if isinstance(source, NpzImages) else source.labels is not None
    if not real or not labelled:
        return source.with_classes(()), real
    return source.with_classes(real), real


def _levels(levels: tuple[float, ...]) -> float | tuple[float, ...]:
    return levels[0] if len(levels) == 1 else levels


def _with_classes(real: RealImages | None, names: tuple[str, ...], notes: list[str]) -> RealImages | None:
    """Labelled by the same list on all sides."""
    if real is None:
        return None
    array = check_classes(real.array, names, real.where)
    if names and array.labels is None:
        notes.append(f"the {real.what} have no class folders: what needs their classes is left out")
    return RealImages(real.role, real.where, array, real.rows, real.digests)


def _warn_of_unlike(val: RealImages, train: RealImages, notes: list[str]) -> None:
    shared = shared_images(val, train)
    if shared == val.count:
        notes.append(
            "the validation images are training images, every one: figures on them cannot show over-fitting or "
            "copying; expected images kept from training"
        )
    elif shared:
        notes.append(f"{shared:,} of {val.count:,} validation images are training images too, pixel by pixel")
    if val.array.is_grey != train.array.is_grey:
        kinds = ("grey", "in colour") if val.array.is_grey else ("in colour", "grey")
        notes.append(
            f"the validation images are {kinds[0]}, those trained on {kinds[1]}: every distance tells of that first; "
            "expected images of one kind"
        )


def _subject(request: EvaluateRequest, source: ImageSource) -> dict[str, Any]:
    path = Path(request.subject).resolve()
    told = {"name": path.name, "where": request.subject, "count": source.count, "size": source.shape[-1],
            "channels": source.shape[0], "classes": len(source.class_names)}  # fmt: skip
    if not isinstance(source, RunImages):
        return told | {"kind": "images", "hash": "", "fingerprint": source.key[:12]}
    settings = source.settings
    words = f"{settings.sampler}, steps {','.join(map(str, settings.steps))}, {settings.hand_over}, seed {source.seed}"
    if settings.aug_level:
        words += f", augmentation level {','.join(f'{level:g}' for level in settings.aug_level)}"
    return told | {"kind": "run", "hash": source.cascade.hash, "fingerprint": source.key[:12], "settings": words,
                   "seed": source.seed, "sampling": to_dict(settings), "weights": request.run_weights}  # fmt: skip
