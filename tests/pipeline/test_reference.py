"""Real images to judge against: what names them, and that their features are computed once."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from cdm.data.image_array import ImageArray
from cdm.data.pixels import FULL_8
from cdm.errors import UserError
from cdm.evaluate.extractors.base import Features
from cdm.evaluate.npz import write_reference
from cdm.evaluate.stats import FeatureStats, feature_stats
from cdm.pipeline.evaluate_chains import pairs_of
from cdm.pipeline.evaluate_request import least_images, too_few
from cdm.pipeline.generate import no_progress
from cdm.pipeline.npz_source import NpzImages, read_npz_array, read_npz_stats
from cdm.pipeline.processes import Processes
from cdm.pipeline.reference import ReferenceCache, make_real, shared_images


@dataclass
class Means:
    """An extractor that counts its images."""

    name: str = "means"
    hash: str = "0" * 12
    dim: int = 3
    spatial_dim: int = 0
    num_probabilities: int = 0
    resize: str = "none"
    verified: bool = True
    seen: int = 0

    def __call__(self, images):
        self.seen += len(images)
        return Features(images.float().mean(dim=(2, 3)))


def images(count=12, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
    names = tuple(f"{i}.png" for i in range(count))
    return ImageArray(pixels, np.arange(count) % 2, ("a", "b"), names, "fingerprint")


def cache(folder, said):
    return ReferenceCache(folder, Processes(), 5, no_progress, said.append)


def test_features_and_statistics_are_computed_once(tmp_path):
    said, extractor = [], Means()
    real = make_real("val", "somewhere", images())
    first = cache(tmp_path, said).stats(real, extractor)
    assert extractor.seen == 12 and not said
    elsewhere = make_real("train", "elsewhere", images())  # the same pixels at another place
    again = cache(tmp_path, said)
    rows = again.features(elsewhere, extractor).rows()
    assert extractor.seen == 12 and "reused" in said[0]
    second = again.stats(elsewhere, extractor)
    assert second.count == 12 and (second.mean == first.mean).all() and (second.cov == first.cov).all()
    assert (feature_stats(rows).cov == first.cov).all()


def other_pixels(real, extractor):
    pixels = real.array.images.copy()
    pixels[3, 0, 0, 0] ^= 1
    return make_real("val", "somewhere", replace(real.array, images=pixels)), extractor


def fewer_rows(real, extractor):
    return make_real("val", "somewhere", real.array, np.arange(6)), extractor


def other_weights(real, extractor):
    return real, replace(extractor, hash="1" * 12)


def other_resizing(real, extractor):
    return real, replace(extractor, resize="bicubic")


@pytest.mark.parametrize("change", [other_pixels, fewer_rows, other_weights, other_resizing], ids=lambda f: f.__name__)
def test_what_changes_features_is_another_entry(change, tmp_path):
    said, extractor = [], Means()
    real = make_real("val", "somewhere", images())
    cache(tmp_path, said).features(real, extractor)
    other, changed = change(real, extractor)
    changed.seen = 0
    cache(tmp_path, said).features(other, changed)
    assert changed.seen == other.count and not said


def test_damaged_statistics_are_computed_again(tmp_path):
    said, extractor = [], Means()
    real = make_real("val", "somewhere", images())
    first = cache(tmp_path, said).stats(real, extractor)
    path = next((tmp_path / "reference").glob("stats-*.safetensors"))
    path.write_bytes(path.read_bytes()[:-8])
    assert (cache(tmp_path, said).stats(real, extractor).cov == first.cov).all()
    assert "damaged" in said[0]


def test_equal_images_are_found_by_their_pixels():
    val, train = make_real("val", "v", images(6, seed=1)), make_real("train", "t", images(12))
    assert shared_images(val, train) == 0
    pixels = val.array.images.copy()
    pixels[:2] = train.array.images[[3, 7]]
    assert shared_images(make_real("val", "v", replace(val.array, images=pixels)), train) == 2


def test_sixteen_bits_are_shown_by_their_window():
    array = images(2)
    wide = replace(array, images=array.images.astype(np.uint16) * 2 + 100, window=(100, 610), bit_depth=16)
    assert torch.equal(make_real("val", "w", wide).all(), make_real("val", "v", array).all())
    assert array.window == FULL_8


def test_generated_and_real_images_are_paired_by_class():
    real = make_real("val", "v", images(12))
    made = np.array([0, 0, 0, 1, 1, 0, 1, 0])
    indices, rows = pairs_of(made, 8, real, 6)
    assert indices.tolist() == [0, 1, 2, 3, 4, 5] and len(set(rows.tolist())) == 6
    assert (made[indices] == real.labels[rows]).all()


def test_a_class_without_enough_real_images_gives_fewer_pairs():
    real = make_real("val", "v", images(4))
    made = np.array([0, 0, 0, 1])
    indices, rows = pairs_of(made, 4, real, 4)
    assert indices.tolist() == [0, 1, 3] and (made[indices] == real.labels[rows]).all()


def test_how_many_images_a_distance_needs():
    assert least_images(128) == 1280 and least_images(2048) == 2048 and least_images(4096) == 4096
    assert too_few("domain", 128, 1280, 5000) == ""
    assert "has 1,279 generated" in too_few("domain", 128, 1279, 5000)
    assert "has 2,000 real" in too_few("inception", 2048, 50_000, 2000)


# ---- ADM's files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_of_an_npz_in_any_order(save, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (600, 2, 2, 3), dtype=np.uint8)
    save(tmp_path / "images.npz", pixels, np.arange(600) % 3)
    source = NpzImages(tmp_path / "images.npz").with_classes(("a", "b", "c"))
    for numbers in (np.arange(8), np.array([599, 0, 3, 270])):
        assert (source.pick(numbers).numpy() == pixels[numbers].transpose(0, 3, 1, 2)).all()
    assert source.count == 600 and source.labels.tolist() == (np.arange(600) % 3).tolist()
    with pytest.raises(UserError, match="has the label 2"):
        source.with_classes(("a", "b"))


def test_images_and_statistics_of_an_npz_as_real_ones(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", arr_0=pixels, arr_1=np.arange(6) % 2)
    array = read_npz_array(tmp_path / "images.npz", 4, 3, ())
    assert (array.images == pixels.transpose(0, 3, 1, 2)).all() and array.class_names == ("0", "1")
    assert read_npz_stats(tmp_path / "images.npz") is None
    with pytest.raises(UserError, match="expected one size"):
        read_npz_array(tmp_path / "images.npz", 8, 3, ())
    stats = FeatureStats(10, np.zeros(3), np.eye(3))
    write_reference(tmp_path / "stats.npz", stats)
    assert read_npz_array(tmp_path / "stats.npz", 4, 3, ()) is None
    given = read_npz_stats(tmp_path / "stats.npz")
    assert given.count == 10 and (given.of("main").cov == np.eye(3)).all()
    with pytest.raises(UserError, match="mu_s"):
        given.of("spatial")
