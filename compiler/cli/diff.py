"""dsc diff."""

from __future__ import annotations

import re
from dataclasses import asdict

import click
from rich import box
from rich.table import Table

from dsc.compiler.cli.arguments import complete_spec, json_option
from dsc.compiler.cli.console import print_json, say, show, show_diff
from dsc.compiler.cli.exits import Exit
from dsc.compiler.cli.measured import Measured, measure
from dsc.compiler.cli.units import ratio
from dsc.compiler.driver import emit
from dsc.compiler.facts.diff import Changed, FileChange, file_changes, spec_changes
from dsc.compiler.planner.report.difference import PlanFile, plan_changes, read_plan
from dsc.spec.words import dotted

HASH = re.compile("[0-9a-f]{64}")


@click.command()
@click.argument("first", metavar="A", shell_complete=complete_spec)
@click.argument("second", metavar="B", shell_complete=complete_spec)
@click.option("--files", "show_files", is_flag=True, help="Show the unified diff of the emitted files, too.")
@json_option
@click.pass_context
def diff(ctx: click.Context, first: str, second: str, show_files: bool, as_json: bool) -> None:
    """What differs between two specs (keys, facts and emitted files), or between two plans.

    Exits with 1 if anything does. Comments and the order of keys are no difference.
    """
    plans = [read_plan(first), read_plan(second)]
    if plans[0] is not None and plans[1] is not None:
        different = _diff_plans((first, second), (plans[0], plans[1]), as_json)
    elif plans != [None, None]:
        plan, spec = (first, second) if plans[0] is not None else (second, first)
        raise click.UsageError(f"{plan} is a plan and {spec} is none: compare two plans, or two specs")
    else:
        different = _diff_specs(first, second, show_files, as_json)
    if different:
        ctx.exit(Exit.SAID_NO)


def _diff_specs(first: str, second: str, show_files: bool, as_json: bool) -> bool:
    models = [measure(first), measure(second)]
    keys = spec_changes(models[0].program.spec, models[1].program.spec)
    facts = _fact_changes(*models)
    files = file_changes(*(emit(model.program) for model in models))
    if as_json:
        shown = [asdict(file) if show_files else {"path": file.path, "change": file.change} for file in files]
        print_json({"spec": [asdict(key) for key in keys], "facts": [asdict(fact) for fact in facts], "files": shown})
    elif keys or files:
        _show(models, keys, facts, files)
        if show_files:
            show_diff("".join(file.diff for file in files))
    else:
        say(f"{first} and {second} compile to the same package")
    return bool(keys or files)


def _diff_plans(names: tuple[str, str], plans: tuple[PlanFile, PlanFile], as_json: bool) -> bool:
    changes = plan_changes(*plans)
    if as_json:
        print_json({section: [asdict(one) for one in found] for section, found in changes.items()})
    elif any(changes.values()):
        _show_plans(names, changes)
    else:
        say(f"{names[0]} and {names[1]} are the same plan")
    return any(changes.values())


def _show_plans(names: tuple[str, str], changes: dict[str, list[Changed]]) -> None:
    """Sources are left to --json: their figures are in the table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in (*names, "change"):
        table.add_column(name, justify="right" if name == "change" else "left", overflow="fold")
    for section, found in changes.items():
        table.add_section()
        for one in found:
            if not one.name.endswith(": source"):
                table.add_row(one.name, *(_amount(value, section) for value in (one.first, one.second)), _change(one))
    show(table)
    say(", ".join(f"{section}: {len(found)} entries differ" for section, found in changes.items() if found))


def _amount(value: object, section: str) -> str:
    if section == "memory" and isinstance(value, int):
        return f"{value / 2**30:,.2f} GiB"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,}"
    text = _value(value)
    return f"{text[:12]}..." if HASH.fullmatch(text) else text


def _change(one: Changed) -> str:
    """+12.5%."""
    amounts = [value for value in (one.first, one.second) if isinstance(value, int | float)]
    if len(amounts) < 2 or isinstance(one.first, bool) or not amounts[0]:
        return ""
    return f"{amounts[1] / amounts[0] - 1:+.1%}"


def _fact_changes(first: Measured, second: Measured) -> list[Changed]:
    """Figures that differ, by the names that `dsc stats --json` gives them."""
    ours, theirs = (_figures(asdict(model.stats)) for model in (first, second))
    return [Changed(name, ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]]


def _figures(record: dict[str, object], key: tuple[str, ...] = ()) -> dict[str, int]:
    figures: dict[str, int] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            figures |= _figures(value, (*key, name))
        elif isinstance(value, int):
            figures[dotted((*key, name))] = value
    return figures


def _show(models: list[Measured], keys: list[Changed], facts: list[Changed], files: list[FileChange]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", *(model.stats.name for model in models), "ratio" if facts else ""):
        table.add_column(name, justify="left" if not name else "right", overflow="fold")
    for key in keys:
        table.add_row(key.name, _value(key.first), _value(key.second))
    table.add_section()
    for fact in facts:
        assert isinstance(fact.first, int) and isinstance(fact.second, int)
        table.add_row(fact.name, f"{fact.first:,}", f"{fact.second:,}", ratio(fact.second, fact.first))
    show(table)
    for file in files:
        say(f"{file.change}: {file.path}")
    say(f"{len(keys)} keys, {len(facts)} figures, {len(files)} files differ")


def _value(value: object) -> str:
    """As YAML has it; a dash where the side has no such value."""
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)
