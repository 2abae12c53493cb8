"""What differs between two specs: their keys, and the files that they compile to."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from dsc.spec.model import ModelSpec
from dsc.spec.words import dotted


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
    ours, theirs = (dict(_flat(spec.model_dump())) for spec in (first, second))
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


def _flat(section: object, key: tuple[str | int, ...] = ()) -> Iterator[tuple[str, object]]:
    """The scalars of a spec by dotted key, without those that are null; a list of scalars is one value."""
    if isinstance(section, dict):
        for name, value in section.items():
            yield from _flat(value, (*key, name))
    elif isinstance(section, list) and any(isinstance(item, dict) for item in section):
        for index, value in enumerate(section):
            yield from _flat(value, (*key, index))
    elif section is not None:
        yield dotted(key), section
