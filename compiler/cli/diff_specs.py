"""What differs between two specs, for `dsc diff`."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from rich import box
from rich.table import Table

from dsc.compiler.cli.breaking_report import records, show_breaks, side
from dsc.compiler.cli.console import give_verdict, print_json, say, show, show_diff
from dsc.compiler.cli.measured import Measured, measure
from dsc.compiler.cli.units import as_yaml, ratio
from dsc.compiler.driver import emit
from dsc.compiler.emit.lock import LOCK
from dsc.compiler.facts.breaking import Break, breaks
from dsc.compiler.facts.breaking_rules import CATEGORIES
from dsc.compiler.facts.diff import Changed, FileChange, file_changes, spec_changes
from dsc.spec.loader import load
from dsc.spec.words import dotted


@dataclass(frozen=True)
class Difference:
    names: tuple[str, str]
    """What to call the two: the specs' own names, or their files where those are the same."""
    keys: list[Changed]
    facts: list[Changed]
    files: list[FileChange]


def diff_specs(first: str, second: str, show_files: bool, breaking: bool, hashes: bool, as_json: bool) -> bool:
    found = _difference(first, second)
    broken = breaks(side(load(first)), side(load(second))) if breaking else None
    if as_json:
        _print_record(found, broken, show_files)
    elif found.keys or found.files:
        shown = [file for file in found.files if hashes or not (file.path == LOCK or file.only_hashes)]
        _show(found, shown)
        if broken is not None:
            say("")
            show_breaks(broken, (first, second), CATEGORIES)
        if show_files:
            show_diff("".join(file.diff for file in shown))
    else:
        give_verdict("same", True, f"{first} and {second} compile to one package")
    return bool(found.keys or found.files)


def _difference(first: str, second: str) -> Difference:
    ours, theirs = measure(first), measure(second)
    names = (ours.stats.name, theirs.stats.name)
    return Difference(
        names if names[0] != names[1] else (first, second),
        spec_changes(ours.program.spec, theirs.program.spec),
        _fact_changes(ours, theirs),
        file_changes(emit(ours.program), emit(theirs.program)),
    )


def _print_record(found: Difference, broken: list[Break] | None, show_files: bool) -> None:
    files = [asdict(file) if show_files else {"path": file.path, "change": file.change} for file in found.files]
    keys, facts = [asdict(key) for key in found.keys], [asdict(fact) for fact in found.facts]
    more = {} if broken is None else {"breaking": records(broken)}
    print_json({"spec": keys, "facts": facts, "files": files, **more})


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


def _show(found: Difference, files: list[FileChange]) -> None:
    amounts = ((len(found.keys), "key"), (len(found.facts), "figure"), (len(files), "file"))
    give_verdict("different", False, ", ".join(f"{count} {what}{'s' * (count != 1)}" for count, what in amounts))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", *found.names, "ratio" if found.facts else ""):
        table.add_column(name, justify="left" if not name else "right", overflow="fold")
    for key in found.keys:
        table.add_row(key.name, as_yaml(key.first), as_yaml(key.second))
    table.add_section()
    for fact in found.facts:
        assert isinstance(fact.first, int) and isinstance(fact.second, int)
        table.add_row(fact.name, f"{fact.first:,}", f"{fact.second:,}", ratio(fact.second, fact.first))
    show(table)
    for file in files:
        say(f"{file.change}: {file.path}")
