"""dsc diff."""

from __future__ import annotations

import click

from dsc.compiler.cli.arguments import complete_spec, json_option
from dsc.compiler.cli.exits import Exit


@click.command()
@click.argument("first", metavar="A", shell_complete=complete_spec)
@click.argument("second", metavar="B", shell_complete=complete_spec)
@click.option("--files", "show_files", is_flag=True, help="Show the unified diff of the emitted files, too.")
@click.option("--breaking", is_flag=True, help="Say what the change breaks, too, as `dsc breaking` does.")
@click.option("--hashes", is_flag=True, help="Show what differs by hashes only, too: dsc.lock.json.")
@json_option
@click.pass_context
def diff(
    ctx: click.Context, first: str, second: str, show_files: bool, breaking: bool, hashes: bool, as_json: bool
) -> None:
    """What differs between two specs (keys, facts and emitted files), or between two plans.

    Exits with 1 if anything does. Comments and the order of keys are no difference.
    """
    from dsc.compiler.cli.diff_plans import diff_plans
    from dsc.compiler.cli.diff_specs import diff_specs
    from dsc.compiler.planner.report.difference import read_plan

    plans = [read_plan(first), read_plan(second)]
    if plans[0] is not None and plans[1] is not None:
        different = diff_plans((first, second), (plans[0], plans[1]), as_json)
    elif plans != [None, None]:
        plan, spec = (first, second) if plans[0] is not None else (second, first)
        raise click.UsageError(f"{plan} is a plan and {spec} is none: compare two plans, or two specs")
    else:
        different = diff_specs(first, second, show_files, breaking, hashes, as_json)
    if different:
        ctx.exit(Exit.SAID_NO)
