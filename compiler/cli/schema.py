"""dsc schema."""

from __future__ import annotations

import click

from dsc.compiler.cli.console import print_json

# Editors know draft 7; nothing that pydantic makes of our sections is beyond it.
DIALECT = {"$schema": "http://json-schema.org/draft-07/schema#", "$id": "urn:dsc:spec"}


@click.command()
def schema() -> None:
    """The JSON Schema of specs, for editors: dsc schema > dsc.schema.json."""
    from dsc.spec.model import ModelSpec

    print_json({**DIALECT, **ModelSpec.model_json_schema()})
