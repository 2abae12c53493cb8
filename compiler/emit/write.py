"""Files to disk: atomic, never outside the folder, never over somebody's edits."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dsc.compiler.emit.lock import LOCK, sha256
from dsc.spec.errors import DscError, Finding


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
        elif name == LOCK or emitted.get(name) == sha256(current):
            changed.append(name)
        else:
            edited.append(name)
    stale = [name for name in emitted if name not in files and (folder / name).exists()]
    edited_stale = [name for name in stale if sha256(_text(folder / name)) != emitted[name]]
    stale = [name for name in stale if name not in edited_stale]
    return Changes(*(tuple(sorted(group)) for group in (new, changed, [*edited, *edited_stale], stale, unchanged)))


def write(files: Mapping[str, str], folder: Path, force: bool = False) -> Changes:
    """Write what differs; the lock last, so that a crash leaves a difference to see.

    Raises DscError, with nothing written, if files were edited by hand and `force` is not set.
    """
    changes = compare(files, folder)
    if changes.edited and not force:
        raise DscError([Finding("DSC040", _edited_message(folder, name), help=_EDITED_HELP) for name in changes.edited])
    wanted = {*changes.new, *changes.changed, *changes.edited} & files.keys()
    unwanted = {*changes.stale, *changes.edited} - files.keys()
    paths = {name: _inside(folder, name) for name in sorted(wanted | unwanted)}
    for name in sorted(wanted, key=lambda name: (name == LOCK, name)):
        _write_atomically(paths[name], files[name])
    for name in unwanted:
        paths[name].unlink()
    return changes


_EDITED_HELP = "look at the difference with --check; overwrite it with --force, or emit to another folder with -o"


def _edited_message(folder: Path, name: str) -> str:
    return f"{(folder / name).as_posix()} was edited by hand since it was emitted"


def _text(path: Path) -> str:
    """Whatever somebody put there."""
    return path.read_text(encoding="utf-8", errors="replace")


def _emitted_before(folder: Path) -> dict[str, str]:
    """The hashes of the last emission; none if there was none that we can read."""
    try:
        lock = json.loads((folder / LOCK).read_text(encoding="utf-8"))
        return {str(name): str(entry["sha256"]) for name, entry in lock["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _inside(folder: Path, name: str) -> Path:
    """The path of a file, refused if a link leads out of the folder."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        message = f"{path.as_posix()} leads out of {folder.as_posix()}"
        raise DscError([Finding("DSC041", message, help="remove the link")])
    return path


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
