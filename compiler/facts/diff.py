"""What differs between two specs: their keys, and the files that they compile to."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dsc.spec.model import ModelSpec
from dsc.spec.words import flat


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
    """As git shows it; a last line without a break gets one."""
    lines = difflib.unified_diff(old.splitlines(True), new.splitlines(True), f"a/{path}", f"b/{path}")
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


def _change(path: str, first: Mapping[str, str], second: Mapping[str, str]) -> Literal["added", "removed", "changed"]:
    if path not in first:
        return "added"
    return "changed" if path in second else "removed"
