"""Errors meant for users: one sentence with got, expected and how to mend it. The command line exits 2 on them."""


class UserError(ValueError):
    """Something the user asked for or gave cannot work."""


class CorruptError(UserError):
    """A file of a run is damaged: half written, truncated or changed."""
