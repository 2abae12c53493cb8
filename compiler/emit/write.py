"""Files to disk: one write at a time, each file whole, never outside the folder, never over somebody's edits.

A write first lays everything into a folder inside, the lock among it. If it is killed, the next one finds it there:
what it had moved already was emitted, not edited by hand.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dsc.compiler.emit.lock import LOCK, sha256
from dsc.spec.errors import DscError, Finding

if sys.platform != "win32":
    import fcntl

STAGING = ".dsc-"  # how the folder of a write that is not finished starts
PATIENCE = 30.0  # seconds to wait for another write

LockHashes = dict[str, set[str]]


@dataclass(frozen=True)
class Changes:
    """What writing a package would do, by path in the folder."""

    new: tuple[str, ...]
    changed: tuple[str, ...]
    """Differ from what would be emitted, and stand as they were emitted last time."""
    edited: tuple[str, ...]
    """Differ, and were edited by hand since (or were never ours)."""
    stale: tuple[str, ...]
    """Emitted last time, not any more."""
    unchanged: tuple[str, ...]

    @property
    def drift(self) -> bool:
        return bool(self.new or self.changed or self.edited or self.stale)


def compare(files: Mapping[str, str], folder: Path) -> Changes:
    """What stands in the folder against what would be written there."""
    emitted = _emitted_before(folder)
    new, changed, edited, unchanged = [], [], [], []
    for name, text in files.items():
        path = folder / name
        if not path.exists():
            new.append(name)
            continue
        current = _text(path)
        if current == text:
            unchanged.append(name)
        elif name == LOCK or sha256(current) in emitted.get(name, ()):
            changed.append(name)
        else:
            edited.append(name)
    stale = [name for name in emitted if name not in files and (folder / name).exists()]
    edited_stale = [name for name in stale if sha256(_text(folder / name)) not in emitted[name]]
    stale = [name for name in stale if name not in edited_stale]
    return Changes(*(tuple(sorted(group)) for group in (new, changed, [*edited, *edited_stale], stale, unchanged)))


def write(files: Mapping[str, str], folder: Path, force: bool = False) -> Changes:
    """Write what differs; the lock last, so that a crash leaves a difference to see.

    Raises DscError, with nothing written, if files were edited by hand and `force` is not set, or if another write to
    the folder does not end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        return _write(files, folder, force)


def _write(files: Mapping[str, str], folder: Path, force: bool) -> Changes:
    changes = compare(files, folder)
    if changes.edited and not force:
        raise DscError([Finding("DSC040", _edited_message(folder, name), help=_EDITED_HELP) for name in changes.edited])
    wanted = {*changes.new, *changes.changed, *changes.edited} & files.keys()
    unwanted = {*changes.stale, *changes.edited} - files.keys()
    paths = {name: _inside(folder, name) for name in sorted(wanted | unwanted)}
    leftovers = list(folder.glob(f"{STAGING}*"))
    staging = _staged({name: files[name] for name in wanted}, folder)
    try:
        for name in sorted(wanted | unwanted, key=lambda name: (name == LOCK, name)):
            _settle(staging / name if name in wanted else None, paths[name])
    except BaseException:
        if all((staging / name).exists() for name in wanted):
            shutil.rmtree(staging)  # nothing was moved yet
        raise
    for rest in (staging, *leftovers):
        shutil.rmtree(rest)
    return changes


def _staged(files: Mapping[str, str], folder: Path) -> Path:
    """A new folder inside with all the files."""
    staging = Path(tempfile.mkdtemp(dir=folder, prefix=STAGING))
    try:
        for name, text in files.items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).write_text(text, encoding="utf-8", newline="\n")
    except BaseException:
        shutil.rmtree(staging)
        raise
    return staging


def _settle(staged: Path | None, path: Path) -> None:
    """A file to its place; without one, what stands there goes."""
    if staged is None:
        path.unlink()
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged, path)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the folder itself as a lock, which the system lets go of when a process ends."""
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


_EDITED_HELP = "look at the difference with --check; overwrite it with --force, or emit to another folder with -o"


def _edited_message(folder: Path, name: str) -> str:
    return f"{(folder / name).as_posix()} was edited by hand since it was emitted"


def _text(path: Path) -> str:
    """Whatever somebody put there."""
    return path.read_text(encoding="utf-8", errors="replace")


def _emitted_before(folder: Path) -> LockHashes:
    """By name the hashes of the last emission, and of one that was cut short after it; none of what we cannot read."""
    hashes: LockHashes = {}
    for lock in (folder / LOCK, *folder.glob(f"{STAGING}*/{LOCK}")):
        try:
            for name, entry in json.loads(lock.read_text(encoding="utf-8"))["files"].items():
                hashes.setdefault(str(name), set()).add(str(entry["sha256"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return hashes


def _inside(folder: Path, name: str) -> Path:
    """The path of a file, refused if a link leads out of the folder."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        message = f"{path.as_posix()} leads out of {folder.as_posix()}"
        raise DscError([Finding("DSC041", message, help="remove the link")])
    return path
