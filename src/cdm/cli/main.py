"""The command ``cdm``: parse, run, and turn a user's mistake into one sentence and exit code 2."""

from __future__ import annotations

import os
import sys

USER_ERROR, INTERRUPTED = 2, 130


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0, 2 for a user's mistake, 130 when interrupted."""
    # spinning threads make a shared machine up to 170 times slower; torch reads this when it is first imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import tyro

    from cdm.cli.options import Command, Info, Sample, Train, Upscale
    from cdm.errors import UserError

    command = tyro.cli(
        Command,  # type: ignore[arg-type]
        prog="cdm",
        description="Cascaded diffusion models on your own images: train, sample, upscale, inspect.",
        args=argv,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    line = "cdm " + " ".join(sys.argv[1:] if argv is None else argv)
    try:
        if isinstance(command, Train):
            from cdm.cli.train import run_train

            run_train(command, line)
        elif isinstance(command, Sample):
            from cdm.cli.sample import run_sample

            run_sample(command)
        elif isinstance(command, Upscale):
            from cdm.cli.upscale import run_upscale

            run_upscale(command)
        elif isinstance(command, Info):
            from cdm.cli.info import run_info

            run_info(command)
    except UserError as error:
        print(f"cdm: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt as error:
        print(f"\ncdm: {error or 'interrupted; nothing was lost: give the same command again to go on.'}", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
