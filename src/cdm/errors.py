"""Errors meant for users: one sentence with got, expected and how to mend it. The command line exits 2 on them."""


class UserError(ValueError):
    """Something the user asked for or gave cannot work."""


class CorruptError(UserError):
    """A file of a run is damaged: half written, truncated or changed."""


_FULL = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED", "Cannot allocate memory")
"""How torch on a CPU, CUDA, its libraries for convolutions and matrices, and Linux say so."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine or its accelerator had no room for what was asked; smaller pieces may fit."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL)
