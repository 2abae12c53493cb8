"""dsc verify."""

from __future__ import annotations

from dataclasses import asdict

import click
from rich import box
from rich.table import Table
from rich.text import Text

from dsc.compiler.cli.arguments import json_option, spec_argument
from dsc.compiler.cli.console import console, print_json, say, show
from dsc.compiler.cli.exits import Exit
from dsc.compiler.verify.verify import Check, missing_libraries
from dsc.compiler.verify.verify import verify as run_checks
from dsc.spec.loader import load


@click.command()
@spec_argument
@json_option
@click.pass_context
def verify(ctx: click.Context, spec: str, as_json: bool) -> None:
    """Shrink a spec, emit it and run it here: parameters, gradients, cache, checkpoints, determinism.

    Needs torch and safetensors. Exits with 1 if a check fails.
    """
    loaded = load(spec)
    missing = missing_libraries()
    if missing:
        say(f"error: this runs emitted code, which needs {' and '.join(missing)}", stderr=True)
        say("help: pip install 'dsc-compiler[run]'", stderr=True)
        ctx.exit(Exit.BAD_INPUT)
    with console(stderr=True).status(f"verifying {loaded.name}"):
        checks = run_checks(loaded)
    passed = all(check.passed for check in checks)
    if as_json:
        records = [{**asdict(check), "passed": check.passed} for check in checks]
        print_json({"name": loaded.name, "passed": passed, "checks": records})
    else:
        _show(checks)
    if not passed:
        ctx.exit(Exit.SAID_NO)


def _show(checks: list[Check]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for column in ("measured", "bound"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for check in checks:
        verdict, style = ("passed", "green") if check.passed else ("FAILED", "bold red")
        table.add_row(check.name, _figure(check.measured), _figure(check.bound), Text(verdict, style))
    show(table)
    for check in checks:
        if check.error is not None:
            say(f"{check.name}: {check.error}")
    failed = sum(not check.passed for check in checks)
    say(f"{len(checks)} checks, {failed} failed")


def _figure(number: float | None) -> str:
    """Counts are whole, errors are not."""
    if number is None:
        return "-"
    return str(number) if isinstance(number, int) else f"{number:.1e}"
