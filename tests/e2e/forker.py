"""Runs ``cdm train`` again and again, each time in a fork of one process that has imported everything already.

A script of its own, driven by ``Forker`` (below) with one JSON object per line:

    {"argv": [...], "output": FILE, "point": {...} or null, "plant": [...], "constants": {...}}

``point`` is where the fork sends itself a signal; ``plant`` lists NaNs; ``constants`` are set in ``cdm.train.loop``.
All of it is done by replacing functions in the fork: the product has no hooks. The answer is the exit status, negative
for a signal.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Forker:
    """The other end: starts this script and talks to it. A context manager."""

    def __enter__(self) -> Forker:
        env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()

    def run(self, **ask: Any) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(ask) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


def main() -> None:
    import matplotlib.pyplot  # noqa: F401
    import torch._dynamo  # an optimiser imports it

    from cdm import recipes
    from cdm.pipeline import describe, train_run  # noqa: F401

    torch.set_num_threads(1)
    sys.modules["tensorboard"] = None  # type: ignore[assignment]  # as if it were not installed
    recipes.RECIPES["tiny"] = tiny
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            launch(**json.loads(line))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(status, flush=True)


def launch(
    argv: list[str], output: str, point: dict[str, Any] | None, plant: list[dict[str, Any]], constants: dict[str, Any]
) -> None:
    """One run of the command; never returns."""
    signal.alarm(600)  # a run that never ends is a failure too
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    status = 70
    os.fsync = lambda fd: None  # a kill loses nothing that the system was given; only a loss of power would
    try:
        from cdm.cli.main import main as cdm
        from cdm.train import loop

        for name, value in constants.items():
            assert hasattr(loop, name)
            setattr(loop, name, value)
        for nan in plant:
            plant_nan(**nan)
        if point is not None:
            INSTALL[point["kind"]](point)
        status = cdm(argv)
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def tiny(facts: Any) -> Any:
    """Nets of a few thousand weights that use all that draws random numbers: dropout, crops, augmentation."""
    from cdm.config import AugmentationConfig, CascadeConfig, NetConfig, OptimConfig, StageConfig

    stages = []
    for k, size in enumerate(facts.sizes):
        channels = facts.data.channels
        net = NetConfig(
            image_size=size, in_channels=channels * (1 + (k > 0)), out_channels=channels, width=8, multipliers=(1,),
            num_blocks=1, head_channels=8, dropout=0.1, num_labels=len(facts.class_names) + bool(facts.class_names),
            has_aug_level=k > 0,
        )  # fmt: skip
        optim = OptimConfig(batch_size=8, micro_batch=4 * k, crop_size=8 * k, warmup_images=32, lr=2e-3)
        augmentation = AugmentationConfig(kind="gaussian" if k else "none")
        low = facts.sizes[k - 1] if k else 0
        stages.append(
            StageConfig(size=size, low_res_size=low, channels=channels, net=net, optim=optim, augmentation=augmentation)
        )
    return CascadeConfig(
        recipe="tiny", seed=facts.seed, class_names=facts.class_names, data=facts.data, stages=tuple(stages)
    )


# ---- points where a fork is stopped ----------------------------------------------------------------------------------


def send(point: dict[str, Any]) -> None:
    os.kill(os.getpid(), signal.Signals[point.get("signal", "SIGKILL")])


def at_step(point: dict[str, Any]) -> None:
    """Right after the update that ends at ``images`` of ``stage``, of attempt ``attempt``."""
    from cdm.train.step import Trainee

    step = Trainee.step

    def stepping(self: Any, *args: Any, **kwargs: Any) -> None:
        step(self, *args, **kwargs)
        here = (self.stage.index, self.images_seen, self.attempt)
        if here == (point["stage"], point["images"], point.get("attempt", 0)):
            send(point)

    Trainee.step = stepping  # type: ignore[method-assign]


def in_write(point: dict[str, Any]) -> None:
    """While a file is written whose name holds ``file``: the ``part`` of it that is there by then is on the disk."""
    sync = os.fsync

    def syncing(fd: int) -> None:
        if point["file"] in os.readlink(f"/proc/self/fd/{fd}"):
            os.ftruncate(fd, int(point["part"] * os.fstat(fd).st_size))
            send(point)
        sync(fd)

    os.fsync = syncing


def in_event(point: dict[str, Any]) -> None:
    """At an event of ``event`` kind: torn in the middle of its line, or whole but before it takes effect."""
    sync = os.fsync

    def syncing(fd: int) -> None:
        sync(fd)
        path = os.readlink(f"/proc/self/fd/{fd}")
        if path.endswith("events.jsonl"):
            text = Path(path).read_bytes()
            line = text.splitlines()[-1]
            if f'"kind": "{point["event"]}"'.encode() in line and f'"stage": {point["stage"]},'.encode() in line:
                if point["torn"]:
                    os.truncate(path, len(text) - len(line) // 2)
                send(point)

    os.fsync = syncing


def in_rename(point: dict[str, Any]) -> None:
    """Just before or just after a temporary file is renamed to a name that holds ``file``."""
    replace = os.replace

    def replacing(source: Any, target: Any) -> None:
        if point["file"] in str(target) and point["when"] == "before":
            send(point)
        replace(source, target)
        if point["file"] in str(target):
            send(point)

    os.replace = replacing  # type: ignore[assignment]


INSTALL = {"step": at_step, "write": in_write, "event": in_event, "rename": in_rename}


# ---- planted NaNs ----------------------------------------------------------------------------------------------------


def plant_nan(where: str, stage: int, attempt: int, begin: int, end: int) -> None:
    """NaN in the input or the loss, or an infinite gradient, of the updates that begin in [begin, end) of ``stage``."""
    from cdm.data.batches import TrainingImages
    from cdm.train import step
    from cdm.train.step import Trainee

    now = {"bad": False}
    batch, loss, init = TrainingImages.batch, step.stage_loss, Trainee.__init__

    def batching(self: Any, index: int, rng: Any, positions: Any, **kwargs: Any) -> Any:
        made = batch(self, index, rng, positions, **kwargs)
        now["bad"] = index == stage and rng.attempt == attempt and begin <= int(positions[0]) < end
        if now["bad"] and where == "input":
            made.x0[0, 0, 0, 0] = float("nan")
        return made

    def losing(*args: Any) -> Any:
        made = loss(*args)
        if now["bad"]:
            made.loss[-1] = float("nan")
        return made

    def starting(self: Any, own: Any) -> None:
        init(self, own)
        self.params[3].register_hook(lambda grad: grad * float("inf") if now["bad"] else grad)

    TrainingImages.batch = batching  # type: ignore[method-assign]
    if where == "loss":
        step.stage_loss = losing
    if where == "gradient":
        Trainee.__init__ = starting  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
