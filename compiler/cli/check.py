"""dsc check."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dsc.compiler.cli.arguments import complete_spec
from dsc.compiler.cli.console import report, say
from dsc.compiler.cli.exits import Exit

if TYPE_CHECKING:
    from dsc.spec.errors import Finding
    from dsc.spec.report import Format


@click.command()
@click.argument("specs", metavar="SPEC...", nargs=-1, required=True, shell_complete=complete_spec)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["human", "json", "github"]),
    default="human",
    show_default=True,
    help="github: annotations of a pull request.",
)
@click.pass_context
def check(ctx: click.Context, specs: tuple[str, ...], format_: Format) -> None:
    """Check specs: schema and semantics, all errors of all files at once.

    Exits with 2 if a spec is bad.
    """
    from dsc.spec.errors import DscError
    from dsc.spec.loader import load
    from dsc.spec.report import render

    findings: list[Finding] = []
    for spec in specs:
        try:
            load(spec)
        except DscError as error:
            findings += error.findings
        else:
            if format_ == "human":
                say(f"{spec}: ok")
    if format_ != "human":
        click.echo(render(findings, format_, {}), nl=False)
    elif findings:
        report(findings)
    if findings:
        ctx.exit(Exit.BAD_INPUT)
