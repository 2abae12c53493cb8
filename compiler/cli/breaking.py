"""dsc breaking."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import click

from dsc.compiler.cli.arguments import complete_spec
from dsc.compiler.cli.exits import Exit

if TYPE_CHECKING:
    from dsc.compiler.facts.breaking_rules import Category

CATEGORIES = ("checkpoint", "meaning", "python", "plan")


@click.command()
@click.argument("specs", metavar="[OLD] NEW", nargs=-1, required=True, shell_complete=complete_spec)
@click.option("--against", metavar="REVISION", help="OLD is NEW's file as this git revision has it.")
@click.option("--only", type=click.Choice(CATEGORIES), multiple=True, help="Look for these breaks; repeatable.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["human", "json", "github"]),
    default="human",
    show_default=True,
    help="github: annotations of a pull request.",
)
@click.pass_context
def breaking(
    ctx: click.Context, specs: tuple[str, ...], against: str | None, only: tuple[str, ...], format_: str
) -> None:
    """What the change from OLD to NEW breaks, by category.

    \b
    checkpoint: does a checkpoint of OLD load in NEW?
    meaning: does the model compute the same from it?
    python: do imports and calls of the package still work?
    plan: do caches and plans of OLD still fit?

    Exits with 1 if anything breaks. `dsc explain CODE` has a page for each rule.
    """
    from dsc.compiler.cli.breaking_report import at_revision, report_breaks, side
    from dsc.compiler.facts.breaking import breaks
    from dsc.spec.loader import load

    if len(specs) != (2 if against is None else 1):
        raise click.UsageError("give OLD and NEW, or NEW and --against REVISION")
    new = load(specs[-1])
    old = load(specs[0]) if against is None else at_revision(specs[0], against)
    chosen = cast("tuple[Category, ...]", only or CATEGORIES)
    found = [breach for breach in breaks(side(old), side(new)) if breach.rule.category in chosen]
    names = (specs[0] if against is None else f"{against}:{specs[0]}", specs[-1])
    report_breaks(found, names, chosen, format_)
    if found:
        ctx.exit(Exit.SAID_NO)
