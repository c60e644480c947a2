"""One tiny trained run for all tests of the command, also where several workers share them."""

import fcntl
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from tests.e2e.command import Ran, environment, run, run_here, succeeded
from tests.fakes import random_cascade, save_run, stage_config

# Much is held out: of so few images, 5 % may be none. Which ones hangs on how Pillow packs them.
PLAN = ("--recipe", "demo", "--sizes", "8,16", "--checkpoint-images", "320", "--val-fraction", "0.3")
OPTIONS = (*PLAN, "--images", "640")
CLASSES = ("cat", "dog")


@dataclass(frozen=True)
class Trained:
    """The shared run. Nobody may write into ``folder``: ``copy`` it."""

    data: Path
    folder: Path
    ran: Ran

    def copy(self, to: Path) -> Path:
        """The run at another place. Large files are linked: they are only ever replaced, never written in place."""

        def link(source: str, target: str) -> None:
            (os.link if source.endswith(".safetensors") else shutil.copy)(source, target)

        return Path(shutil.copytree(self.folder, to, copy_function=link))


def write_images(folder: Path, count: int, *, width: int = 24, height: int = 20, seed: int = 0) -> None:
    """``count`` pictures of a bright box on a dark ground."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for i in range(count):
        pixels = np.full((height, width, 3), 40 + 20 * seed, np.uint8)
        pixels[4 : 4 + height // 2, 2 : 2 + width // 3] = random.integers(100, 255, 3)
        PILImage.fromarray(pixels).save(folder / f"{i:02}.png")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this test session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def made_once(shared: Path, name: str, make: Callable[[Path], None]) -> Path:
    """The folder ``name``, filled by ``make`` for the first worker that comes; the others wait for it."""
    folder, done = shared / name, shared / f"{name}.done"
    with open(shared / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def data(shared: Path) -> Path:
    """Two classes of 12 images each."""

    def make(folder: Path) -> None:
        for seed, name in enumerate(CLASSES):
            write_images(folder / name, 12, seed=seed)

    return made_once(shared, "data", make)


@pytest.fixture(scope="session")
def trained(shared: Path, data: Path) -> Trained:
    """A finished run of two stages, trained without TensorBoard."""

    def make(folder: Path) -> None:
        stub = folder / "stub" / "tensorboard"
        stub.mkdir(parents=True)
        (stub / "__init__.py").write_text("raise ImportError('no TensorBoard here')\n")
        env = environment()
        env["PYTHONPATH"] = f"{stub.parent}{os.pathsep}{env['PYTHONPATH']}"
        ran = run("train", data, "--out", folder / "run", *OPTIONS, env=env)
        (folder / "out").write_text(ran.out)
        (folder / "err").write_text(ran.err)
        assert ran.code == 0, ran

    folder = made_once(shared, "trained", make)
    return Trained(data, folder / "run", Ran(0, (folder / "out").read_text(), (folder / "err").read_text()))


# ---- evaluations -----------------------------------------------------------------------------------------------------


QUICK = ("--steps", "2,2", "--batch-size", "8")
EXTRACTOR = '''
import torch

def blocks(images):
    """12 numbers: the mean of each channel in each quarter."""
    return torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)

def constant(images):
    return torch.ones(len(images), 4)
'''


@pytest.fixture(scope="session")
def photos(shared):
    """Real images: 20 of each class to train on, 160 to validate on, all different."""

    def make(folder):
        for seed, name in enumerate(CLASSES):
            write_images(folder / "train" / name, 20, seed=seed)
            random = np.random.default_rng(seed + 5)
            (folder / "val" / name).mkdir(parents=True)
            for i in range(160):
                pixels = np.full((16, 16, 3), 40 + 20 * seed, np.uint8)
                pixels[random.integers(0, 8) :, random.integers(0, 8) :] = random.integers(80, 255, 3)
                PILImage.fromarray(pixels).save(folder / "val" / name / f"{i:03}.png")

    return made_once(shared, "photos", make)


@pytest.fixture(scope="session")
def real(shared):
    """Real images: 20 of each class to train on, 16 to validate on; and a quick extractor."""

    def make(folder):
        for part, seed in (("train", 0), ("val", 2)):
            for number, name in enumerate(("cat", "dog")):
                write_images(folder / part / name, 20 if part == "train" else 16, seed=seed + number)
        (folder / "own.py").write_text(EXTRACTOR)

    return made_once(shared, "real", make)


@pytest.fixture
def own(real):
    return ("--extractors", f"custom:{real / 'own.py'}:blocks")


@pytest.fixture(scope="session")
def made(shared):
    """A run of two stages with random weights: its images are noise, which is all the same to what measures them."""

    def make(folder):
        stages = stage_config(8, channels=3, num_labels=2), stage_config(16, 8, channels=3, num_labels=2)
        save_run(folder / "run", random_cascade(*stages, classes=CLASSES))

    return made_once(shared, "made", make) / "run"


@pytest.fixture(scope="session")
def evaluated(shared, made, real):
    """The whole of it, once: a run of two stages with its own domain extractor."""

    def make(folder):
        quick = "fd,sfid,kid,is,prdc,memorisation,diagnosis"  # CAS has a test of its own
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CDM_CACHE", str(folder / "cache"))
            patch.setenv("CDM_WEIGHTS", str(folder / "no weights"))
            data = ("--data", real / "val", "--train-data", real / "train", "--out", folder / "out")
            ran = run_here("evaluate", made, *data, "-n", 36, "--metrics", quick, "--save", folder / "images", *QUICK)
        (folder / "said").write_text(str(ran))
        succeeded(ran)

    return made_once(shared, "evaluated", make)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CDM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
