"""dsc doctor."""

from __future__ import annotations

import click

from dsc.compiler.cli.arguments import json_option
from dsc.compiler.cli.console import print_json, say
from dsc.compiler.cli.exits import Exit


@click.command()
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Versions and environment. Exits with 1 if this installation would not emit what others do."""
    from dsc.compiler.cli.environment import pinned, record, show_environment, version_of

    installed, wanted = version_of("ruff"), pinned("ruff")
    problem = None if installed == wanted else f"ruff is {installed}, and emitted code is formatted by {wanted}"
    if as_json:
        print_json({**record(), "problem": problem})
    else:
        show_environment()
    if problem is not None:
        say(f"problem: {problem}; pip install ruff=={wanted}", stderr=True)
        ctx.exit(Exit.SAID_NO)
