"""What differs between two specs, for `dsc diff`."""

from __future__ import annotations

from dataclasses import asdict

from rich import box
from rich.table import Table

from dsc.compiler.cli.console import print_json, say, show, show_diff
from dsc.compiler.cli.measured import Measured, measure
from dsc.compiler.cli.units import as_yaml, ratio
from dsc.compiler.driver import emit
from dsc.compiler.facts.diff import Changed, FileChange, file_changes, spec_changes
from dsc.spec.words import dotted


def diff_specs(first: str, second: str, show_files: bool, as_json: bool) -> bool:
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
        table.add_row(key.name, as_yaml(key.first), as_yaml(key.second))
    table.add_section()
    for fact in facts:
        assert isinstance(fact.first, int) and isinstance(fact.second, int)
        table.add_row(fact.name, f"{fact.first:,}", f"{fact.second:,}", ratio(fact.second, fact.first))
    show(table)
    for file in files:
        say(f"{file.change}: {file.path}")
    say(f"{len(keys)} keys, {len(facts)} figures, {len(files)} files differ")
