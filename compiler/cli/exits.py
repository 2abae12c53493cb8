"""What a verb's exit says to a script."""

from enum import IntEnum


class Exit(IntEnum):
    """0 is fine."""

    SAID_NO = 1
    """The check said no: drift, edited files, a failed verification."""
    BAD_INPUT = 2
    """A bad spec, or bad usage (click's own code for it)."""
    CRASH = 3
    """A fault of dsc, with its traceback."""
    INTERRUPTED = 130
    """Ctrl-C, as shells count it: 128 and SIGINT."""
