"""Our metrics against torchmetrics and torch-fidelity.

On the same features: the Fréchet distance against torchmetrics (float64), KID, Inception Score, precision and recall
against torch-fidelity (float32 features; its draws and its shuffle are ours). The whole path, from PNG files to
figures, against torch-fidelity's own, with one weights file of made-up numbers in the published layout. The figures of
the published weights are not checked here.
"""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from tests import oracles
from tests.e2e.command import refused, run_here, succeeded
from tests.inception_weights import save_published_layout

from cdm.data.decode import decode
from cdm.evaluate.extractors import load_extractor
from cdm.evaluate.frechet import frechet_distance
from cdm.evaluate.inception_score import inception_score
from cdm.evaluate.kid import kid
from cdm.evaluate.prdc import prdc
from cdm.evaluate.results import load_report
from cdm.evaluate.stats import feature_stats

torch_fidelity = oracles.torch_fidelity()
torchmetrics = oracles.torchmetrics()


class Same(torch.nn.Module):
    """What torchmetrics takes for a feature extractor: features themselves."""

    def __init__(self, width):
        super().__init__()
        self.num_features = width

    def forward(self, x):
        return x


def oracle_distance(real, fake):
    from torchmetrics.image.fid import FrechetInceptionDistance

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        metric = FrechetInceptionDistance(feature=Same(real.shape[1])).set_dtype(torch.float64)
        metric.update(torch.from_numpy(real), real=True)
        metric.update(torch.from_numpy(fake), real=False)
        return float(metric.compute())


def sets(real_count, fake_count, width, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(width, width)) / np.sqrt(width)
    real = np.maximum(rng.normal(size=(real_count, width)) @ mix + 0.5, 0)
    fake = np.maximum(rng.normal(0.1, 1.1, size=(fake_count, width)) @ mix + 0.5, 0)
    return real, fake


@pytest.mark.parametrize("counts", [(2000, 1500), (300, 5000)])
def test_frechet_distance_at_full_rank(counts):
    real, fake = sets(*counts, 64)
    got = frechet_distance(feature_stats(real), feature_stats(fake))
    assert got == pytest.approx(oracle_distance(real, fake), rel=1e-9)


@pytest.mark.parametrize("counts", [(100, 90), (100, 1000), (1000, 40)])
def test_frechet_distance_of_fewer_images_than_features(counts):
    real, fake = sets(*counts, 192)
    got = frechet_distance(feature_stats(real), feature_stats(fake))
    assert got == pytest.approx(oracle_distance(real, fake), rel=1e-5)


def test_kid():
    from torch_fidelity.metric_kid import kid_features_to_metric

    real, fake = (x.astype(np.float32) for x in sets(1500, 1200, 64))
    options = {"kid_subsets": 10, "kid_subset_size": 400, "verbose": False}
    theirs = kid_features_to_metric(torch.from_numpy(real), torch.from_numpy(fake), **options)
    got = kid(real, fake, subsets=10, subset_size=400)
    assert got.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert got.value > 1e-3  # not a comparison of noise


def test_inception_score():
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = torch.from_numpy(np.random.default_rng(3).normal(0, 3, size=(1003, 50)).astype(np.float32))
    theirs = isc_features_to_metric(logits)["inception_score_mean"]
    assert theirs > 5
    assert inception_score(logits.softmax(dim=1).numpy()).value == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("neighbours", [3, 5])
def test_precision_and_recall(neighbours):
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, fake = (x.astype(np.float32) for x in sets(1500, 1200, 32))
    options = {"prc_neighborhood": neighbours, "verbose": False}
    theirs = prc_features_to_metric(torch.from_numpy(fake), torch.from_numpy(real), **options)
    got = prdc(real, fake, neighbours=neighbours)
    assert got.precision.value == pytest.approx(theirs["precision"], rel=1e-3)
    assert got.recall.value == pytest.approx(theirs["recall"], rel=1e-3)
    assert 0.1 < got.precision.value < 0.95


COUNT = 24
"""Images on each side: enough for ten parts of the Inception Score."""


def make_pictures(folder, seed, brightest, sizes=((48, 48), (64, 40))):
    """Smooth random pictures of several sizes, as PNG files."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(COUNT):
        coarse = rng.integers(0, brightest + 1, size=(4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(sizes[i % len(sizes)], Image.Resampling.BICUBIC).save(folder / f"{i:03d}.png")
    return folder


def our_features(folder, extractor):
    """Decode, resize, extract; one image at a time, since sizes differ."""
    parts = []
    for path in sorted(folder.iterdir()):
        pixels = torch.from_numpy(decode(path.read_bytes(), 3).copy()).permute(2, 0, 1)
        parts.append(extractor(pixels[None].contiguous()))
    return torch.cat([p.main for p in parts]).numpy(), torch.cat([p.probabilities for p in parts]).numpy()


def their_figures(fake, real, weights, **asked):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        return torch_fidelity.calculate_metrics(
            input1=str(fake), input2=str(real), feature_extractor="inception-v3-compat",
            feature_extractor_weights_path=str(weights), fid=True, batch_size=1, cuda=False, cache=False,
            save_cpu_ram=True, verbose=False, **asked,
        )  # fmt: skip


def test_inception_from_files_to_figures(tmp_path):
    weights = save_published_layout(tmp_path / "weights.pth")
    real, fake = make_pictures(tmp_path / "real", 0, 255), make_pictures(tmp_path / "fake", 1, 180)
    theirs = their_figures(fake, real, weights, isc=True, kid=True, prc=True, kid_subsets=20, kid_subset_size=12)
    extractor = load_extractor("inception", weights=weights, device=torch.device("cpu"), unverified=True)
    (real_main, _), (fake_main, probabilities) = (our_features(folder, extractor) for folder in (real, fake))
    distance = frechet_distance(feature_stats(real_main), feature_stats(fake_main))
    assert distance == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    # they put generated images first, so their draws of subsets are ours with the sides swapped
    got = kid(fake_main, real_main, subsets=20, subset_size=12)
    assert got.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert inception_score(probabilities).value == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    assert got.value > 1e-3 and theirs["inception_score_mean"] > 1.005  # not a comparison of noise or of constants
    found = prdc(real_main, fake_main)
    assert found.precision.value == pytest.approx(theirs["precision"], rel=1e-3)
    assert found.recall.value == pytest.approx(theirs["recall"], rel=1e-3)


def test_the_command_gives_their_distance(tmp_path, monkeypatch):
    """`cdm evaluate` from two folders to its report, on weights that only --unverified-weights lets in."""
    monkeypatch.setenv("CDM_CACHE", str(tmp_path / "cache"))
    weights = save_published_layout(tmp_path / "weights.pth")
    real, fake = (
        make_pictures(tmp_path / name, k, 255 - 75 * k, [(48, 48)]) for k, name in enumerate(("real", "fake"))
    )
    command = ("evaluate", fake, "--data", real, "--out", tmp_path / "out", "--force", "--metrics", "fd",
               "--extractors", "inception", "--extractor-weights", f"inception={weights}")  # fmt: skip
    refused(run_here(*command), "not known to be the published ones", "--unverified-weights")
    succeeded(run_here(*command, "--unverified-weights"), "FID", "! ?", "?: by weights that are not the published ones")
    (found,) = [figure for figure in load_report(tmp_path / "out").computed if figure.metric == "fd"]
    theirs = their_figures(fake, real, weights)["frechet_inception_distance"]
    assert found.value == pytest.approx(theirs, rel=1e-4) and theirs > 1
    assert not found.verified and (found.generated, found.real) == (COUNT, COUNT)
