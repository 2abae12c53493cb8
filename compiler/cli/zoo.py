"""dsc zoo."""

from __future__ import annotations

import json

import click

from dsc.compiler.cli.arguments import json_option
from dsc.compiler.cli.console import print_json, show
from dsc.spec.zoo import FIGURES


@click.command()
@json_option
def zoo(as_json: bool) -> None:
    """The models and clusters that ship with dsc.

    A model's name stands for its spec in every verb, a cluster's for `cluster.kind` in a spec.
    """
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    if as_json:
        print_json(figures)
        return
    from dsc.compiler.cli.zoo_tables import clusters_table, models_table

    show(models_table(figures["models"]))
    show(clusters_table(figures["clusters"]))
