"""The held-out share: by name alone, about the asked size, and never all of a class."""

import hashlib
import os

import numpy as np

from cdm.data.split import split_rows

NAMES = [f"{'ab'[i % 2]}/{i}.png" for i in range(4000)]
LABELS = np.arange(4000) % 2


def test_parts_are_disjoint_sorted_and_whole():
    train, val = split_rows(NAMES, LABELS)
    assert sorted([*train, *val]) == list(range(4000))
    assert (np.diff(train) > 0).all() and (np.diff(val) > 0).all()


def test_about_the_asked_share():
    _, val = split_rows(NAMES, LABELS, 0.05)
    assert abs(len(val) - 200) < 5 * np.sqrt(4000 * 0.05 * 0.95)
    assert len(split_rows(NAMES, LABELS, 0.0)[1]) == 0


def test_an_image_stays_on_its_side_when_others_come_and_go():
    held_out = {NAMES[i] for i in split_rows(NAMES, LABELS)[1]}
    some = NAMES[1000:3000][::-1]
    assert {some[i] for i in split_rows(some, None)[1]} == held_out & set(some)


def test_larger_share_contains_the_smaller():
    assert set(split_rows(NAMES, LABELS, 0.1)[1]) > set(split_rows(NAMES, LABELS, 0.05)[1])


def test_no_class_and_no_training_set_is_emptied():
    train, val = split_rows(NAMES[:6], LABELS[:6], 1.0)
    assert set(LABELS[train]) == {0, 1}
    assert (len(train), len(val)) == (2, 4)
    train, val = split_rows(NAMES[:6], None, 1.0)
    assert (len(train), len(val)) == (1, 5)


def test_one_image_is_trained_on():
    train, val = split_rows(["one.png"], None, 1.0)
    assert (train.tolist(), val.tolist()) == ([0], [])


def test_names_that_are_no_utf8_have_a_place_too():
    """It is that of their bytes; other names stay where they were."""
    odd = os.fsdecode(b"a/caf\xe9.png")
    share = int.from_bytes(hashlib.sha256(b"a/caf\xe9.png").digest()[:6], "big") / 2**48
    assert split_rows([odd, *NAMES], None, share + 1e-9)[1][0] == 0
    assert 0 not in split_rows([odd, *NAMES], None, share - 1e-9)[1]
