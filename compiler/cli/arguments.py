"""The parameters that several verbs have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from dsc.spec.zoo import CLUSTERS, MODELS, names, path_of

Command = TypeVar("Command", bound=Callable[..., Any])


def complete_spec(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of the zoo, and files."""
    return [*complete_model(ctx, param, incomplete), CompletionItem(incomplete, type="file")]


def complete_model(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names(MODELS) if name.startswith(incomplete)]


def complete_cluster(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names(CLUSTERS) if name.startswith(incomplete)]


def complete_name(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [*complete_model(ctx, param, incomplete), *complete_cluster(ctx, param, incomplete)]


def zoo_file(name: str, *folders: Path) -> str:
    """The text of a model or a cluster that ships with dsc."""
    path = next((found for folder in folders or (MODELS, CLUSTERS) if (found := path_of(name, folder))), None)
    if path is None:
        raise click.UsageError(f"nothing of the zoo is named {name!r}; `dsc zoo` lists it")
    return path.read_text(encoding="utf-8")


PATH = click.Path(path_type=str)

spec_argument = click.argument("spec", shell_complete=complete_spec)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def output_option(what: str) -> Callable[[Command], Command]:
    """-o of the verbs that print a text."""
    return click.option("-o", "--output", type=PATH, help=f"Write {what} to this file, over what is there.")
