"""Files to disk: one write at a time, each file whole, never outside the folder, never over somebody's edits.

A write first lays everything into a folder inside, the lock among it. If it is killed, the next one finds it there:
what it had moved already was emitted, not edited by hand.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dsc.compiler.emit.compare import CLASH, STAGING, Changes, compare
from dsc.compiler.emit.edits import Edits, EmitAgain, forgotten, reconcile
from dsc.compiler.emit.lock import LOCK
from dsc.spec.errors import DscError, Finding

if sys.platform != "win32":
    import fcntl

PATIENCE = 30.0  # seconds to wait for another write


@dataclass(frozen=True)
class Written:
    """What a write did."""

    changes: Changes
    edits: Edits
    """Empty where edits were overwritten."""


def write(
    files: Mapping[str, str],
    folder: Path,
    force: bool = False,
    emit_again: EmitAgain = forgotten,
    consumed: frozenset[str] = frozenset(),
) -> Written:
    """Write what differs; the lock last, so that a crash leaves a difference to see.

    Files that were edited by hand are merged with what is emitted now, or overwritten with `force`; so are those that
    were `consumed` to make `files`. Raises DscError, with nothing written, if that cannot be, or if another write to
    the folder does not end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        return _write(files, folder, force, emit_again, consumed)


def _write(
    files: Mapping[str, str], folder: Path, force: bool, emit_again: EmitAgain, consumed: frozenset[str]
) -> Written:
    changes = compare(files, folder, consumed)
    clashes = {name + CLASH for name in files if (folder / (name + CLASH)).exists()}
    edits = Edits() if force else reconcile(changes.edited, files, folder, emit_again)
    overwritten = changes.edited if force else ()
    texts = {name: files[name].encode() for name in {*changes.new, *changes.changed, *overwritten} & files.keys()}
    texts |= edits.texts
    unwanted = {*changes.stale, *overwritten, *clashes} - files.keys()
    paths = {name: _inside(folder, name) for name in sorted({*texts, *unwanted})}
    leftovers = list(folder.glob(f"{STAGING}*"))
    staging = _staged(texts, folder)
    try:
        for name in _lock_last(paths):
            _settle(staging / name if name in texts else None, paths[name])
    except BaseException:
        if all((staging / name).exists() for name in texts):
            shutil.rmtree(staging)  # nothing was moved yet
        raise
    for rest in (staging, *leftovers):
        shutil.rmtree(rest)
    return Written(changes, edits)


def _staged(files: Mapping[str, bytes], folder: Path) -> Path:
    """A new folder inside with all the files, if it has the lock."""
    staging = Path(tempfile.mkdtemp(dir=folder, prefix=STAGING))
    try:
        for name in _lock_last(files):
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).write_bytes(files[name])
    except BaseException:
        shutil.rmtree(staging)
        raise
    return staging


def _lock_last(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (name == LOCK, name))


def _settle(staged: Path | None, path: Path) -> None:
    """Moves a staged file to its path; without one, deletes what is there."""
    if staged is None:
        path.unlink()
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged, path)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Locks the folder itself; the system releases the lock when the process ends."""
    if sys.platform == "win32":
        yield
        return
    descriptor, end = os.open(folder, os.O_RDONLY), time.monotonic() + PATIENCE
    try:
        while not _locked(descriptor):
            if time.monotonic() > end:
                message = f"another dsc has been writing to {folder.as_posix()} for {PATIENCE:g} seconds"
                raise DscError([Finding("DSC042", message, help="wait for it, or end it")])
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _inside(folder: Path, name: str) -> Path:
    """The path of a file, refused if a link leads out of the folder."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        message = f"{path.as_posix()} leads out of {folder.as_posix()}"
        raise DscError([Finding("DSC041", message, help="remove the link")])
    return path
