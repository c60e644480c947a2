"""Options of ``cdm train`` that cannot work: one sentence, and nothing is written."""

import pytest
from tests.e2e.command import refused, run

REFUSED = {
    "sizes that do not rise": (("--sizes", "16,8"), ("must rise", "got 8 after 16", "use for example")),
    "sizes that do not divide": (("--sizes", "8,12"), ("whole multiple", "got 12 after 8", "use for example 8,16")),
    "sizes that are no numbers": (("--sizes", "small,big"), ("'small,big'", "expected for example 16,64")),
    "sizes that are too small": (("--sizes", "4,8"), ("size 4", "expected at least 8")),
    "images too few": (("--images", "64"), ("too small", "64 images", "expected at least", "raise --images")),
    "minutes too few": (
        ("--minutes", "0.001", "--stage", "0"),
        ("too small", "expected at least", "raise --images or --minutes"),
    ),
    "images below zero": (("--images", "-5"), ("--images is -5", "expected")),
    "minutes that are no number": (("--minutes", "nan"), ("--minutes is nan", "expected")),
    "both budgets": (("--images", "640", "--minutes", "1"), ("--images and --minutes", "one of them")),
    "unknown recipe": (("--recipe", "smal"), ("unknown recipe 'smal'", "expected one of", "did you mean 'small'")),
    "sizes that are not the recipe's": (("--recipe", "cdm-imagenet-64"), ("cdm-imagenet-64", "--sizes")),
    "unknown precision": (("--precision", "int4"), ("'int4'", "expected auto, fp32, bf16.")),
    "unknown device": (("--device", "tpu"), ("'tpu'", "expected")),
    "device that is not there": (("--device", "cuda:99"), ("'cuda:99'", "--device cpu")),
    "stage out of range": (("--stage", "2"), ("--stage 2", "expected 0 (the base) to 1")),
    "no threads": (("--threads", "0"), ("0 threads", "expected at least 1")),
    "more threads than any machine has": (("--threads", "100000000"), ("100000000 threads", "expected at most")),
    "run folder with a name too long": (("--out", "x" * 5000), ("cannot be used", "name too long", "another path")),
    "validation data with a name too long": (("--val", "x" * 5000), ("cannot be used", "name too long")),
    "no image per update": (("--batch-size", "0"), ("--batch-size is 0", "expected 1 to 1,048,576")),
    "more images per update than a number holds": (("--batch-size", str(2**63)), ("expected 1 to 1,048,576",)),
    "batch sizes of other stages": (("--batch-size", "1,2,3"), ("has 3 numbers", "one for each of the 2 stages")),
    "a batch size in words": (("--batch-size", "many"), ("--batch-size is 'many'", "expected whole numbers")),
    "an unknown augmentation": (("--augmentation", "noise"), ("--augmentation is 'noise'", "expected one of none")),
    "augmentations of other stages": (("--augmentation", "blur,none"), ("has 2 entries", "has 1 SR stage;")),
    "augmentation levels that fall": (("--aug-levels", "0.6:0.2"), ("--aug-levels is '0.6:0.2'", "a range that rises")),
    "levels where there is no noise": (
        ("--augmentation", "blur", "--aug-levels", "0.2"),
        ("got --aug-levels", "no stage is trained with noise"),
    ),
    "no channels": (("--channels", "0"), ("--channels is 0", "expected 1")),
    "channels the images lack": (("--channels", "5"), ("3 channels (RGB)", "expected 5")),
    "everything held out": (("--val-fraction", "1"), ("--val-fraction is 1", "expected 0")),
    "no checkpoint kept": (("--keep", "0"), ("--keep is 0", "expected at least 1")),
    "seed below zero": (("--seed", "-1"), ("--seed is -1", "expected 0")),
    "validation data missing": (("--val", "nowhere"), ("no data at 'nowhere'", "check the path")),
    "run folder without a name": (("--out", ""), ("empty --out", "expected a path")),
    "run folder that is a file": (("--out", __file__), ("test_bad_options.py", "expected a folder")),
    "run folder below a file": (("--out", f"{__file__}/a/b"), ("lies below", "is a file; expected a folder")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, data, tmp_path):
    options, words = REFUSED[case]
    given = {"--out": str(tmp_path / "run"), "--recipe": "demo", "--sizes": "8,16", "--images": "640"}
    given |= dict(zip(options[::2], options[1::2], strict=True))
    if case == "minutes too few" or case == "minutes that are no number":
        del given["--images"]
    line = [part for pair in given.items() for part in pair]
    refused(run("train", data, *line), *words)
    if case.endswith(("too few", "below a file")):
        refused(run("train", data, *line, "--dry-run"), *words)  # it tells what would be refused
    assert not (tmp_path / "run" / "cascade.json").exists()
    if case == "images too few":
        assert not (tmp_path / "run").exists()
