"""Images to be judged: which ones, in what blocks, by whom, and after a kill."""

import numpy as np
import pytest
import torch
from tests.fakes import random_cascade, stage_config

from cdm.cascade import image_seed
from cdm.data.pixels import FULL_8
from cdm.errors import CorruptError, UserError
from cdm.pipeline.generate import ImageStore, OracleImages, RunImages, carry_up, fill, no_progress
from cdm.pipeline.image_source import class_shares, labels_in_turn
from cdm.pipeline.processes import Processes


class Numbers:
    """A source whose image i is i in every pixel, and which counts how often each is made."""

    what, key, class_names, labels = "numbers", "n", (), None
    shape = (1, 2, 2)

    def __init__(self, count):
        self.count, self.made, self.blocks = count, np.zeros(count, int), []

    def stages(self, start, stop):
        self.made[start:stop] += 1
        self.blocks.append((start, stop))
        return (torch.arange(start, stop, dtype=torch.uint8)[:, None, None, None].expand(-1, *self.shape).clone(),)


def test_classes_come_in_turn():
    assert labels_in_turn(class_shares(None, 3), 7).tolist() == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("count", [1, 10, 37, 200])
def test_classes_come_as_often_as_in_the_data(count):
    """Never further than one image from its share, and a shorter row is the beginning of a longer one."""
    shares = class_shares(np.array([0] * 70 + [1] * 25 + [2] * 5), 4)
    labels = labels_in_turn(shares, count)
    given = np.bincount(labels, minlength=4)
    assert np.abs(given - np.array(shares) * count).max() <= 1 and given[3] == 0
    assert (labels_in_turn(shares, 250)[:count] == labels).all()


def test_every_image_is_made_once_and_a_second_pass_makes_none(tmp_path):
    source, store = Numbers(21), ImageStore(tmp_path, "k", 21, (1, 2, 2))
    assert fill(source, [store], Processes(), 8, no_progress) == 21
    assert fill(source, [store], Processes(), 8, no_progress) == 0
    assert (source.made == 1).all()
    assert (store.images()[:, 0, 0, 0] == np.arange(21)).all()


def test_after_a_kill_only_what_is_missing_is_made(tmp_path):
    """And in the same blocks: another batch would round otherwise."""

    class Dies(Numbers):
        def stages(self, start, stop):
            if start == 16:
                raise KeyboardInterrupt
            return super().stages(start, stop)

    with pytest.raises(KeyboardInterrupt):
        fill(Dies(30), [ImageStore(tmp_path, "k", 30, (1, 2, 2))], Processes(), 8, no_progress)
    source, said = Numbers(30), []
    store = ImageStore(tmp_path, "k", 30, (1, 2, 2))
    fill(source, [store], Processes(), 8, no_progress, said.append)
    assert source.blocks == [(16, 24), (24, 30)]
    assert "16 of 30 images are done" in said[0]
    assert (store.images()[:, 0, 0, 0] == np.arange(30)).all()


def test_a_store_of_the_first_images_takes_no_more(tmp_path):
    source, first, all_of_them = (
        Numbers(20),
        ImageStore(tmp_path, "a", 5, (1, 2, 2)),
        ImageStore(tmp_path, "b", 20, (1, 2, 2)),
    )
    fill(source, [first, all_of_them], Processes(), 8, no_progress)
    assert (source.made == 1).all()
    assert len(first.images()) == 5 and len(all_of_them.images()) == 20


def test_a_first_pass_over_some_images_is_no_going_on(tmp_path):
    """Nothing is done where fewer images are wanted than there are; a second sink's are counted once."""
    said, stores = [], [ImageStore(tmp_path, key, count, (1, 2, 2)) for key, count in (("a", 12), ("b", 5))]
    fill(Numbers(30), stores, Processes(), 8, no_progress, said.append)
    assert not said
    more = ImageStore(tmp_path, "a", 20, (1, 2, 2))
    fill(Numbers(30), [more, stores[1]], Processes(), 8, no_progress, said.append)
    assert said == ["going on: 12 of 20 images are done already"]


@pytest.mark.parametrize(("wanted", "total"), [(21, 21), (18, 21), (9, 16)])
def test_progress_counts_the_images_that_are_made(wanted, total, tmp_path):
    told = []
    made = fill(Numbers(21), [ImageStore(tmp_path, "k", wanted, (1, 2, 2))], Processes(), 8, lambda *t: told.append(t))
    assert made == total and {end for _, _, end in told} == {total}


def test_processes_share_the_blocks(monkeypatch, tmp_path):
    """Together they make every image once, and nobody makes another's."""
    monkeypatch.setattr(Processes, "wait", lambda self: None)
    sources = [Numbers(50) for _ in range(3)]
    looked = np.arange(50)  # all of them look before any of them writes
    for rank, source in enumerate(sources):
        store = ImageStore(tmp_path, "k", 50, (1, 2, 2))
        monkeypatch.setattr(store, "missing", lambda: looked)
        fill(source, [store], Processes(rank, 3), 8, no_progress)
    assert (sum(source.made for source in sources) == 1).all()
    assert (ImageStore(tmp_path, "k", 50, (1, 2, 2)).images()[:, 0, 1, 1] == np.arange(50)).all()


def cascade_of_two():
    return random_cascade(stage_config(8, num_labels=2), stage_config(16, 8, num_labels=2), classes=("a", "b"))


def run_images(cascade, count=6, **options):
    labels = np.arange(count) % 2
    return RunImages(cascade, cascade.settings(steps=[2, 2], **options), 5, labels, count, "run")


def test_an_image_of_a_run_depends_on_its_number_alone():
    cascade = cascade_of_two()
    source = run_images(cascade)
    whole = source.stages(0, 6)[-1]
    sampled = cascade.sample([0], [image_seed(5, 4)], settings=source.settings).images[-1]
    assert (source.stages(4, 5)[-1].int() - whole[4:5].int()).abs().max() <= 1
    assert (((sampled + 1) * 127.5).round().int() - whole[4:5].int()).abs().max() <= 1


def test_the_key_names_weights_settings_and_seed():
    cascade = cascade_of_two()
    sources = [run_images(cascade), run_images(cascade, sampler="ddim"), run_images(cascade, aug_level=0.1)]
    assert len({source.key for source in sources}) == 3
    assert run_images(cascade, count=4).key == run_images(cascade, count=4).key


def test_real_images_put_in_after_the_base_are_what_sample_makes_of_them():
    cascade = cascade_of_two()
    low = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), dtype=np.uint8)
    source = OracleImages(cascade, cascade.settings(steps=[2, 2]), 5, 0, low, FULL_8, np.array([0, 1, 0]), "data")
    x = torch.from_numpy(low).float() / 127.5 - 1
    seeds = [image_seed(5, i) for i in range(3)]
    wanted = cascade.sample([0, 1, 0], seeds, settings=source.settings, low_res=x).images[-1]
    made = carry_up(cascade, 0, x, torch.tensor([0, 1, 0]), torch.tensor(seeds), source.settings)
    assert len(made) == 1 and torch.equal(made[0], wanted)
    assert torch.equal(source.stages(0, 3)[0], ((wanted + 1) * 127.5).round().to(torch.uint8))


def test_pixels_that_are_no_numbers_are_refused():
    """Weights that have diverged; no image can hold a NaN."""
    cascade = cascade_of_two()
    with torch.no_grad():
        next(iter(cascade.stages[1].net.parameters())).fill_(torch.nan)
    with pytest.raises(UserError, match="no numbers"):
        run_images(cascade).stages(0, 2)


def test_a_store_of_a_lower_stage_takes_its_images(tmp_path):
    """The base's images of the same pass, for the diagnosis."""
    source = run_images(cascade_of_two())
    low, high = ImageStore(tmp_path, "low", 4, (1, 8, 8), 0), ImageStore(tmp_path, "high", 6, (1, 16, 16))
    fill(source, [low, high], Processes(), 6, no_progress)
    stages = source.stages(0, 6)
    assert (torch.from_numpy(low.images()) == stages[0][:4]).all()
    assert (torch.from_numpy(high.images()) == stages[1]).all()


def test_images_that_were_changed_are_told(tmp_path):
    store = ImageStore(tmp_path, "k", 20, (1, 2, 2))
    fill(Numbers(20), [store], Processes(), 8, no_progress)
    assert len(ImageStore(tmp_path, "k", 20, (1, 2, 2)).missing()) == 0
    pixels = tmp_path / "images-k.u8"
    whole = pixels.read_bytes()
    for content, bad in ((whole[:10], 18), (b"", 20), (bytes([*whole[:20], 77, *whole[21:]]), 1)):
        pixels.write_bytes(content)
        with pytest.raises(CorruptError, match=rf"^{bad} of the images in .*images-k.u8 are not what was written"):
            ImageStore(tmp_path, "k", 20, (1, 2, 2))
    (tmp_path / "images-k.marks").unlink()
    store = ImageStore(tmp_path, "k", 20, (1, 2, 2))
    fill(Numbers(20), [store], Processes(), 8, no_progress)
    assert (store.images()[:, 0, 0, 0] == np.arange(20)).all()
