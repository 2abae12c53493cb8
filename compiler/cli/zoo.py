"""dsc zoo."""

from __future__ import annotations

import json

import click

from dsc.compiler.cli.arguments import complete_name, json_option, zoo_file
from dsc.compiler.cli.console import print_json, show
from dsc.spec.zoo import FIGURES


@click.command()
@click.argument("name", required=False, shell_complete=complete_name)
@json_option
def zoo(name: str | None, as_json: bool) -> None:
    """The models and clusters that ship with dsc; with NAME, the file of that one.

    A model's name stands for its spec in every verb, a cluster's for `cluster.kind` in a spec.
    """
    if name is not None:
        if as_json:
            raise click.UsageError("--json is for the list; a NAME prints its file")
        click.echo(zoo_file(name), nl=False)
        return
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    if as_json:
        print_json(figures)
        return
    from dsc.compiler.cli.zoo_tables import clusters_table, models_table

    show(models_table(figures["models"]))
    show(clusters_table(figures["clusters"]))
