"""All that dsc prints. Tables and colours go through rich, which honours NO_COLOR, FORCE_COLOR and pipes."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dsc.spec.errors import Finding

WIDE = 200  # columns, where no terminal says how wide it is

# In a report of findings, what stands out: the code, the carets, the cure.
HIGHLIGHTS = {r"(?m)^(?:\S.*?: )?(error\[DSC\d+\])": "bold red", r"(?m)^ +\| +(\^+)$": "red", r"(?m)^(help:)": "cyan"}

DIFF_STYLES = {"---": "bold", "+++": "bold", "@@": "cyan", "+": "green", "-": "red"}


def console(stderr: bool = False) -> Console:
    """Made anew for each use, because the stream and the environment may be a test's."""
    from rich.console import Console

    found = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not found.is_terminal:
        found.width = WIDE
    return found


def say(text: str | Text, stderr: bool = False, end: str = "\n") -> None:
    """One line or more, never wrapped."""
    if isinstance(text, str):
        click.echo(text + end, nl=False, err=stderr)  # rich takes long to import
    else:
        console(stderr).print(text, soft_wrap=True, end=end)


def tell(text: str, indent: str = "") -> None:
    """Sentences, in lines that the terminal has room for."""
    say(textwrap.fill(text, console().width, initial_indent=indent, subsequent_indent=indent, break_long_words=False))


def give_verdict(word: str, good: bool, text: str) -> None:
    """The line that an answer starts with: the verdict, and on what."""
    from rich.text import Text

    say(Text.assemble((word, "bold green" if good else "bold red"), f": {text}"))


def show(table: Table) -> None:
    """In the width that there is; without the blanks at the ends of lines, which rich fills up."""
    made = console()
    with made.capture() as captured:
        made.print(table)
    click.echo(re.sub(" +$", "", captured.get(), flags=re.MULTILINE), nl=False)


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, sort_keys=True))


def deliver(text: str, output: str | None) -> None:
    """A text to a file, or to standard output."""
    if output is None:
        click.echo(text, nl=False)
    else:
        Path(output).write_text(text, encoding="utf-8", newline="\n")
        say(f"wrote {output}")


def report(findings: Sequence[Finding], sources: Mapping[str, str] | None = None) -> None:
    """Findings for a person, on standard error; `sources`: the texts of what is no file."""
    from rich.text import Text

    from dsc.spec.report import render, sources_of

    text = Text(render(findings, "human", {**sources_of(findings), **(sources or {})}), end="")
    for pattern, style in HIGHLIGHTS.items():
        for found in re.finditer(pattern, text.plain):
            text.stylize(style, *found.span(1))
    say(text, stderr=True, end="")


def show_diff(diff: str) -> None:
    from rich.text import Text

    text = Text(end="")
    for line in diff.splitlines(True):
        style = next((style for start, style in DIFF_STYLES.items() if line.startswith(start)), "")
        text.append(line, style)
    say(text, end="")
