"""Compares a package's folder with what would be written there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dsc.compiler.emit.lock import LOCK, Emission, read_lock, sha256

STAGING = ".dsc-"  # how the folder of a write that is not finished starts
CLASH = ".merge"  # how the name of a file ends that shows where an edit and an emission clash


@dataclass(frozen=True)
class Changes:
    """What writing a package would do, by path in the folder."""

    new: tuple[str, ...]
    changed: tuple[str, ...]
    """Differ from what would be emitted; untouched since the last emission."""
    edited: tuple[str, ...]
    """Differ, and were edited by hand since (or were never ours)."""
    stale: tuple[str, ...]
    """Emitted last time, no longer."""
    unchanged: tuple[str, ...]

    @property
    def drift(self) -> bool:
        return bool(self.new or self.changed or self.edited or self.stale)


def compare(files: Mapping[str, str], folder: Path, consumed: frozenset[str] = frozenset()) -> Changes:
    """Compares the files that would be emitted with the folder. Writes nothing.

    Edits of `consumed` are in what would be emitted, which was made from them.
    """
    emitted = _hashes(folder)
    new, changed, edited, unchanged = [], [], [], []
    for name, text in files.items():
        path = folder / name
        if not path.exists():
            new.append(name)
            continue
        current = path.read_bytes()
        if current == text.encode():
            unchanged.append(name)
        elif name == LOCK or name in consumed or sha256(current) in emitted.get(name, ()):
            changed.append(name)
        else:
            edited.append(name)
    stale = [name for name in emitted if name not in files and (folder / name).exists()]
    edited_stale = [name for name in stale if sha256((folder / name).read_bytes()) not in emitted[name]]
    stale = [name for name in stale if name not in edited_stale]
    return Changes(*(tuple(sorted(group)) for group in (new, changed, [*edited, *edited_stale], stale, unchanged)))


def emission_of(name: str, folder: Path) -> Emission | None:
    """What a file began as, before somebody edited it: the emission of a write that was cut short, where it got as far
    as this file, or else the last whole one."""
    for staging in folder.glob(f"{STAGING}*"):
        emission = read_lock(staging / LOCK)
        waiting = any((staging / staged).exists() for staged in (name, name + CLASH))
        if emission is not None and name in emission.hashes and not waiting:
            return emission
    return read_lock(folder / LOCK)


def _hashes(folder: Path) -> dict[str, set[str]]:
    """By name, of the last emission and of those that were cut short after it."""
    hashes: dict[str, set[str]] = {}
    for lock in (folder / LOCK, *folder.glob(f"{STAGING}*/{LOCK}")):
        emission = read_lock(lock)
        for name, digest in emission.hashes.items() if emission is not None else ():
            hashes.setdefault(name, set()).add(digest)
    return hashes
