"""One way to print a sentence."""

from __future__ import annotations

import sys


def say(sentence: str) -> None:
    """A line for the user, at once, also through a pipe."""
    print(sentence, file=sys.stdout, flush=True)
