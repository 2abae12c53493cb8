"""dsc schema, dsc explain: the language described."""

from __future__ import annotations

import textwrap

import click

from dsc.compiler.cli.console import console, print_json, say
from dsc.spec.errors import Code
from dsc.spec.pages import PAGES

# Editors know draft 7; nothing that pydantic makes of our sections is beyond it.
DIALECT = {"$schema": "http://json-schema.org/draft-07/schema#", "$id": "urn:dsc:spec"}

WIDTH = 100  # of a line that reads well


@click.command()
def schema() -> None:
    """The JSON Schema of specs, for editors: dsc schema > dsc.schema.json."""
    from dsc.spec.model import ModelSpec

    print_json({**DIALECT, **ModelSpec.model_json_schema()})


@click.command()
@click.argument("code", metavar="CODE", type=click.Choice([*PAGES], case_sensitive=False))
def explain(code: Code) -> None:
    """What an error code means, with an example of wrong and right."""
    from rich.text import Text

    page = PAGES[code]
    text = Text()
    text.append(f"{code}: {page.title}\n\n", "bold")
    text.append(textwrap.fill(page.text, min(WIDTH, console().width)) + "\n")
    for word, example, style in (("wrong", page.wrong, "red"), ("right", page.right, "green")):
        text.append(f"\n{word}:\n", style)
        text.append(textwrap.indent(example, "    ").rstrip("\n") + "\n")
    say(text, end="")
