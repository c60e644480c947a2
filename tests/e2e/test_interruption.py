"""Ctrl-C, full disks, folders that cannot be written, and two processes that want the same run."""

import ctypes
import os
import re
import resource
import signal
import subprocess
import time
from contextlib import contextmanager

import pytest
from tests.e2e.command import finish, refused, run, started, succeeded
from tests.e2e.conftest import OPTIONS, PLAN

from cdm.cli import main

MORE = (*PLAN, "--images", "1280", "--stage", "0")
ENDLESS = (*PLAN, "--images", "1000000", "--stage", "0")


@contextmanager
def mounted(folder, options):
    """A memory file system at ``folder``; the test is skipped where this process may not mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    try:
        may = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        may = False
    if not may:
        pytest.skip("needs the right to mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def test_ctrl_c_saves_and_the_same_command_goes_on(trained, data, tmp_path):
    folder = trained.copy(tmp_path / "my run")
    command = ("train", data, "--out", folder, *MORE)
    with started(*command, until="of 1,280 images") as process:
        process.send_signal(signal.SIGINT)
        stopped = finish(process)
    assert stopped.code == 130 and "Traceback" not in stopped.err, stopped
    told = stopped.err.strip()
    assert told.startswith("cdm: stopped and saved") and "same command" in told
    assert f"cdm train {data} --out '{folder}'" in told  # quoted, to be pasted
    ran = run(*command)
    succeeded(ran, "1,280 of 1,280 images")
    assert int(re.search(r"going on from (\d+) images", ran.out)[1]) > 640


def test_two_runs_on_one_folder_and_a_lock_that_dies_with_its_owner(trained, data, tmp_path):
    folder = trained.copy(tmp_path / "run")
    command = ("train", data, "--out", folder, *ENDLESS)
    with started(*command, until="of 1,000,000 images") as owner:
        refused(run(*command), "in use by", f"process {owner.pid}", "wait until it ends")
        assert owner.poll() is None
        owner.kill()
        owner.wait()
        with started(*command, until="going on from") as heir:
            heir.send_signal(signal.SIGINT)
            assert finish(heir).code == 130


def test_disk_full_keeps_what_was_saved_and_the_same_command_goes_on(trained, data, tmp_path):
    """Room for what is saved first, and for all but half of the second checkpoint."""
    weights, snapshot, checkpoint = (
        next((trained.folder / "0-8").glob(name)).stat().st_size
        for name in ("model.safetensors", "snapshots/*", "training/*.safetensors")
    )
    room = (3 * weights + 2 * snapshot + checkpoint) + (weights + 2 * snapshot + checkpoint // 2)
    disk = tmp_path / "disk"
    command = ("train", data, "--out", disk / "run", *OPTIONS, "--stage", "0")
    with mounted(disk, f"size={room}"):
        refused(run(*command), "disk is full", str(disk), "free some space")
        kept = [path.name for path in (disk / "run" / "0-8" / "training").iterdir()]
        assert kept == ["ckpt-000000000320.safetensors"]
        remount(disk, "size=256m")
        succeeded(run(*command), "going on from 320 images", "640 of 640 images")


def test_disk_full_by_a_limit_on_the_size_of_files(trained, data, tmp_path):
    folder = trained.copy(tmp_path / "run")
    weights = {path: path.read_bytes() for path in (folder / "0-8").rglob("*.safetensors")}

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    ran = run("train", data, "--out", folder, *MORE, preexec_fn=limit)
    refused(ran, "disk is full", "free some space")
    assert {path: path.read_bytes() for path in (folder / "0-8").rglob("*.safetensors")} == weights
    succeeded(run("info", folder), "640 images")


def test_disk_full_while_sampling(trained, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    ran = run("sample", trained.folder, "-n", 1, "--out", tmp_path / "new", "--steps", "2,2", preexec_fn=limit)
    refused(ran, "disk is full", str(tmp_path / "new"))
    assert not list((tmp_path / "new").rglob("*.*"))


WRITERS = {
    "train into a new folder": lambda run_, data, place: ("train", data, "--out", place / "new", *MORE),
    "train on": lambda run_, data, place: ("train", data, "--out", place / "run", *MORE),
    "sample": lambda run_, data, place: ("sample", run_, "--out", place / "new"),
    "upscale": lambda run_, data, place: ("upscale", run_, data / "cat" / "00.png", "--out", place / "new"),
}


def obey_permissions():
    """Root may write everywhere, by a capability that a child can give up before it becomes the command."""
    drop_from_bounding_set, dac_override = 24, 1  # of linux/prctl.h and linux/capability.h
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(drop_from_bounding_set, dac_override, 0, 0, 0)


@pytest.mark.parametrize("case", WRITERS)
def test_a_folder_without_write_permission(case, trained, data, tmp_path):
    place = tmp_path / "place"
    trained.copy(place / "run")
    for folder in (place, place / "run"):
        folder.chmod(0o555)
    probe = subprocess.run(["touch", str(place / "probe")], capture_output=True, preexec_fn=obey_permissions)
    if probe.returncode == 0:
        pytest.skip("this root may not give up the right to write everywhere")
    ran = run(*WRITERS[case](trained.folder, data, place), preexec_fn=obey_permissions)
    refused(ran, "no permission for", str(place), "choose another folder")


def test_a_scheduler_that_ends_a_job_is_as_ctrl_c(monkeypatch, capsys):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(main, "_run", lambda *_: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(5)))
    assert main.main(["info", "folder"]) == 130
    assert "interrupted; nothing was lost: give the same command again" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
