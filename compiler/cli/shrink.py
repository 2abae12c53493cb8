"""dsc shrink."""

from __future__ import annotations

import click

from dsc.compiler.cli.arguments import output_option, spec_argument
from dsc.compiler.cli.console import deliver


@click.command()
@spec_argument
@output_option("the spec")
def shrink(spec: str, output: str | None) -> None:
    """The same architecture at toy dims, for tests.

    Kinds, groups, switches and multipliers stay; sizes become small enough to train on a CPU in seconds.
    """
    from dsc.compiler.hf.yaml import to_yaml
    from dsc.spec.loader import load
    from dsc.spec.shrink import shrunk

    original = load(spec)
    small = shrunk(original)
    comment = f"The architecture of {original.name} at toy dims, by `dsc shrink`."
    deliver(to_yaml(small.model_dump(exclude_unset=True), comment), output)
