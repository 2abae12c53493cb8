"""Findings as text for a terminal, as JSON and as annotations of GitHub."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from dsc.spec.errors import Finding, Position
from dsc.spec.text import LINE_BREAK, MAX_BYTES

Format = Literal["human", "json", "github"]

WIDTH = 100  # of the source line that is shown


def render(findings: Sequence[Finding], format: Format, sources: Mapping[str, str]) -> str:
    """All findings, a line break at the end. `sources`: the texts of the files that positions name, where known."""
    if format == "json":
        return json.dumps({"findings": [_record(finding) for finding in findings]}, indent=2, sort_keys=True) + "\n"
    if format == "github":
        return "".join(_annotation(finding) + "\n" for finding in findings)
    return "\n".join(_paragraph(finding, sources) + "\n" for finding in findings)


def sources_of(findings: Sequence[Finding]) -> dict[str, str]:
    """The files that findings point into, read again; those that cannot be read are left out."""
    files = {finding.position.file for finding in findings if finding.position is not None}
    sources = {}
    for file in sorted(files):
        try:
            if Path(file).is_file():
                with Path(file).open("rb") as opened:
                    sources[file] = opened.read(MAX_BYTES).decode("utf-8-sig", "replace")
        except (OSError, ValueError):
            continue
    return sources


def _paragraph(finding: Finding, sources: Mapping[str, str]) -> str:
    lines = [_printable(f"{_place(finding)}error[{finding.code}]: {finding.message}")]
    lines += _excerpt(finding, sources)
    if finding.help is not None:
        lines.append(_printable(f"help: {finding.help}"))
    return "\n".join(lines)


def _place(finding: Finding) -> str:
    position = finding.position
    return "" if position is None else f"{position.file}:{position.line}:{position.column}: "


def _excerpt(finding: Finding, sources: Mapping[str, str]) -> list[str]:
    """The line of the finding with its key underlined; of a long line the part around it."""
    position = finding.position
    if position is None or position.file not in sources:
        return []
    lines = LINE_BREAK.split(sources[position.file])
    if position.line > len(lines) or not lines[position.line - 1].strip():
        return []
    line, column = _printable(lines[position.line - 1]), position.column - 1
    start = max(0, column - WIDTH // 2) if len(line) > WIDTH else 0
    key = str(finding.key[-1]) if finding.key else ""
    length = len(key) if key and line.startswith(key, column) else 1
    number = str(position.line)
    gutter = " " * len(number)
    caret = " " * (column - start) + "^" * length
    return [f" {number} | {line[start : start + WIDTH]}".rstrip(), f" {gutter} | {caret}"]


def _record(finding: Finding) -> dict[str, object]:
    """One flat object, with every field in every finding."""
    record = asdict(finding)
    position = record.pop("position") or {"file": None, "line": None, "column": None}
    return {**record, **position}


def _annotation(finding: Finding) -> str:
    text = finding.message if finding.help is None else f"{finding.message}\nhelp: {finding.help}"
    return annotation(finding.code, text, finding.position)


def annotation(title: str, text: str, position: Position | None) -> str:
    """A workflow command: https://docs.github.com/actions/reference/workflow-commands-for-github-actions"""
    properties = {}
    if position is not None:
        properties = {"file": position.file, "line": str(position.line), "col": str(position.column)}
    properties["title"] = title
    listed = ",".join(f"{name}={_escaped(value, in_property=True)}" for name, value in properties.items())
    return f"::error {listed}::{_escaped(text)}"


def _escaped(text: str, in_property: bool = False) -> str:
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if in_property else text


def _printable(text: str) -> str:
    """One line that a terminal shows as it is: a file's name or text may hold anything."""
    return "".join(character if character.isprintable() else "?" for character in text.replace("\t", " "))
