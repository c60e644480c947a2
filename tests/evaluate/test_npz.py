"""ADM's sample batches and reference statistics: NumPy reads what we write, we read what it writes, or say why not."""

import zipfile

import numpy as np
import pytest
import torch

from cdm.errors import CorruptError, UserError
from cdm.evaluate.npz import is_reference, open_images, read_reference, write_images, write_reference
from cdm.evaluate.stats import feature_stats

IMAGES = np.random.default_rng(0).integers(0, 256, size=(23, 6, 5, 3), dtype=np.uint8)  # [N, H, W, C]
LABELS = np.arange(23) % 4
TENSORS = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)


def read_all(path, size=7):
    return torch.cat(list(open_images(path).blocks(size)))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_that_numpy_wrote(tmp_path, save):
    path = tmp_path / "samples.npz"
    save(path, IMAGES, LABELS.astype(np.int32))
    batch = open_images(path)
    assert (batch.count, batch.shape) == (23, (3, 6, 5))
    assert np.array_equal(batch.labels, LABELS) and batch.labels.dtype == np.int64
    assert torch.equal(read_all(path), TENSORS)
    assert not is_reference(path)


def test_numpy_reads_images_that_we_wrote(tmp_path):
    path = tmp_path / "samples.npz"
    write_images(path, TENSORS.split(4), 23, (3, 6, 5), LABELS)
    with np.load(path, allow_pickle=False) as file:
        assert sorted(file) == ["arr_0", "arr_1"]
        assert np.array_equal(file["arr_0"], IMAGES) and np.array_equal(file["arr_1"], LABELS)
    assert torch.equal(read_all(path), TENSORS)


@pytest.mark.filterwarnings("error")
def test_grey_images_are_tensors_of_their_own(tmp_path):
    """One channel first or last is the same memory, which in a file's bytes is read-only."""
    np.savez(tmp_path / "x.npz", IMAGES[..., :1])
    images = read_all(tmp_path / "x.npz")
    assert torch.equal(images, TENSORS[:, :1])


def test_images_without_labels(tmp_path):
    write_images(tmp_path / "x.npz", [TENSORS], 23, (3, 6, 5))
    assert open_images(tmp_path / "x.npz").labels is None


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def blocks():
        yield TENSORS[:5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_images(tmp_path / "x.npz", blocks(), 23, (3, 6, 5))
    assert list(tmp_path.iterdir()) == []


def test_reference_both_ways(tmp_path):
    rng = np.random.default_rng(1)
    main, spatial = (feature_stats(rng.normal(size=(50, d))) for d in (6, 4))
    write_reference(tmp_path / "ours.npz", main, spatial)
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as file:
        assert {"mu", "sigma", "mu_s", "sigma_s"} <= set(file)
        assert np.array_equal(file["sigma"], main.cov) and np.array_equal(file["mu_s"], spatial.mean)
        np.savez(tmp_path / "theirs.npz", **{key: file[key].astype(np.float32) for key in ("mu", "sigma")})
    assert is_reference(tmp_path / "ours.npz")
    got = read_reference(tmp_path / "ours.npz")
    assert got.main.count == got.spatial.count == 50
    assert np.array_equal(got.main.cov, main.cov) and np.array_equal(got.spatial.mean, spatial.mean)
    theirs = read_reference(tmp_path / "theirs.npz")
    assert theirs.spatial is None and theirs.main.count == 0  # such files do not tell it
    np.testing.assert_allclose(theirs.main.cov, main.cov, rtol=1e-6, atol=1e-7)


def test_a_reference_with_its_images_tells_their_count(tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=IMAGES, mu=np.zeros(3), sigma=np.eye(3))
    assert read_reference(tmp_path / "x.npz").main.count == 23


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


BAD_IMAGES = {
    "wrong keys": ({"images": IMAGES}, "has the arrays images; expected arr_0"),
    "reference": ({"mu": np.zeros(3), "sigma": np.eye(3)}, "has the arrays mu, sigma; expected arr_0"),
    "floats": ({"arr_0": IMAGES / 255}, "holds float64; expected uint8"),
    "NaN": ({"arr_0": np.where(IMAGES > 200, np.nan, IMAGES)}, "holds float64 with NaN; expected uint8"),
    "uint16": ({"arr_0": IMAGES.astype(np.uint16)}, "holds uint16; expected uint8"),
    "objects": ({"arr_0": np.array([Bomb()], dtype=object)}, "holds Python objects"),
    "object labels": ({"arr_0": IMAGES, "arr_1": np.array([Bomb()] * 23, dtype=object)}, "holds Python objects"),
    "channels first": ({"arr_0": IMAGES.transpose(0, 3, 1, 2).copy()}, r"the shape \[23, 3, 6, 5\]; expected"),
    "one image": ({"arr_0": IMAGES[0]}, r"the shape \[6, 5, 3\]; expected"),
    "none": ({"arr_0": IMAGES[:0]}, r"the shape \[0, 6, 5, 3\]; expected"),
    "few labels": ({"arr_0": IMAGES, "arr_1": LABELS[:5]}, r"int64 \[5\]; expected integers \[23\]"),
    "float labels": ({"arr_0": IMAGES, "arr_1": LABELS / 2}, r"float64 \[23\]; expected integers \[23\]"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images_are_one_sentence(tmp_path, name):
    arrays, message = BAD_IMAGES[name]
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=message):
        open_images(tmp_path / "x.npz")


GOOD = {"mu": np.zeros(3), "sigma": np.eye(3)}
BAD_REFERENCES = {
    "no sigma": ({"mu": np.zeros(3)}, "has the arrays mu; expected mu and sigma"),
    "shapes": ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"\[3\] and \[4, 4\]; expected"),
    "NaN": ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "mu of .* holds NaN"),
    "integers": ({"mu": np.zeros(3, int), "sigma": np.eye(3)}, "mu of .* holds int64"),
    "no features": ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, r"\[0\] and \[0, 0\]; expected .* D at least 1"),
    "infinite count": (GOOD | {"count": np.array([np.inf])}, r"count of .* is float64 \[inf\]; expected one whole"),
    "count in letters": (GOOD | {"count": np.array(["a"])}, r"count of .* is <U1 \['a'\]; expected one whole"),
    "empty count": (GOOD | {"count": np.zeros(0, int)}, r"count of .* is int64 \[\]; expected one whole"),
    "negative count": (GOOD | {"count": np.array(-1)}, r"count of .* is int64 -1; expected one whole"),
    "skewed": ({"mu": np.zeros(2), "sigma": np.array([[1.0, 1], [0, 1]])}, "is not a covariance"),
    "objects": ({"mu": np.array([Bomb()]), "sigma": np.eye(3)}, "holds Python objects"),
}


@pytest.mark.parametrize("name", BAD_REFERENCES)
def test_bad_references_are_one_sentence(tmp_path, name):
    arrays, message = BAD_REFERENCES[name]
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=message):
        read_reference(tmp_path / "x.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_files_are_one_sentence(tmp_path, save):
    path = tmp_path / "x.npz"
    save(path, IMAGES)
    whole = path.read_bytes()
    for content in (b"", b"not a zip", whole[: len(whole) // 2], whole[:300] + bytes(64) + whole[364:]):
        path.write_bytes(content)
        with pytest.raises(CorruptError, match="damaged or not an"):
            read_all(path)
    with pytest.raises(UserError, match="No such file"):
        open_images(tmp_path / "none.npz")


def test_a_member_that_is_no_array_is_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("arr_0.npy", b"hello, this is no array at all")
    with pytest.raises(CorruptError, match="no NumPy array"):
        open_images(tmp_path / "x.npz")
