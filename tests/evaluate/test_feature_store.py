"""Features on the disk: any order, any batches, any processes, any kill."""

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from cdm.errors import CorruptError
from cdm.evaluate import checked_rows
from cdm.evaluate.extractors.base import Features
from cdm.evaluate.feature_store import FeatureStore
from cdm.evaluate.stats import feature_stats

COUNT, WIDTHS = 3000, {"main": 5, "probabilities": 3}
MAIN = np.random.default_rng(0).normal(size=(COUNT, 5)).astype(np.float32)
PROBABILITIES = np.random.default_rng(1).random(size=(COUNT, 3)).astype(np.float32)


def features(indices):
    return Features(torch.from_numpy(MAIN[indices]), probabilities=torch.from_numpy(PROBABILITIES[indices]))


def fill(store, indices, batch):
    for start in range(0, len(indices), batch):
        part = indices[start : start + batch]
        store.write(part, features(part))


def test_statistics_are_the_same_bits_for_any_split(tmp_path):
    want = feature_stats(MAIN)
    order = np.random.default_rng(2).permutation(COUNT)
    for name, indices, batch in (
        ("one go", np.arange(COUNT), COUNT),
        ("batches", np.arange(COUNT), 77),
        ("two ranks", np.concatenate([np.arange(0, COUNT, 2), np.arange(1, COUNT, 2)]), 250),
        ("shuffled", order, 500),
    ):
        store = FeatureStore.open(tmp_path, name, COUNT, WIDTHS)
        fill(store, indices, batch)
        assert np.array_equal(store.rows("probabilities"), PROBABILITIES), name
        got = feature_stats(store.rows())
        assert np.array_equal(got.mean, want.mean) and np.array_equal(got.cov, want.cov), name


def test_what_is_there_is_not_asked_for_again(tmp_path):
    store = FeatureStore.open(tmp_path, "key", COUNT, WIDTHS)
    assert np.array_equal(store.missing(), np.arange(COUNT))
    fill(store, np.arange(100, 300), 64)
    again = FeatureStore.open(tmp_path, "key", COUNT, WIDTHS)
    assert np.array_equal(again.missing(), np.r_[0:100, 300:COUNT])
    fill(again, again.missing(), 1000)
    assert np.array_equal(again.rows(), MAIN)


def test_other_keys_counts_and_widths_are_other_stores(tmp_path):
    store = FeatureStore.open(tmp_path, "key", COUNT, WIDTHS)
    fill(store, np.arange(COUNT), COUNT)
    for key, count, widths in (("other", COUNT, WIDTHS), ("key", COUNT - 1, WIDTHS), ("key", COUNT, {"main": 5})):
        assert len(FeatureStore.open(tmp_path, key, count, widths).missing()) == count


def test_rows_are_on_the_disk_before_they_are_marked(tmp_path, monkeypatch):
    """A kill between any two writes: whatever is marked is right. The kill is an exception after the n-th flush."""
    flush, left = os.fsync, [0]

    def fsync(fd):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        flush(fd)

    for allowed in range(4):
        store = FeatureStore.open(tmp_path, f"{allowed}", COUNT, WIDTHS)
        left[0] = allowed
        with monkeypatch.context() as patch:
            patch.setattr(checked_rows.os, "fsync", fsync)
            if allowed < 3:  # main, probabilities, marks
                with pytest.raises(KeyboardInterrupt):
                    fill(store, np.arange(50), 50)
            else:
                fill(store, np.arange(50), 50)
        done = np.setdiff1d(np.arange(COUNT), store.missing())
        assert len(done) == (50 if allowed >= 2 else 0)
        stored = np.fromfile(store.path / "main.f32", np.float32).reshape(COUNT, 5)
        assert np.array_equal(stored[done], MAIN[done])


WRITER = """
    import sys
    import numpy as np
    import torch
    from pathlib import Path
    from cdm.evaluate.extractors.base import Features
    from cdm.evaluate.feature_store import FeatureStore

    rank, folder, rows = int(sys.argv[1]), Path(sys.argv[2]), np.load(sys.argv[3])
    store = FeatureStore.open(folder, "key", len(rows), {"main": rows.shape[1]})
    print("ready", flush=True)
    for i in range(rank, len(rows), 2):
        store.write(np.array([i]), Features(torch.from_numpy(rows[i : i + 1])))
        if i // 2 == 20:
            print("some", flush=True)
"""


def start(tmp_path, rank):
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(WRITER),
        str(rank),
        str(tmp_path / "store"),
        str(tmp_path / "x.npy"),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_and_a_kill(tmp_path):
    """Two processes open the same new store at once; both are killed while they write; what they marked is right, and
    the rest can be written by one."""
    np.save(tmp_path / "x.npy", MAIN)
    writers = [start(tmp_path, rank) for rank in range(2)]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
        assert writer.stdout.readline() == "some\n"
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    store = FeatureStore.open(tmp_path / "store", "key", COUNT, {"main": 5})
    missing = store.missing()
    assert 0 < len(missing) <= COUNT - 40
    done = np.setdiff1d(np.arange(COUNT), missing)
    assert np.array_equal(np.fromfile(store.path / "main.f32", np.float32).reshape(COUNT, 5)[done], MAIN[done])
    store.write(missing, Features(torch.from_numpy(MAIN[missing])))
    assert np.array_equal(store.rows(), MAIN)


def test_a_cut_file_is_told(tmp_path):
    store = FeatureStore.open(tmp_path, "key", COUNT, WIDTHS)
    os.truncate(store.path / "main.f32", 1000)
    with pytest.raises(CorruptError, match=r"main\.f32 has 1000 bytes and should have 60000"):
        FeatureStore.open(tmp_path, "key", COUNT, WIDTHS)


def test_rows_that_were_changed_are_told(tmp_path):
    """One byte of every row, so chance finds 254 of 255; and the mark of a row that was never written."""
    store = FeatureStore.open(tmp_path, "key", COUNT, WIDTHS)
    fill(store, np.arange(0, COUNT, 2), 500)
    assert len(FeatureStore.open(tmp_path, "key", COUNT, WIDTHS).missing()) == COUNT // 2
    for name, width in (("main", 20), ("probabilities", 12)):
        path = store.path / f"{name}.f32"
        whole = path.read_bytes()
        rows = np.frombuffer(whole, np.uint8).reshape(COUNT, width).copy()
        rows[:, 7] ^= 64
        path.write_bytes(rows.tobytes())
        with pytest.raises(CorruptError, match=r"(14[6-9]\d|1500) rows are not what was written, the first is [02]"):
            FeatureStore.open(tmp_path, "key", COUNT, WIDTHS)
        path.write_bytes(whole)
    marks = bytearray((store.path / "marks").read_bytes())
    marks[1] = marks[3] = 9
    (store.path / "marks").write_bytes(marks)
    with pytest.raises(CorruptError, match="2 rows are not what was written, the first is 1"):
        FeatureStore.open(tmp_path, "key", COUNT, WIDTHS)


def test_a_store_with_another_meta_is_told(tmp_path):
    one, two = (FeatureStore.open(tmp_path, key, COUNT, WIDTHS) for key in ("one", "two"))
    (one.path / "meta.json").write_bytes((two.path / "meta.json").read_bytes())
    with pytest.raises(CorruptError, match="other features"):
        FeatureStore.open(tmp_path, "one", COUNT, WIDTHS)
