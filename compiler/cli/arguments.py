"""The parameters that several verbs have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from dsc.spec.zoo import MODELS, names

Command = TypeVar("Command", bound=Callable[..., Any])


def complete_spec(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of the zoo, and files."""
    found = [CompletionItem(name) for name in names(MODELS) if name.startswith(incomplete)]
    return [*found, CompletionItem(incomplete, type="file")]


PATH = click.Path(path_type=str)

spec_argument = click.argument("spec", shell_complete=complete_spec)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def output_option(what: str) -> Callable[[Command], Command]:
    """-o of the verbs that print a text."""
    return click.option("-o", "--output", type=PATH, help=f"Write {what} to this file, over what is there.")
