"""The parameters that several verbs have."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from dsc.spec.zoo import MODELS, names


class SpecType(click.ParamType):
    """The path of a spec, or the name of a model of the zoo; shells complete either."""

    name = "spec"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = [CompletionItem(name) for name in names(MODELS) if name.startswith(incomplete)]
        return [*found, CompletionItem(incomplete, type="file")]


SPEC = SpecType()
PATH = click.Path(path_type=str)

spec_argument = click.argument("spec", type=SPEC)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def output_option(what: str) -> object:
    """-o of the verbs that print a text."""
    return click.option("-o", "--output", type=PATH, help=f"Write {what} to this file, over what is there.")
