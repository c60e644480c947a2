"""Checkpoints survive kills, damage and a full disk: the state before is always there."""

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from cdm import artifacts
from cdm.artifacts import load_tensors, make_folder, read_events, save_tensors
from cdm.errors import UserError
from cdm.train.checkpoint import delete_after, latest_checkpoint, prune, save_checkpoint, save_snapshots, save_weights


def state(images_seen: int) -> dict[str, torch.Tensor]:
    return {"param/w": torch.full((50, 3), float(images_seen)), "step/w": torch.tensor(images_seen / 10)}


def filled(folder: Path, *images: int) -> Path:
    for n in images:
        save_checkpoint(folder, n, state(n), {"lr_scale": 0.5})
    return folder


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "training").iterdir())


def latest(folder: Path) -> tuple[int | None, list[str]]:
    """``images_seen`` of the checkpoint that a resume would use, checked to be whole, and what it says."""
    said: list[str] = []
    found = latest_checkpoint(folder, said.append)
    if found is None:
        return None, said
    tensors, meta, path = found
    n = meta["images_seen"]
    assert path.name == f"ckpt-{n:012d}.safetensors"
    assert tensors.keys() == state(n).keys() and all(torch.equal(tensors[k], v) for k, v in state(n).items())
    return n, said


def test_newest_is_loaded_and_two_are_kept(tmp_path: Path) -> None:
    assert latest(tmp_path) == (None, [])
    filled(tmp_path, 64, 128, 1_000_000)
    assert latest(tmp_path) == (1_000_000, [])
    prune(tmp_path)
    assert names(tmp_path) == ["ckpt-000000000128.safetensors", "ckpt-000001000000.safetensors"]
    prune(tmp_path, keep=1)
    assert names(tmp_path) == ["ckpt-000001000000.safetensors"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_damaged_one_is_said_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    filled(tmp_path, 64, 128)
    newest = tmp_path / "training" / "ckpt-000000000128.safetensors"
    raw = bytearray(newest.read_bytes())
    raw[-20] ^= 4
    newest.write_bytes({"flip": raw, "truncate": raw[:-100], "empty": b""}[damage])
    used, said = latest(tmp_path)
    assert used == 64
    assert len(said) == 1 and str(newest) in said[0] and "damaged" in said[0] and "\n" not in said[0]
    assert latest(tmp_path) == (64, [])  # it was set aside, and is said once


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (RuntimeError("unable to mmap 99 bytes from file <a>: Cannot allocate memory (12)"), "Cannot allocate memory"),
        (MemoryError("Cannot allocate memory (os error 12)"), "Cannot allocate memory"),
        (
            OSError(errno.EIO, "Input/output error"),
            "cannot be read .*Input/output error.*; expected a disk that can be",
        ),
    ],
    ids=["mmap", "memory", "disk"],
)
def test_one_that_cannot_be_read_now_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, told: str
) -> None:
    filled(tmp_path, 64, 128)

    def fails(*_: Any, **__: Any) -> Any:
        raise failure

    with monkeypatch.context() as full:
        full.setattr(artifacts, "safe_open", fails)
        with pytest.raises(UserError if isinstance(failure, OSError) else type(failure), match=told):
            latest(tmp_path)
    assert latest(tmp_path) == (128, [])


def test_damaged_one_does_not_push_out_a_good_one(tmp_path: Path) -> None:
    filled(tmp_path, 64, 128, 192)
    for n in (192, 128):
        (tmp_path / "training" / f"ckpt-{n:012d}.safetensors").write_bytes(b"x")
    assert latest(tmp_path)[0] == 64
    filled(tmp_path, 96)
    prune(tmp_path, keep=2)
    (tmp_path / "training" / "ckpt-000000000096.safetensors").write_bytes(b"x")
    assert latest(tmp_path)[0] == 64


def test_all_damaged_means_none(tmp_path: Path) -> None:
    filled(tmp_path, 64, 128)
    for path in (tmp_path / "training").iterdir():
        path.write_bytes(b"x")
    used, said = latest(tmp_path)
    assert used is None and len(said) == 2


def test_files_of_other_names_are_left_alone(tmp_path: Path) -> None:
    """Neither read, nor counted, nor deleted: they are the user's."""
    filled(tmp_path, 64, 128, 192)
    own = ["ckpt-000000000192 (copy).safetensors", "ckpt-1e6.safetensors", "ckpt-best.safetensors"]
    for name in own:
        (tmp_path / "training" / name).write_bytes(b"x")
    assert latest(tmp_path) == (192, [])
    prune(tmp_path, keep=2, regular=lambda images_seen: images_seen % 128 == 0)
    delete_after(tmp_path, 128)
    assert names(tmp_path) == sorted(["ckpt-000000000128.safetensors", *own])


def test_newer_format_is_refused_and_not_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, 64)
    with monkeypatch.context() as future:
        future.setattr(artifacts, "FORMAT_VERSION", artifacts.FORMAT_VERSION + 1)
        filled(tmp_path, 128)
    with pytest.raises(UserError, match="newer cdm"):
        latest(tmp_path)
    assert len(names(tmp_path)) == 2


def test_disk_full_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, 64)

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as small:
        small.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="disk is full"):
            filled(tmp_path, 128)
    assert names(tmp_path) == ["ckpt-000000000064.safetensors"]
    assert latest(tmp_path) == (64, [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_and_profiles(tmp_path: Path, dtype: torch.dtype) -> None:
    params = {"w": torch.randn(4, 3), "count": torch.arange(3)}
    emas = {0.05: {"w": torch.randn(4, 3)}, 0.1: {"w": torch.randn(4, 3)}}
    folder = tmp_path / "0-16"
    save_weights(folder, params, emas, {"images_seen": 5}, dtype)
    found = {p.name: load_tensors(p) for p in folder.iterdir()}
    assert sorted(found) == ["ema-0.050.safetensors", "ema-0.100.safetensors", "model.safetensors"]
    for name, sigma_rel, want in (
        ("model", None, params),
        ("ema-0.050", 0.05, emas[0.05]),
        ("ema-0.100", 0.1, emas[0.1]),
    ):
        tensors, meta = found[f"{name}.safetensors"]
        assert meta == {"images_seen": 5, "sigma_rel": sigma_rel}
        assert tensors["w"].dtype == dtype and torch.equal(tensors["w"], want["w"].to(dtype))
    assert found["model.safetensors"][0]["count"].dtype == torch.int64


def test_snapshots_are_kept_per_profile(tmp_path: Path) -> None:
    for n in (64, 128, 192):
        save_snapshots(tmp_path, n, {0.05: {"w": torch.ones(2)}, 0.1: {"w": torch.ones(2)}}, keep=2)
    assert sorted(p.name for p in (tmp_path / "snapshots").iterdir()) == [
        f"ema-{profile}-{n:012d}.safetensors" for profile in ("0.050", "0.100") for n in (128, 192)
    ]


KILLED = """
    import io, os, signal, sys
    from pathlib import Path
    import torch
    from cdm import artifacts
    from cdm.train.checkpoint import prune, save_checkpoint, save_snapshots, save_weights
    from cdm.train.events import Events

    left = 0

    def count_down():
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    class File(io.FileIO):
        def write(self, data):  # half of it reaches the disk before the kill
            data = memoryview(data).cast("B")
            done = super().write(data[: len(data) // 2])
            count_down()
            return done + super().write(data[len(data) // 2 :])

    def around(act):  # killed just before, and just after
        def acted(*args, **kwargs):
            count_down()
            act(*args, **kwargs)
            count_down()
        return acted

    def work(folder):
        events = Events(folder / "events.jsonl")
        for n in (10, 20):
            tensors = {"param/w": torch.full((50, 3), float(n)), "step/w": torch.tensor(n / 10)}
            save_checkpoint(folder, n, tensors, {})
            events.append("saved", images=n)
            save_weights(folder, {"w": tensors["param/w"]}, {0.05: {"w": tensors["param/w"]}}, {"images_seen": n})
            save_snapshots(folder, n, {0.05: {"w": tensors["param/w"]}}, keep=1)
            prune(folder, keep=1)

    def fork(folder, points):
        global left
        pid = os.fork()
        if pid:
            return os.waitpid(pid, 0)[1]
        left = points
        artifacts.open = lambda path, mode: File(path, {"wb": "w", "ab+": "a+", "rb": "r"}[mode])
        os.fsync, os.replace, Path.unlink = around(os.fsync), around(os.replace), around(Path.unlink)
        work(folder)
        os._exit(0)

    point = 0
    while True:
        folder = Path(sys.argv[1]) / f"{point:04d}"
        folder.mkdir()
        status = fork(folder, point)
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        point += 1
    print(point)
"""


def test_kill_at_every_point_of_saving_loses_nothing(tmp_path: Path) -> None:
    """A process is killed at each write, flush, rename and deletion in turn, inside, just before and just after."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 0, done.stderr
    points = int(done.stdout)
    assert points > 80, points
    torn, reached = 0, []
    for folder in sorted(tmp_path.iterdir()):
        torn += artifacts.remove_leftovers(folder)
        saved = [event["images"] for event in read_events(folder / "events.jsonl")]
        used, said = latest(folder)
        assert said == []  # a kill leaves no damaged file
        assert saved == [10, 20][: len(saved)]
        assert (used or 0) >= (saved[-1] if saved else 0)  # what was recorded as saved is there
        assert (used or 0) <= (saved[-1] if saved else 0) + 10
        for path in folder.rglob("*.safetensors"):
            load_tensors(path)
        if (folder / "model.safetensors").exists():
            assert load_tensors(folder / "model.safetensors")[1]["images_seen"] in (used, (used or 0) - 10)
        reached.append(used or 0)
    assert reached == sorted(reached) and set(reached) == {0, 10, 20}
    assert torn > 10


def test_checkpoint_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "training").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be used"):
        save_checkpoint(tmp_path, 1, state(1), {})


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    filled(tmp_path, 64, 128)
    save_tensors(make_folder(tmp_path / "training") / "mine.safetensors", state(1), {})
    prune(tmp_path, keep=1)
    assert names(tmp_path) == ["ckpt-000000000128.safetensors", "mine.safetensors"]
