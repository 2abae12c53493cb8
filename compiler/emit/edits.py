"""What becomes of files that were edited by hand when their package is emitted again.

Where nothing new is emitted for a file, the edit stands. Else both are merged. Where they clash, the file stays as it
is, and one beside it shows both sides; until that one is gone, nothing is written. No line of an edit is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from dsc.compiler.emit.compare import CLASH, emission_of
from dsc.compiler.emit.lock import sha256
from dsc.compiler.emit.merge import Merged, marked, merge, revisions
from dsc.spec.errors import DscError, Finding, Position

EmitAgain = Callable[[str, str], Mapping[str, str]]
"""The spec and the command of a lock -> the files, as today's compiler prints them; none where it cannot."""


def forgotten(spec: str, command: str) -> Mapping[str, str]:
    """Prints nothing again."""
    return {}


@dataclass
class Edits:
    """By path in the folder."""

    kept: list[str] = field(default_factory=list)
    """Nothing new is emitted for these."""
    merged: dict[str, bytes] = field(default_factory=dict)
    clashing: dict[str, Merged] = field(default_factory=dict)

    @property
    def texts(self) -> dict[str, bytes]:
        """What is to be written."""
        return {**self.merged, **{name + CLASH: merged.text for name, merged in self.clashing.items()}}


def reconcile(names: Iterable[str], files: Mapping[str, str], folder: Path, emit_again: EmitAgain) -> Edits:
    """Of the files that were edited. Raises DscError where one cannot be merged, or an earlier clash still stands."""
    refused = [_unresolved(folder, name) for name in files if (folder / (name + CLASH)).exists()]
    edits, again = Edits(), cache(emit_again)
    for name in names:
        if name not in files:
            refused.append(_refusal(folder, name, ", and is not emitted any more", "move it away"))
            continue
        emission = emission_of(name, folder)
        digest = emission.hashes.get(name) if emission is not None else None
        if digest == sha256(files[name]):
            edits.kept.append(name)
            continue
        printed = again(emission.spec, emission.command) if emission is not None else {}
        before = _before(folder / name, digest, printed.get(name, ""))
        merged = merge((folder / name).read_bytes(), before, files[name].encode()) if before is not None else None
        if merged is None:
            why = "how it was emitted is not known" if before is None else "git, which merges edits, did not run"
            refused.append(_refusal(folder, name, f"; {why}", "look at the difference with --check"))
        elif merged.clashes:
            edits.clashing[name] = merged
        else:
            edits.merged[name] = merged.text
    if refused:
        raise DscError(refused)
    return edits


def clash_findings(edits: Edits, folder: Path) -> list[Finding]:
    """Every clash, at its line of the file that shows it."""
    return [
        _clash(folder, name, "the edit by hand and what is emitted now clash", line)
        for name, merged in edits.clashing.items()
        for line in merged.clashes
    ]


def _before(path: Path, digest: str | None, printed: str) -> bytes | None:
    """A file as it was emitted: printed again, or, by another version of the compiler, as git has kept it."""
    if sha256(printed) == digest:
        return printed.encode()
    return next((text for text in revisions(path) if sha256(text) == digest), None)


def _refusal(folder: Path, name: str, why: str, help: str) -> Finding:
    message = f"{(folder / name).as_posix()} was edited by hand since it was emitted{why}"
    return Finding("DSC040", message, help=f"{help}; overwrite it with --force, or emit to another folder with -o")


def _unresolved(folder: Path, name: str) -> Finding:
    lines = marked((folder / (name + CLASH)).read_bytes())
    return _clash(folder, name, "an earlier clash is not resolved", lines[0] if lines else 1)


def _clash(folder: Path, name: str, what: str, line: int) -> Finding:
    path = (folder / name).as_posix()
    help = f"make one of both sides there, then `mv {path}{CLASH} {path}`; or delete it, and {path} stays as it is"
    return Finding("DSC043", f"{path}: {what}", help=help, position=Position(path + CLASH, line, 1))
