"""The pages that `dsc explain` shows."""

from __future__ import annotations

import textwrap

import click
from rich import box
from rich.table import Table
from rich.text import Text

from dsc.compiler.cli.console import console, say, show
from dsc.compiler.cli.explain import titles
from dsc.compiler.facts.breaking_rules import RULES
from dsc.compiler.hf.keys import config_key
from dsc.spec.pages import PAGES
from dsc.spec.reference import Entry, entries
from dsc.spec.words import nearest

WIDTH = 100  # of a line that reads well


def list_codes() -> None:
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    for code, title in titles().items():
        table.add_row(code, title)
    show(table)


def explain_code(code: str) -> bool:
    """Whether there is such a code."""
    error = next((page for known, page in PAGES.items() if known == code), None)
    if error is not None:
        examples = (("wrong", error.wrong, "red"), ("right", error.right, "green"))
        _show(f"{code}: {error.title}", error.text, examples)
    elif code in RULES:
        rule = RULES[code]
        _show(f"{code}: {rule.title} ({rule.category})", rule.text, (("example", rule.example, ""),))
    return error is not None or code in RULES


def explain_key(key: str) -> bool:
    """Whether there is such a key; raises where it is nearly one."""
    known = entries()
    found = [entry for entry in known if key in (entry.key, entry.key.replace("[]", ""))]
    if not found and (close := nearest(key, [entry.key for entry in known])) is not None:
        raise click.UsageError(f"no key is named {key!r}; did you mean {close!r}?")
    for index, entry in enumerate(found):
        say("\n" * bool(index), end="")
        _show(f"{entry.key}{_kinds(entry)}", entry.text, _facts(entry))
    return bool(found)


def _kinds(entry: Entry) -> str:
    return f" (kind: {' or '.join(entry.kinds)})" if entry.kinds else ""


def _facts(entry: Entry) -> tuple[tuple[str, str, str], ...]:
    default = "none: it has to be there" if entry.default is None else entry.default
    name = config_key(entry.key)
    return (
        ("takes", entry.takes, ""),
        ("default", default, ""),
        *((("in config.json of Hugging Face", name, ""),) if name else ()),
    )


def _show(title: str, body: str, parts: tuple[tuple[str, str, str], ...]) -> None:
    """A title, sentences, and fragments under headings, each with a style."""
    width = min(WIDTH, console().width)
    text = Text()
    text.append(f"{title}\n\n", "bold")
    text.append(textwrap.fill(" ".join(body.split()), width) + "\n")
    for word, example, style in parts:
        text.append(f"\n{word}:\n", style)
        text.append(textwrap.indent(example, "    ").rstrip("\n") + "\n")
    say(text, end="")
