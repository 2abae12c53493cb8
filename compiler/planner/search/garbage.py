"""Planning makes very many objects and keeps them: looking for garbage meanwhile would take a sixth of its time."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def nothing_collected() -> Iterator[None]:
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.freeze()  # and thaw: what was made meanwhile is old now, and not looked through at once
            gc.unfreeze()
            gc.enable()


def nothing_collected_at_exit() -> None:
    """Of a process that ends with its plan: all memory goes then, and nobody need look through it first."""
    atexit.register(gc.freeze)
