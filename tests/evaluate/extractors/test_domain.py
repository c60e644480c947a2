"""Domain features: deterministic, kept in files, blind to the batch, able to tell images apart."""

import numpy as np
import pytest
import torch
from tests.evaluate.toy import bars

from cdm.artifacts import save_tensors
from cdm.errors import CorruptError, UserError
from cdm.evaluate.extractors import domain
from cdm.evaluate.extractors.domain import (
    DomainExtractor,
    cached_domain,
    domain_key,
    images_seen,
    load_domain,
    net_side,
    save_domain,
    train_domain,
)


def apartness(extractor: DomainExtractor) -> float:
    """Share of fresh images whose nearest other image is of the same class."""
    images, labels = bars(200, seed=1)
    features = extractor(images).main
    distances = torch.cdist(features, features)
    distances.fill_diagonal_(torch.inf)
    return (labels[distances.argmin(dim=1)] == labels).double().mean().item()


@pytest.fixture(scope="module")
def by_classes() -> DomainExtractor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(domain, "EFFORT", 1000)
        return train_domain(*bars(200, seed=0), seed=0)


def test_classes_are_told_apart(by_classes):
    assert apartness(by_classes) > 0.9
    assert by_classes.meta["objective"] == "classes" and "4 classes" in by_classes.recipe


@pytest.mark.parametrize("labels", [None, torch.zeros(200, dtype=torch.int64)])
def test_without_classes_images_are_told_apart(labels, monkeypatch):
    monkeypatch.setattr(domain, "EFFORT", 1000)
    extractor = train_domain(bars(200, seed=0)[0], labels, seed=0)
    assert extractor.meta["objective"] == "instances" and "instance discrimination" in extractor.recipe
    assert apartness(extractor) > 0.5  # of 0.25 by chance


def test_equal_seeds_give_equal_nets_and_seeds_and_data_matter(monkeypatch):
    monkeypatch.setattr(domain, "EFFORT", 150)
    images, labels = bars(200, seed=0)
    before = torch.random.get_rng_state()
    first = train_domain(images, labels, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.hash == train_domain(images.numpy(), labels.numpy(), seed=3).hash
    others = [train_domain(images, labels, seed=4), train_domain(255 - images, labels, seed=3)]
    assert len({first.hash, *(other.hash for other in others)}) == 3


def test_batches_do_not_matter(by_classes):
    images, _ = bars(300, seed=2)
    whole = by_classes(images).main
    parts = torch.cat([by_classes(part).main for part in (images[:1], images[1:8], images[8:])])
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    assert whole.shape == (300, 128) and whole.dtype == torch.float32
    assert by_classes(images[:0]).main.shape == (0, 128)


def test_a_saved_net_is_the_same(by_classes, tmp_path):
    path = tmp_path / "domain.safetensors"
    save_domain(path, by_classes)
    again = load_domain(path)
    images, _ = bars(20, seed=2)
    assert again.hash == by_classes.hash and again.meta == by_classes.meta
    assert torch.equal(again(images).main, by_classes(images).main)


def test_files_that_are_not_such_a_net_are_named(tmp_path):
    path = tmp_path / "other.safetensors"
    save_tensors(path, {"weight": torch.zeros(3)}, {"side": 16})
    with pytest.raises(CorruptError, match=r"other\.safetensors does not hold domain features"):
        load_domain(path)
    path.write_bytes(b"x" * 100)
    with pytest.raises(CorruptError, match="is damaged"):
        load_domain(path)


def test_trained_once_per_data_and_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(domain, "EFFORT", 150)
    images, labels = bars(64, seed=0)
    seen: list[float] = []
    first = cached_domain(tmp_path / "cache", images, labels, fingerprint="abc", progress=seen.append)
    assert seen[-1] == 1.0 and seen == sorted(seen)
    monkeypatch.setattr(domain, "train_domain", None)
    assert cached_domain(tmp_path / "cache", images, labels, fingerprint="abc").hash == first.hash
    keys = {domain_key("abc", 0), domain_key("abc", 1), domain_key("abd", 0)}
    assert len(keys) == 3 and all(len(key) == 12 for key in keys)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((8, 8), (16, 1)), ((32, 24), (32, 1)), ((33, 33), (32, 2)), ((64, 64), (64, 2)), ((512, 300), (64, 2))],
)
def test_images_of_any_size_and_channels(shape, expected, monkeypatch):
    monkeypatch.setattr(domain, "EFFORT", 20)
    assert net_side(*shape) == expected
    images = np.random.default_rng(0).integers(0, 256, (40, 2, *shape), dtype=np.uint8)
    extractor = train_domain(images, None)
    assert extractor(torch.from_numpy(images[:3])).main.shape == (3, 128)
    assert f"{expected[0]}x{expected[0]}" in extractor.resize
    with pytest.raises(UserError, match="3 channels; expected 2"):
        extractor(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


def test_small_sets_are_repeated_more_and_large_ones_are_bounded():
    repeats = [images_seen(n) / n for n in (100, 1000, 10_000)]
    assert repeats == sorted(repeats, reverse=True) and 100 < repeats[0] < 200 and 5 < repeats[2] < 10
    assert images_seen(10**6) == images_seen(20_000) < 100_000


def test_too_few_images_are_refused():
    with pytest.raises(UserError, match="at least 32 real images to learn from; got 31"):
        train_domain(*bars(31, seed=0))
