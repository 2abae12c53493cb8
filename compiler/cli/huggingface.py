"""dsc import, dsc export."""

from __future__ import annotations

import json
from pathlib import Path

import click

from dsc.compiler.cli.arguments import PATH, output_option, spec_argument
from dsc.compiler.cli.console import deliver


@click.command("import")
@click.argument("path", type=PATH)
@output_option("the spec")
def import_command(path: str, output: str | None) -> None:
    """A Hugging Face config.json, or a folder that holds one, to a spec.

    What a config says and a spec cannot is an error, never left out.
    """
    from dsc.compiler.hf import import_path

    deliver(import_path(Path(path)), output)


@click.command("export")
@spec_argument
@output_option("the config")
def export_command(spec: str, output: str | None) -> None:
    """A spec to the config.json of the Hugging Face model type that computes the same."""
    from dsc.compiler.hf import export_config
    from dsc.spec.loader import load

    deliver(json.dumps(export_config(load(spec)), indent=2) + "\n", output)
