"""dsc init."""

from __future__ import annotations

from pathlib import Path

import click

from dsc.compiler.cli.arguments import PATH
from dsc.compiler.cli.console import say
from dsc.spec.zoo import STARTER

PLACEHOLDER = "my-model"


@click.command()
@click.argument("file", type=PATH, default="model.yaml")
@click.option("--force", is_flag=True, help="Overwrite FILE if it exists.")
def init(file: str, force: bool) -> None:
    """Write a commented starter spec to FILE (default: model.yaml), named after it.

    Its first line tells editors where the schema is: `dsc schema > dsc.schema.json` puts it there.
    """
    from dsc.compiler.hf.importer import spec_name
    from dsc.spec.loader import loads

    path = Path(file)
    if path.exists() and not force:
        raise click.UsageError(f"{file} exists; name another file, or overwrite it with --force")
    starter = STARTER.read_text(encoding="utf-8")
    text = starter.replace(f"name: {PLACEHOLDER}", f"name: {spec_name(path.stem, PLACEHOLDER)}", 1)
    loads(text, file)  # refuses a name that no package can have
    path.write_text(text, encoding="utf-8", newline="\n")
    say(f"wrote {file}; next: dsc check {file}")
