"""Files of a run: nothing is lost, nothing damaged is taken for whole, and a folder has one owner."""

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from cdm import artifacts
from cdm.artifacts import (
    RunLock,
    append_event,
    load_json,
    load_tensors,
    make_folder,
    read_events,
    read_log,
    remove_leftovers,
    save_json,
    save_tensors,
    weights_file,
    weights_hash,
    write_atomic,
)
from cdm.errors import CorruptError, UserError

TENSORS = {
    "w": torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0)),
    "half": torch.linspace(-1, 1, 7).to(torch.bfloat16),
    "fp16": torch.linspace(-1, 1, 3).to(torch.float16),
    "step": torch.tensor(12.0),
    "index": torch.arange(4),
    "image": torch.arange(9, dtype=torch.uint8).reshape(3, 3),
    "flag": torch.tensor([True, False, True]),
    "wide": torch.tensor([1e300, -0.0, float("nan"), float("inf")], dtype=torch.float64),
    "none": torch.zeros(0, 3),
}
META = {"images_seen": 3, "lr": 0.1, "name": "é", "sizes": [16, 64], "nothing": None}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Equal names, dtypes, shapes and bits (NaN too)."""
    bits = lambda x: x.contiguous().reshape(-1).view(torch.uint8)  # noqa: E731
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and torch.equal(bits(a[k]), bits(b[k])) for k in a
    )


def run_python(code: str, *args: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        **options,  # type: ignore[call-overload]
    )


@contextlib.contextmanager
def mounted(folder: Path, *options: str):
    """A small tmpfs at ``folder``; skips the test where this user may not mount one."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no right to mount a small file system here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# ---- atomic writes ---------------------------------------------------------------------------------------------------


def test_write_atomic_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, b"a longer first content")
    write_atomic(path, lambda file: (file.write(b"sec"), file.write(b"ond"), None)[-1])
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_failed_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    content = fail if call == "write" else b"new"
    if call != "write":
        monkeypatch.setattr(os, call, fail)
    with pytest.raises(UserError, match=r"disk is full.*kept" if number != errno.EIO else "cannot be used") as caught:
        write_atomic(path, content)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_interrupt_inside_a_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, b"old")

    def interrupt(file: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, interrupt)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]


def test_disk_full_on_a_small_file_system(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "-o", "size=256k") as folder:
        save_tensors(folder / "a.safetensors", {"w": torch.ones(20_000)}, {"n": 1})
        with pytest.raises(UserError, match="disk is full"):
            save_tensors(folder / "a.safetensors", {"w": torch.zeros(50_000)}, {"n": 2})
        assert os.listdir(folder) == ["a.safetensors"]
        tensors, meta = load_tensors(folder / "a.safetensors")
        assert meta == {"n": 1} and bool((tensors["w"] == 1).all())


def test_disk_full_while_an_event_is_appended(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "-o", "size=64k") as folder:
        append_event(folder / "events.jsonl", {"n": 1})
        (folder / "ballast").write_bytes(b"x" * 60_000)
        with pytest.raises(UserError, match="disk is full"):
            append_event(folder / "events.jsonl", {"n": 2, "long": "x" * 20_000})
        assert read_events(folder / "events.jsonl") == [{"n": 1}]
        (folder / "ballast").unlink()
        append_event(folder / "events.jsonl", {"n": 3})
        assert read_events(folder / "events.jsonl") == [{"n": 1}, {"n": 3}]


def test_file_size_limit(tmp_path: Path) -> None:
    code = """
        import resource, sys, torch
        from cdm.artifacts import save_tensors
        from cdm.errors import UserError
        save_tensors(sys.argv[1], {"w": torch.ones(100)}, {})
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        try:
            save_tensors(sys.argv[1], {"w": torch.ones(10_000)}, {})
        except UserError as error:
            sys.exit(str(error))
    """
    done = run_python(code, tmp_path / "a.safetensors")
    assert done.returncode == 1 and done.stderr.startswith("the disk is full") and "Traceback" not in done.stderr
    assert len(load_tensors(tmp_path / "a.safetensors")[0]["w"]) == 100
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_folder_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for make in (
        lambda: make_folder(tmp_path / "file"),
        lambda: make_folder(tmp_path / "file" / "run"),
        lambda: write_atomic(tmp_path / "file" / "a.bin", b""),
    ):
        with pytest.raises(UserError, match="a part of it, is a file where a folder is meant"):
            make()


def test_folder_without_write_permission(tmp_path: Path) -> None:
    if os.geteuid():
        tmp_path.chmod(0o500)
        places = contextlib.nullcontext(tmp_path)
    else:  # permissions do not bind root, a read-only file system does
        places = mounted(tmp_path / "readonly", "-o", "ro")
    with places as folder:
        for act in (
            lambda: write_atomic(folder / "a.bin", b""),
            lambda: make_folder(folder / "run"),
            lambda: append_event(folder / "events.jsonl", {}),
            lambda: RunLock(folder),
        ):
            with pytest.raises(UserError, match="no permission"):
                act()
    tmp_path.chmod(0o700)


def test_remove_leftovers_spares_a_write_that_is_under_way(tmp_path: Path) -> None:
    """``cdm sample`` writes into the folder of a run while ``cdm train`` starts on it."""
    script = """
        import sys
        from cdm.artifacts import write_atomic

        def content(file):
            file.write(b"half, ")
            file.flush()
            print("writing", flush=True)
            sys.stdin.readline()
            file.write(b"whole")

        write_atomic(sys.argv[1], content)
    """
    make_folder(tmp_path / "samples")
    line = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "samples" / "a.png")]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None and writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        assert remove_leftovers(tmp_path) == 0
        writer.stdin.write("\n")
        writer.stdin.close()
        assert writer.wait() == 0
    assert (tmp_path / "samples" / "a.png").read_bytes() == b"half, whole"


def test_remove_leftovers_takes_temporary_files_alone(tmp_path: Path) -> None:
    kept = [tmp_path / "a.safetensors", tmp_path / "notes.tmp", tmp_path / ".hidden", tmp_path / ".own.tmp"]
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = [tmp_path / f".a.safetensors.{pid}.tmp" for pid in (dead.pid, os.getpid(), 10**12)]
    left.append(make_folder(tmp_path / "0-16" / "training") / f".ckpt.{dead.pid}.tmp")
    for path in kept + left:
        path.write_bytes(b"x")
    assert remove_leftovers(tmp_path) == 4
    assert all(p.exists() for p in kept) and not any(p.exists() for p in left)


# ---- tensors ---------------------------------------------------------------------------------------------------------


def test_tensors_round_trip_bit_for_bit(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", TENSORS, META)
    tensors, meta = load_tensors(tmp_path / "a.safetensors")
    assert same(tensors, TENSORS) and meta == META


def test_safetensors_itself_reads_the_same(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", TENSORS, META)
    assert same(safetensors.torch.load_file(tmp_path / "a.safetensors"), TENSORS)


def test_tensors_need_not_be_contiguous(tmp_path: Path) -> None:
    last = TENSORS["w"].contiguous(memory_format=torch.channels_last)
    tensors = {"last": last, "t": torch.arange(6.0).reshape(2, 3).T, "p": torch.nn.Parameter(torch.ones(2))}
    save_tensors(tmp_path / "a.safetensors", tensors, {})
    assert same(load_tensors(tmp_path / "a.safetensors")[0], {k: v.detach() for k, v in tensors.items()})


def test_loaded_tensors_outlive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"w": torch.ones(1000)}, {})
    tensors, _ = load_tensors(path)
    path.write_bytes(b"\0" * path.stat().st_size)
    path.unlink()
    assert bool((tensors["w"] == 1).all())


@pytest.mark.parametrize("seed", range(4))
def test_bit_flip_anywhere_is_refused(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, META)
    whole = path.read_bytes()
    rng = random.Random(seed)
    refused = 0
    for _ in range(100):
        bit = rng.randrange(8 * len(whole))
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            tensors, meta = load_tensors(path)
        except CorruptError as error:
            assert str(path) in str(error)
            refused += 1
        else:  # some bits of the header's JSON mean nothing, such as the case of a \\u escape
            assert same(tensors, TENSORS) and meta == META
    assert refused >= 98


def test_every_bit_of_the_numbers_is_guarded(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"w": torch.ones(2)}, {})
    whole = path.read_bytes()
    for bit in range(8 * (len(whole) - 8), 8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(CorruptError, match="checksum"):
            load_tensors(path)


def test_truncated_or_grown_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, META)
    whole = path.read_bytes()
    rng = random.Random(0)
    for length in [0, 1, 7, 8, 9, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(40))]:
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptError, match="damaged"):
            load_tensors(path)
    for foreign in (whole + b"\0", b"\0" * len(whole), b"not safetensors at all"):
        path.write_bytes(foreign)
        with pytest.raises(CorruptError, match="damaged"):
            load_tensors(path)


def test_tensors_of_another_program_are_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(CorruptError, match="no checksum"):
        load_tensors(tmp_path / "a.safetensors")


def test_missing_files_are_the_users(tmp_path: Path) -> None:
    for load in (load_tensors, load_json):
        with pytest.raises(UserError, match="No such file") as caught:
            load(tmp_path / "a")
        assert not isinstance(caught.value, CorruptError)


def test_weights_file_names() -> None:
    assert [weights_file(x) for x in (None, 0.05, 0.1)] == [
        "model.safetensors",
        "ema-0.050.safetensors",
        "ema-0.100.safetensors",
    ]


def test_weights_hash_names_the_weights() -> None:
    tensors = {"a": torch.randn(4, 3), "b": torch.zeros(2)}
    name = weights_hash(tensors)
    assert len(name) == 12 and int(name, 16) >= 0
    assert weights_hash(dict(reversed(tensors.items()))) == name
    assert weights_hash({k: torch.nn.Parameter(v) for k, v in tensors.items()}) == name
    assert weights_hash({"a": tensors["a"].T.contiguous().T, "b": tensors["b"]}) == name
    others = [
        {"a": tensors["a"].bfloat16(), "b": tensors["b"]},
        {"a": tensors["a"].reshape(3, 4), "b": tensors["b"]},
        {"a": tensors["a"], "c": tensors["b"]},
        {"a": tensors["a"], "b": -tensors["b"]},  # -0.0
        {"a": tensors["a"].view(torch.int32), "b": tensors["b"]},
        {"a": tensors["a"]},
    ]
    assert len({name, *map(weights_hash, others)}) == 1 + len(others)


# ---- JSON ------------------------------------------------------------------------------------------------------------

BODY = {"recipe": "small", "lr": 0.1 + 0.2, "sizes": [16, 64], "class_names": ["é", "b"], "nested": {"b": 1, "a": None}}


def test_json_round_trip(tmp_path: Path) -> None:
    save_json(tmp_path / "c.json", BODY | {"sizes": (16, 64)})
    assert load_json(tmp_path / "c.json") == BODY
    raw = json.loads((tmp_path / "c.json").read_text())
    assert raw["format_version"] == 1 and len(raw["sha256"]) == 64


@pytest.mark.parametrize("seed", range(3))
def test_json_bit_flip_is_refused_or_means_nothing(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "c.json"
    save_json(path, BODY)
    whole = path.read_bytes()
    rng = random.Random(seed)
    refused = 0
    for _ in range(200):
        bit = rng.randrange(8 * len(whole))
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert load_json(path) == BODY
        except CorruptError:
            refused += 1
    assert refused >= 190


def test_json_truncated_or_edited_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    save_json(path, BODY)
    whole = path.read_bytes()
    edited = whole.replace(b'"small"', b'"demo!"')
    without = json.dumps({k: v for k, v in json.loads(whole).items() if k != "sha256"}).encode()
    cut = [whole[:length] for length in range(0, len(whole) - 2, 7)]
    for content in [*cut, edited, without, b"[]", b"3", b"null", b'{"sha256": []}', b"\xff\xfe"]:
        path.write_bytes(content)
        with pytest.raises(CorruptError, match="damaged"):
            load_json(path)


def test_newer_format_is_refused_and_told_from_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as future:
        future.setattr(artifacts, "FORMAT_VERSION", artifacts.FORMAT_VERSION + 1)
        save_json(tmp_path / "c.json", BODY)
        save_tensors(tmp_path / "a.safetensors", TENSORS, META)
    for load, name in ((load_json, "c.json"), (load_tensors, "a.safetensors")):
        with pytest.raises(UserError, match="made by a newer cdm") as caught:
            load(tmp_path / name)
        assert not isinstance(caught.value, CorruptError)


def test_older_format_is_upgraded_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = artifacts.FORMAT_VERSION
    save_json(tmp_path / "c.json", {"seen": []})
    save_tensors(tmp_path / "a.safetensors", TENSORS, {"seen": []})
    monkeypatch.setattr(artifacts, "FORMAT_VERSION", now + 2)
    for old in (now, now + 1):
        monkeypatch.setitem(artifacts.UPGRADES, old, lambda name, body, old=old: {"seen": [*body["seen"], (name, old)]})
    assert load_json(tmp_path / "c.json") == {"seen": [("c.json", now), ("c.json", now + 1)]}
    tensors, meta = load_tensors(tmp_path / "a.safetensors")
    assert same(tensors, TENSORS) and meta == {"seen": [("a.safetensors", now), ("a.safetensors", now + 1)]}


# ---- events and logs -------------------------------------------------------------------------------------------------


def test_torn_last_line_is_ignored_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert read_events(path) == []
    append_event(path, {"n": 1})
    append_event(path, {"n": 2})
    whole = path.read_bytes()
    for torn in (b'{"n"', b'{"n": 3}', b"\0" * 40):  # a line counts once its newline is there
        path.write_bytes(whole + torn)
        assert read_events(path) == [{"n": 1}, {"n": 2}]
        append_event(path, {"n": 4})
        assert read_events(path) == [{"n": 1}, {"n": 2}, {"n": 4}]
    path.write_bytes(b'{"n"')
    append_event(path, {"n": 5})
    assert read_events(path) == [{"n": 5}]


@pytest.mark.parametrize("line", [b'{"n": 1', b"[1]", b"\xff", b""])
def test_damaged_line_before_the_end_is_refused(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"n": 1}\n' + line + b'\n{"n": 2}\n')
    with pytest.raises(CorruptError, match="line 2"):
        read_events(path)


def test_log_follows_resumes_and_roll_backs(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert read_log(path) == []
    for images, loss in ((10, 1.0), (20, 0.9), (30, 0.8)):
        append_event(path, {"stage": 0, "images_seen": images, "loss": loss})
    append_event(path, {"stage": 0, "images_seen": 30, "val_loss": 0.85})
    append_event(path, {"stage": 1, "images_seen": 5, "loss": 7.0})
    three = [(10, 1.0), (20, 0.9), (30, 0.8)]
    assert [(x["images_seen"], x["loss"]) for x in read_log(path, 0)] == three
    assert read_log(path, 0)[-1]["val_loss"] == 0.85
    append_event(path, {"stage": 0, "images_seen": 20, "resumed": True})
    assert [(x["images_seen"], x["loss"]) for x in read_log(path, 0)] == three[:2]
    append_event(path, {"stage": 0, "images_seen": 25, "loss": 0.7})
    with open(path, "ab") as file:
        file.write(b'\xff garbage\n{"no": "count"}\n{"images_seen": 30, "sta')
    assert [(x["images_seen"], x["loss"]) for x in read_log(path, 0)] == [*three[:2], (25, 0.7)]
    assert [x["loss"] for x in read_log(path, 1)] == [7.0]


# ---- the lock --------------------------------------------------------------------------------------------------------

OWNER = """
    import os, sys, time
    from cdm.artifacts import RunLock
    lock = RunLock(sys.argv[1])
    if sys.argv[2] == "forks" and os.fork() == 0:
        print(os.getpid(), flush=True)
    else:
        if sys.argv[2] != "forks":
            print(os.getpid(), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["alone", "forks"])
def test_second_owner_is_refused_until_the_first_is_killed(tmp_path: Path, kind: str) -> None:
    code = [sys.executable, "-c", textwrap.dedent(OWNER), str(tmp_path), kind]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen(code, stdout=subprocess.PIPE, text=True, env=env) as owner:
        assert owner.stdout is not None
        told = int(owner.stdout.readline())  # of the forked child in "forks", which outlives the owner
        try:
            with pytest.raises(UserError, match=rf"in use by process {owner.pid} on"):
                RunLock(tmp_path)
            owner.send_signal(signal.SIGKILL)
            owner.wait()
            deadline = time.monotonic() + 5
            while True:
                try:
                    RunLock(tmp_path).release()
                    break
                except UserError:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(told if kind == "forks" else owner.pid, signal.SIGKILL)


def test_lock_is_free_after_its_block_and_refuses_twice(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        with pytest.raises(UserError, match=f"process {os.getpid()} on"):
            RunLock(tmp_path)
    with RunLock(tmp_path):
        pass


def test_lock_of_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        RunLock(tmp_path / "none")
