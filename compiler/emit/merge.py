"""Three-way merges and earlier versions of a file, both by git."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

YOURS, BEFORE, NOW = "yours", "as emitted before", "as emitted now"
MARKER = f"<<<<<<< {YOURS}".encode()
REVISIONS = 100  # of a file, newest first, that are looked at
MOST_CLASHES = 127  # that git's exit code counts; above it is an error


@dataclass(frozen=True)
class Merged:
    text: bytes
    clashes: tuple[int, ...]
    """The lines of the text, from 1, where git marks a clash."""


def merge(yours: bytes, before: bytes, now: bytes) -> Merged | None:
    """The changes of two texts to `before`, merged; None without git, or where git takes a text for binary."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (("yours", yours), ("before", before), ("now", now)):
            Path(folder, name).write_bytes(text)
        labels = [word for label in (YOURS, BEFORE, NOW) for word in ("-L", label)]
        run = _git(Path(folder), "merge-file", "-p", "--diff3", *labels, "yours", "before", "now")
    if run is None or run.returncode > MOST_CLASHES:
        return None
    return Merged(run.stdout, marked(run.stdout) if run.returncode else ())


def marked(text: bytes) -> tuple[int, ...]:
    """The lines, from 1, where git's markers of a clash begin."""
    return tuple(number for number, line in enumerate(text.split(b"\n"), 1) if line.rstrip() == MARKER)


def revisions(path: Path) -> Iterator[bytes]:
    """The committed versions of a file, newest first."""
    listed = _git(path.parent, "log", f"--max-count={REVISIONS}", "--format=%H", "--", path.name)
    for commit in listed.stdout.decode().split() if listed is not None and not listed.returncode else ():
        shown = _git(path.parent, "show", f"{commit}:./{path.name}")
        if shown is not None and not shown.returncode:
            yield shown.stdout


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes] | None:
    try:
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=False)
    except OSError:
        return None
