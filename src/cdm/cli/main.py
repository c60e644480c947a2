"""The command ``cdm``: parse, run, and turn a user's mistake into one sentence and exit code 2."""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cdm.heap import keep_memory

USER_ERROR, INTERRUPTED = 2, 130


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0, 2 for a user's mistake, 130 when interrupted."""
    # long spinning makes a shared machine up to 20 times slower, none a quiet one by a quarter; read at torch's import
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    keep_memory()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be bytes that no encoding has
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments:
        _parse(["--help"])  # leaves by itself
    from cdm.errors import UserError

    try:
        with _ended_as_interrupted():
            _run(_parse(arguments), shlex.join(["cdm", *arguments]))
    except UserError as error:
        print(f"cdm: {error}", file=sys.stderr)
        return USER_ERROR
    except BrokenPipeError:  # the reader of a pipe, as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, MemoryError, RuntimeError) as error:
        told = _machine_says(error)
        if not told:
            raise
        print(f"cdm: {told}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt as error:
        told = str(error) or "interrupted; nothing was lost: give the same command again to go on."
        print(f"\ncdm: {told}", file=sys.stderr)
        return INTERRUPTED
    return 0


@contextmanager
def _ended_as_interrupted() -> Iterator[None]:
    """SIGTERM, by which schedulers end a job, is as Ctrl-C: what is there is kept, and how to go on is told."""
    if threading.current_thread() is not threading.main_thread():  # no other may ask for signals
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _machine_says(error: Exception) -> str:
    """What a path or the memory did not allow, in a sentence; empty: the error is none of these."""
    if isinstance(error, OSError) and error.filename is not None:
        return (
            f"{error.filename} cannot be used: {error.strerror}; expected a path that may be read, or written to: "
            "change its permissions, or give another."
        )
    from cdm.errors import is_out_of_memory

    if is_out_of_memory(error):
        return "the memory does not suffice; expected less at once: lower --batch-size. What was saved is kept."
    return ""


def _parse(arguments: list[str]) -> object:
    import tyro

    from cdm.cli.options import Command

    return tyro.cli(
        Command,  # type: ignore[arg-type]
        prog="cdm",
        description="Cascaded diffusion models on your own images: train, sample, upscale, evaluate, tune, inspect.",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _run(command: object, line: str) -> None:
    """Carry ``command`` out; each imports only what it needs. ``line``: as the user typed it."""
    from cdm.cli.options import Compare, Evaluate, Info, Sample, Train, Tune, Upscale

    if isinstance(command, Train):
        from cdm.cli.train import run_train

        run_train(command, line)
    elif isinstance(command, Sample):
        from cdm.cli.sample import run_sample

        run_sample(command)
    elif isinstance(command, Upscale):
        from cdm.cli.upscale import run_upscale

        run_upscale(command)
    elif isinstance(command, Evaluate):
        from cdm.cli.evaluate import run_evaluate

        run_evaluate(command, line)
    elif isinstance(command, Tune):
        from cdm.cli.tune import run_tune

        run_tune(command, line)
    elif isinstance(command, Compare):
        from cdm.cli.compare import run_compare

        run_compare(command, line)
    elif isinstance(command, Info):
        from cdm.cli.info import run_info

        run_info(command)


if __name__ == "__main__":
    sys.exit(main())
