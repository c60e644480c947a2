"""A user's own extractor: taken when it keeps its promise, told in one sentence when it does not."""

import sys

import numpy as np
import pytest
import torch

from cdm.errors import UserError
from cdm.evaluate.extractors import load_extractor
from cdm.evaluate.extractors.base import MissingWeights, widths
from cdm.evaluate.extractors.custom import probe_images

CPU = torch.device("cpu")
SOURCE = """
import numpy as np
import torch

calls = 0

def means(images):
    return images.float().mean(dim=(2, 3))

def as_array(images):
    return images.numpy().mean(axis=(2, 3))

def centred(images):
    x = images.float().mean(dim=(2, 3))
    return x - x.mean(dim=0)

def integers(images):
    return images.sum(dim=(2, 3))

def flat(images):
    return images.float().mean(dim=(1, 2, 3))

def one_row(images):
    return images.float().mean(dim=(0, 2, 3))[None]

def nan(images):
    return images.float().mean(dim=(2, 3)) * float("nan")

def nothing(images):
    pass

def fails(images):
    raise KeyError("weights")

def changes(images):
    global calls
    calls += 1
    return images.float().mean(dim=(2, 3))[:, : 3 if calls <= 4 else 2]

def ends(images):
    raise SystemExit(3)

def weighed(images):
    weights = torch.from_numpy(np.load(WEIGHTS))
    return images.float().mean(dim=(2, 3)) @ weights

number = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


IMAGES = torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.mark.parametrize("function", ["means", "as_array"])
def test_a_file_and_a_function(file, function):
    extractor = load_extractor(f"custom:{file}:{function}", device=CPU)
    assert (extractor.name, extractor.dim) == (f"custom:{file}:{function}", 3)
    assert widths(extractor) == {"main": 3} and extractor.verified
    features = extractor(IMAGES)
    assert features.main.dtype == torch.float32
    torch.testing.assert_close(features.main, IMAGES.float().mean(dim=(2, 3)))


def test_a_module_and_a_function(file, monkeypatch):
    monkeypatch.syspath_prepend(file.parent)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    by_module = load_extractor("custom:mine:means", device=CPU)
    by_file = load_extractor(f"custom:{file}:means", device=CPU)
    assert by_module.hash == by_file.hash and len(by_file.hash) == 12
    assert by_file.hash != load_extractor(f"custom:{file}:as_array", device=CPU).hash


def test_the_hash_follows_the_source(file):
    before = load_extractor(f"custom:{file}:means", device=CPU).hash
    file.write_text(SOURCE.replace("mean(dim=(2, 3))", "amax(dim=(2, 3))"))
    assert load_extractor(f"custom:{file}:means", device=CPU).hash != before


def test_the_hash_follows_weights_that_are_read_from_elsewhere(file, tmp_path):
    weights = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    file.write_text(SOURCE.replace("WEIGHTS", repr(str(tmp_path / "weights.npy"))))

    def hash_with(values):
        np.save(tmp_path / "weights.npy", values)
        return load_extractor(f"custom:{file}:weighed", device=CPU).hash

    before = hash_with(weights)
    assert hash_with(weights) == before
    assert hash_with(weights * np.float32(1 + 1e-6)) == before  # what two machines may differ by
    changed = weights.copy()
    changed[1, 2] += 0.1
    assert len({before, hash_with(changed), hash_with(2 * weights), hash_with(0 * weights)}) == 4


def test_the_images_of_the_hash_are_the_same_everywhere():
    probes = probe_images((3, 8, 8))
    assert torch.equal(probes, probe_images((3, 8, 8))) and abs(float(probes.float().mean()) - 127.5) < 6
    assert len(probes.flatten(1).unique(dim=0)) == len(probes)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("centred", "other features in a batch than alone"),
        ("integers", "gave torch.int64; expected a tensor or an array of floats"),
        ("flat", r"gave the shape \[2\] for 2 images; expected \[2, D\]"),
        ("one_row", r"gave the shape \[1, 3\] for 2 images"),
        ("nan", "gave NaN or infinity"),
        ("nothing", "gave NoneType"),
        ("fails", r"failed \(KeyError: 'weights'\)"),
        ("ends", r"failed \(SystemExit: 3\)"),
        ("number", "no function 'number'"),
        ("absent", "no function 'absent'"),
    ],
)
def test_broken_promises_are_one_sentence(file, function, message):
    with pytest.raises(UserError, match=message):
        load_extractor(f"custom:{file}:{function}", device=CPU)


def test_a_width_that_changes_is_told(file):
    extractor = load_extractor(f"custom:{file}:changes", device=CPU)
    with pytest.raises(UserError, match="2 features per image and 3 before"):
        extractor(IMAGES)


def test_it_is_tried_on_the_images_that_come(file):
    sample = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    assert load_extractor(f"custom:{file}:means", device=CPU, sample=sample).dim == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("custom:", "expected custom:MODULE:FUNCTION"),
        ("custom:mine", "expected custom:MODULE:FUNCTION"),
        ("custom:/nowhere/mine.py:means", "there is no Python file /nowhere/mine.py"),
        ("custom:no_such_module_at_all:means", "ModuleNotFoundError"),
        ("inceptoin", "unknown extractor 'inceptoin'"),
    ],
)
def test_names_that_lead_nowhere(name, message):
    with pytest.raises(UserError, match=message):
        load_extractor(name, device=CPU)


def test_a_file_with_an_error_is_told(tmp_path):
    (tmp_path / "bad.py").write_text("def f(:\n")
    with pytest.raises(UserError, match="SyntaxError"):
        load_extractor(f"custom:{tmp_path / 'bad.py'}:f", device=CPU)
    (tmp_path / "ends.py").write_text("raise SystemExit(7)\n")
    with pytest.raises(UserError, match=r"failed \(SystemExit: 7\)"):
        load_extractor(f"custom:{tmp_path / 'ends.py'}:f", device=CPU)


@pytest.mark.parametrize("name", ["inception", "dinov2", "resnet50"])
def test_missing_weights_are_named(tmp_path, monkeypatch, name):
    monkeypatch.setenv("CDM_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    with pytest.raises(MissingWeights) as told:
        load_extractor(name, device=CPU)
    wanted = {"inception": "weights-inception-2015-12-05-6726825d.pth", "dinov2": "facebook/dinov2-large"}
    assert wanted.get(name, "microsoft/resnet-50") in str(told.value)
    assert str(tmp_path / "weights") in str(told.value) and f"--extractor-weights {name}=" in str(told.value)
    with pytest.raises(MissingWeights, match=str(tmp_path / "mine")):
        load_extractor(name, weights=tmp_path / "mine", device=CPU)


def test_as_numpy_is_float32(file):
    assert load_extractor(f"custom:{file}:as_array", device=CPU)(IMAGES).main.numpy().dtype == np.float32
