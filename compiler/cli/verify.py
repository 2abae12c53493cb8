"""dsc verify."""

from __future__ import annotations

from dataclasses import asdict

import click

from dsc.compiler.cli.arguments import json_option, spec_argument
from dsc.compiler.cli.console import console, print_json, say
from dsc.compiler.cli.exits import Exit


@click.command()
@spec_argument
@json_option
@click.pass_context
def verify(ctx: click.Context, spec: str, as_json: bool) -> None:
    """Shrink a spec, emit it and run it here: parameters, gradients, cache, checkpoints, determinism.

    Needs torch and safetensors. Exits with 1 if a check fails.
    """
    from dsc.compiler.cli.verify_table import show_checks
    from dsc.compiler.verify.verify import missing_libraries
    from dsc.compiler.verify.verify import verify as run_checks
    from dsc.spec.loader import load

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
        show_checks(checks)
    if not passed:
        ctx.exit(Exit.SAID_NO)
