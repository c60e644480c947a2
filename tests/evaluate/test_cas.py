"""The classification accuracy score: equal arms, chance, the schedule, what is kept, the error of seeds and images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.evaluate.toy import bars

from cdm.evaluate import cas as module
from cdm.evaluate import cas_net
from cdm.evaluate.cas import CasResult, Labelled, NotApplicable, cas, find_schedule, seeds_and_images
from cdm.evaluate.cas_net import choose_net, train_ranks

NAMES = ("flat", "upright", "down", "up")
CPU = torch.device("cpu")


def toy_score(folder: Path, told: list[tuple[str, float]]) -> CasResult | NotApplicable:
    return cas(
        labelled(256, seed=1),
        labelled(300, seed=0),
        labelled(200, seed=2),
        class_names=NAMES,
        folder=folder,
        steps=40,
        told=lambda what, done: told.append((what, done)),
    )


def labelled(n: int, seed: int, noise: float = 15.0) -> Labelled:
    return Labelled(*bars(n, seed, noise=noise))


def test_the_ceiling_is_of_the_same_seeds_as_the_real_arm(tmp_path, monkeypatch):
    """One lucky seed with twice the steps would make the others look untrained."""
    right = {(0, 10): 120, (1, 10): 110, (2, 10): 100, (0, 20): 126, (1, 20): 106, (2, 20): 104}

    def fake(net, images, labels, val_images, val_labels, *, seed, steps, progress):
        return (np.arange(len(val_labels)) >= right[seed, steps]).astype(np.int64)

    monkeypatch.setattr(module, "train_ranks", fake)
    data = [labelled(64, seed=1), labelled(64, seed=0), labelled(200, seed=2)]
    score = cas(*data, class_names=NAMES, steps=10)
    assert isinstance(score, CasResult) and score.converged
    assert score.real.top1.value == pytest.approx(0.55) and score.ceiling == pytest.approx(0.56)


def test_as_good_as_real_images_and_the_schedule_reaches_its_ceiling(tmp_path):
    told: list[tuple[str, float]] = []
    score = toy_score(tmp_path, told)
    assert isinstance(score, CasResult)
    assert score.converged and score.ceiling - score.real.top1.value <= 0.02
    assert score.real.top1.value > 0.9
    assert score.difference.low <= 0 <= score.difference.high  # type: ignore[operator]
    assert score.images == 256 and score.top == 4 and score.generated.top5.value == 1.0
    assert len(score.per_class) == 4 and sum(each.images for each in score.per_class) == 200
    assert not score.beats
    assert "names" in score.sentence and "points more" not in score.sentence
    assert {what.split(",")[0] for what, _ in told} == {
        "small ResNet on 256 real images",
        "small ResNet on 256 generated images",
    }
    # 3 seeds of either arm and the ceiling (and what doubling brought), kept
    assert len(list(tmp_path.glob("cas-generated-*.json"))) == 3
    told.clear()
    again = toy_score(tmp_path, told)
    assert again == score and not told


def test_wrong_labels_give_chance():
    images, labels = bars(256, seed=1, noise=15)
    shuffled = labels[torch.randperm(256, generator=torch.Generator().manual_seed(0))]
    score = cas(
        Labelled(images, shuffled),
        labelled(256, seed=0),
        labelled(200, seed=2),
        class_names=NAMES,
        seeds=(0,),
        steps=40,
    )
    assert isinstance(score, CasResult)
    assert 0.1 < score.generated.top1.value < 0.4 and score.difference.high < -0.3  # type: ignore[operator]


def test_an_interrupted_score_goes_on_where_it_stopped(tmp_path, monkeypatch):
    trained: list[tuple[int, int]] = []

    def fake(net, images, labels, val_images, val_labels, *, seed, steps, progress):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append((seed, steps))
        return np.zeros(len(val_labels), dtype=np.int64)

    monkeypatch.setattr(module, "train_ranks", fake)
    data = [labelled(64, seed=1), labelled(64, seed=0), labelled(64, seed=2)]
    with pytest.raises(KeyboardInterrupt):
        cas(*data, class_names=NAMES, folder=tmp_path, steps=7)
    first, trained[:] = list(trained), []
    with pytest.raises(KeyboardInterrupt):
        cas(*data, class_names=NAMES, folder=tmp_path, steps=7)
    second, trained[:] = list(trained), []
    cas(*data, class_names=NAMES, folder=tmp_path, steps=7)
    both_arms, ceiling = [(seed, 7) for seed in (0, 1, 2)] * 2, [(seed, 14) for seed in (0, 1, 2)]
    assert sorted(first + second + trained) == sorted(both_arms + ceiling)
    trained.clear()  # other images: nothing kept of the arm that they are in
    cas(labelled(64, seed=5), *data[1:], class_names=NAMES, folder=tmp_path, steps=7)
    assert trained == [(0, 7), (1, 7), (2, 7)]


@pytest.mark.parametrize(
    ("generated", "names", "reason"),
    [
        (labelled(64, seed=0), (), "needs classes; got 0"),
        (
            Labelled(bars(64, 0)[0], torch.zeros(64, dtype=torch.int64)),
            NAMES,
            "3 of 4 classes have no generated images",
        ),
        (Labelled(bars(64, 0, channels=3)[0], bars(64, 0)[1]), NAMES, "different numbers of channels: 3, 1, 1"),
    ],
)
def test_not_applicable(generated, names, reason):
    found = cas(generated, labelled(64, seed=1), labelled(64, seed=2), class_names=names)
    assert isinstance(found, NotApplicable) and reason in found.reason


def test_schedule_is_doubled_until_doubling_gains_little():
    curve = {10: 0.5, 20: 0.7, 40: 0.8, 80: 0.815, 160: 0.9}
    assert find_schedule(curve.__getitem__, 10) == (40, 0.815)
    asked: list[int] = []
    assert find_schedule(lambda steps: asked.append(steps) or steps / 1000, 100) == (3200, 6.4)  # gives up
    assert asked == [100, 200, 400, 800, 1600, 3200, 6400]


def test_interval_holds_the_truth_as_often_as_it_says():
    """Seeds of accuracy 0.8 +- 0.02 on validation images that are hard by half: 95 % of 400 draws, within 4 sd."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        easy = rng.normal(0.8, 0.02, (3, 1)) + rng.choice([-0.1, 0.1], (1, 300))
        hits = (rng.random((3, 300)) < easy).astype(float)
        estimate = seeds_and_images(hits)
        held += estimate.low <= 0.8 <= estimate.high  # type: ignore[operator]
    assert held >= 400 * (0.95 - 4 * np.sqrt(0.95 * 0.05 / 400))
    assert "3 seeds and 300 validation images" in estimate.method


def test_interval_is_never_empty():
    for seeds in (1, 3):
        sure = seeds_and_images(np.ones((seeds, 30)))
        assert sure.value == sure.high == 1 and 0.8 < sure.low < 1  # type: ignore[operator]
    same = seeds_and_images(np.zeros((3, 30)), lowest=-1.0)
    assert same.low < 0 < same.high  # type: ignore[operator]


def test_net_by_size_and_device(monkeypatch):
    monkeypatch.setattr(cas_net, "find_spec", lambda name: name == "transformers")
    assert choose_net("auto", (64, 64), 3, 10, CPU).name == "small ResNet"
    slow = choose_net("auto", (256, 256), 3, 10, CPU)
    assert (slow.name, slow.side) == ("small ResNet", 64) and "too long on a CPU" in slow.why
    large = choose_net("auto", (256, 256), 3, 10, torch.device("cuda"))
    assert (large.name, large.side) == ("ResNet-50", 224)
    assert choose_net("resnet50", (96, 96), 3, 10, CPU).side == 96
    monkeypatch.setattr(cas_net, "find_spec", lambda name: None)
    lacking = choose_net("auto", (256, 256), 3, 10, torch.device("cuda"))
    assert (lacking.name, lacking.side) == ("small ResNet", 64) and "needs transformers" in lacking.why


def test_resnet50_reads_any_number_of_channels():
    pytest.importorskip("transformers")
    net = choose_net("resnet50", (32, 32), 2, 3, CPU)
    with torch.no_grad():
        assert net.build().eval()(torch.zeros(2, 2, 32, 32)).shape == (2, 3)


def test_resnet50_learns():
    """The large network by its own recipe: chance is a quarter."""
    pytest.importorskip("transformers")
    sets = [bars(count, seed, noise=5.0) for count, seed in ((64, 0), (100, 2))]
    (images, labels), (val, val_labels) = (
        (x.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3), y) for x, y in sets
    )
    net = choose_net("resnet50", (48, 48), 1, 4, CPU)
    ranks = train_ranks(net, images, labels, val, val_labels, seed=0, steps=60)
    assert (ranks == 0).mean() > 0.7


def test_classes_have_top5_and_the_recipe_has_a_name(monkeypatch):
    """Rank 3 everywhere: never right, always among the first four."""
    monkeypatch.setattr(module, "train_ranks", lambda *given, **how: np.full(len(given[4]), 3))
    found = cas(labelled(64, seed=1), labelled(64, seed=0), labelled(64, seed=2), class_names=NAMES, steps=7)
    assert not isinstance(found, NotApplicable)
    for score in found.per_class:
        assert score.generated.value == score.real.value == 0  # type: ignore[union-attr]
        assert score.generated_top5.value == score.real_top5.value == 1  # type: ignore[union-attr]
    other = cas(labelled(64, seed=1), labelled(64, seed=0), labelled(64, seed=2), class_names=[*NAMES], steps=9)
    assert not isinstance(other, NotApplicable) and other.recipe == found.recipe and len(found.recipe) == 12
