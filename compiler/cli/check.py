"""dsc check."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from dsc.compiler.cli.arguments import complete_spec
from dsc.compiler.cli.console import report, say
from dsc.compiler.cli.exits import Exit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dsc.spec.errors import Finding
    from dsc.spec.model import ModelSpec
    from dsc.spec.report import Format

STDIN = "<stdin>"
"""What findings call standard input."""


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
    """Check specs: schema and semantics, all errors of all files at once. A SPEC of `-` is standard input.

    Exits with 2 if a spec is bad.
    """
    from dsc.spec.checks import cautions
    from dsc.spec.errors import DscError
    from dsc.spec.loader import load, loads, located
    from dsc.spec.report import render
    from dsc.spec.text import MAX_BYTES

    findings: list[Finding] = []
    typed = sys.stdin.buffer.read(MAX_BYTES + 1) if "-" in specs else b""
    for spec in specs:
        try:
            loaded = loads(typed, STDIN) if spec == "-" else load(spec)
        except DscError as error:
            findings += error.findings
            continue
        if impossible := _impossible(loaded):
            findings += located(impossible, STDIN if spec == "-" else spec, typed if spec == "-" else None)
        else:
            if format_ == "human":
                say(f"{STDIN if spec == '-' else spec}: ok")
                for caution in (*cautions(loaded), *_on_its_cluster(loaded)):
                    say(f"warning: {caution}", stderr=True)
    if format_ != "human":
        click.echo(render(findings, format_, {}), nl=False)
    elif findings:
        report(findings, {STDIN: typed.decode("utf-8-sig", "replace")})
    if findings:
        ctx.exit(Exit.BAD_INPUT)


def _impossible(spec: ModelSpec) -> tuple[Finding, ...]:
    """What nothing on the machines that a spec names can keep to."""
    if spec.cluster is None or spec.placement is None:
        return ()
    from dsc.compiler.kernels.lowering import lowered  # takes long to import
    from dsc.compiler.planner.layout.pins import impossible_pins

    return impossible_pins(lowered(spec).spec)


def _on_its_cluster(spec: ModelSpec) -> Iterator[str]:
    """What `compile` will say of the machines that a spec names."""
    if spec.cluster is None:
        return
    from dsc.compiler.kernels.lowering import lowered  # takes long to import
    from dsc.compiler.planner.layout.pins import refused_pins

    emitted, notes = lowered(spec)
    yield from notes
    if reason := refused_pins(emitted):
        yield f"train: on one device, for {reason}"
