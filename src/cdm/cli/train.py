"""``cdm train``."""

from __future__ import annotations

from cdm.cli.options import Train
from cdm.cli.paths import user_path
from cdm.cli.say import say
from cdm.config import CascadeConfig, DataConfig
from cdm.data.plan import check_sizes
from cdm.pipeline.request import TrainRequest, parse_numbers
from cdm.recipes import SIZES, check_recipe, make_config
from cdm.recipes.facts import Facts


def run_train(options: Train, command: str) -> None:
    check_recipe(options.recipe)
    request = TrainRequest(
        data=options.data,
        out=user_path(options.out),
        recipe=options.recipe,
        sizes=None if options.sizes is None else check_sizes(options.sizes),
        images=options.images,
        minutes=options.minutes,
        batch_size=_batch_size(options.batch_size),
        augmentation=_entries(options.augmentation),
        aug_levels=_entries(options.aug_levels),
        aug_density=_entries(options.aug_density),
        stage=options.stage,
        val=options.val,
        val_fraction=options.val_fraction,
        channels=options.channels,
        flip=options.flip,
        balanced=options.balanced,
        seed=options.seed,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        keep=options.keep,
        checkpoint_images=options.checkpoint_images,
        allow_changed_data=options.allow_changed_data,
        command=command,
    )

    # torch comes only now: wrong options are told at once
    from cdm.artifacts import check_not_in_use
    from cdm.cli.progress import counting_progress
    from cdm.pipeline.describe import describe
    from cdm.pipeline.train_run import prepare, train
    from cdm.train.loop import Stopped

    def recipe(sizes: tuple[int, ...], class_names: tuple[str, ...], data: DataConfig, count: int) -> CascadeConfig:
        return make_config(request.recipe, Facts(sizes, class_names, data, count, request.seed))

    if not options.dry_run:
        check_not_in_use(request.out)  # before the data is read, which may take minutes
    with counting_progress() as progress:
        prepared = prepare(request, recipe, SIZES.get(request.recipe), say, progress)
    if options.dry_run:
        describe(prepared)
        return
    try:
        train(prepared, say)
    except Stopped as stopped:
        raise KeyboardInterrupt(f"stopped and saved; go on with the same command: {command}") from stopped


def _entries(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(text.split(","))


def _batch_size(text: str | None) -> tuple[int, ...] | None:
    numbers = parse_numbers(text, int, "batch-size", "256 or 256,128")
    return None if numbers is None else tuple(numbers)
