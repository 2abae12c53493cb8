"""dsc init."""

from __future__ import annotations

import re
from pathlib import Path

import click

from dsc.compiler.cli.arguments import PATH, complete_model, zoo_file
from dsc.compiler.cli.console import say
from dsc.spec.zoo import MODELS, STARTER

PLACEHOLDER = "my-model"
SCHEMA_LINE = "# yaml-language-server: $schema=dsc.schema.json\n"


@click.command()
@click.argument("file", type=PATH, default="model.yaml")
@click.option("--from", "model", metavar="NAME", shell_complete=complete_model, help="Start from a model of the zoo.")
@click.option("--force", is_flag=True, help="Overwrite FILE if it exists.")
def init(file: str, model: str | None, force: bool) -> None:
    """Write a commented starter spec, or one of the zoo, to FILE (default: model.yaml), named after it.

    Its first line tells editors where the schema is: `dsc schema > dsc.schema.json` puts it there.
    """
    from dsc.compiler.hf.importer import spec_name

    path = Path(file)
    if path.exists() and not force:
        raise click.UsageError(f"{file} exists; name another file, or overwrite it with --force")
    start = STARTER.read_text(encoding="utf-8") if model is None else f"{SCHEMA_LINE}{zoo_file(model, MODELS)}"
    text = re.sub(r"^name: \S+", f"name: {spec_name(path.stem, PLACEHOLDER)}", start, count=1, flags=re.MULTILINE)
    path.write_text(text, encoding="utf-8", newline="\n")
    say(f"wrote {file}; next: dsc check {file}")
