"""What differs between two specs: their keys, and the files that they compile to."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dsc.spec.model import ModelSpec
from dsc.spec.words import flat

HASH = re.compile(r"\b[0-9a-f]{64}\b")


@dataclass(frozen=True)
class Changed:
    """One thing on both sides; None where a side does not have it, or has it as null."""

    name: str
    first: object
    second: object


@dataclass(frozen=True)
class FileChange:
    path: str
    change: Literal["added", "removed", "changed"]
    diff: str
    """Unified."""

    @property
    def only_hashes(self) -> bool:
        """Whether nothing differs but hashes, which only say that something else does."""
        old, new = (HASH.sub("", "".join(_side(self.diff, sign))) for sign in "-+")
        return self.change == "changed" and old == new


def spec_changes(first: ModelSpec, second: ModelSpec) -> list[Changed]:
    """Every key whose value differs, defaults filled in, in the schema's order."""
    ours, theirs = (dict(flat(spec.model_dump())) for spec in (first, second))
    return [
        Changed(key, ours.get(key), theirs.get(key))
        for key in dict.fromkeys([*ours, *theirs])
        if ours.get(key) != theirs.get(key)
    ]


def file_changes(first: Mapping[str, str], second: Mapping[str, str]) -> list[FileChange]:
    """Every file of either package that differs, by path."""
    return [
        FileChange(path, _change(path, first, second), unified(first.get(path, ""), second.get(path, ""), path))
        for path in sorted({*first, *second})
        if first.get(path) != second.get(path)
    ]


def unified(old: str, new: str, path: str) -> str:
    """As git shows it; a missing final line break is added."""
    lines = difflib.unified_diff(old.splitlines(True), new.splitlines(True), f"a/{path}", f"b/{path}")
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


def _side(diff: str, sign: str) -> list[str]:
    """The lines of one side of a unified diff, after the two that name the files."""
    return [line[1:] for line in diff.splitlines(True)[2:] if line.startswith(sign)]


def _change(path: str, first: Mapping[str, str], second: Mapping[str, str]) -> Literal["added", "removed", "changed"]:
    if path not in first:
        return "added"
    return "changed" if path in second else "removed"
