"""What dsc compile says about a package."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from dsc.compiler.cli.console import give_verdict, say, show_diff
from dsc.compiler.emit.compare import Changes
from dsc.compiler.emit.lock import LOCK
from dsc.compiler.emit.write import Written
from dsc.compiler.facts.diff import unified


def show_drift(changes: Changes, files: Mapping[str, str], folder: Path, title: str) -> None:
    """A diff of the files that stand on both sides, less the lock's hashes; those that stand on one are named."""
    word = "drift" if changes.drift else "up to date"
    give_verdict(word, not changes.drift, title + _summary(changes, "to write", "to delete"))
    for name in sorted(({*changes.changed, *changes.edited} & files.keys()) - {LOCK}):
        current = (folder / name).read_text(encoding="utf-8", errors="replace")
        show_diff(unified(current, files[name], (folder / name).as_posix()))
    wording = {"missing": changes.new, "stale": changes.stale, "changed": changes.changed}
    for word, names in {**wording, "edited by hand": changes.edited}.items():
        for name in names:
            say(f"{word}: {(folder / name).as_posix()}")


def show_written(written: Written, folder: Path) -> None:
    """How many files, and what became of each edit."""
    say(f"{folder.as_posix()}: {_summary(written.changes, 'written', 'deleted')}")
    edits = written.edits
    for word, names in {"kept": edits.kept, "merged": edits.merged, "clash": edits.clashing}.items():
        for name in names:
            say(f"{word}: {(folder / name).as_posix()}")


def show_next(source: str, folder: Path) -> None:
    package = folder.resolve().name
    if package.isidentifier():
        say(
            f"next: read {(folder / 'README.md').as_posix()}; {shlex.join(['dsc', 'verify', source])}; {_train(folder)}"
        )
    else:
        say(f"note: Python cannot import a folder named {package!r}; rename or copy it", stderr=True)


def _summary(changes: Changes, written: str, deleted: str) -> str:
    """3 files to write, 2 unchanged, 1 edited by hand."""
    count = len(changes.new) + len(changes.changed)
    parts = [f"{count} file{'' if count == 1 else 's'} {written}", f"{len(changes.unchanged)} unchanged"]
    if changes.stale:
        parts.append(f"{len(changes.stale)} {deleted}")
    if changes.edited:
        parts.append(f"{len(changes.edited)} edited by hand")
    return ", ".join(parts)


def _train(folder: Path) -> str:
    """The command that shows how to train the package, from here."""
    parent = folder.parent.as_posix()
    start = "" if parent == "." else f"cd {shlex.quote(parent)} && "
    return f"{start}python -m {folder.resolve().name}.train.train --help"
