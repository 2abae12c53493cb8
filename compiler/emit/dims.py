"""dims.py of a package: the sizes and numbers of the spec, each once, and what the files make of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dsc.compiler.emit.file import File, FilePrinter
from dsc.compiler.emit.pyfile import imports, names
from dsc.compiler.graph.constants import Constant
from dsc.spec.words import flat


def dims_file(printer: FilePrinter, others: Iterable[File]) -> File:
    """What the other files import, and what that is made of."""
    table = {constant.name: constant for constant in printer.constants}
    wanted: set[str] = set()
    frontier = {name for file in others for name in file.dims}
    while frontier:
        wanted |= frontier
        frontier = {part for name in frontier for part in table[name].made_of} - wanted
    keys = [key for key, _ in flat(printer.spec.model_dump())]
    sections = _sections({name: constant for name, constant in table.items() if name in wanted}, keys)
    body = "\n\n".join("\n".join(map(_line, section)) for section in sections)
    return printer.file("dims.py", "package/dims.py", imports=imports(names(body)), body=body)


def _sections(table: Mapping[str, Constant], keys: list[str]) -> list[list[Constant]]:
    """In the order of the spec, those of one section together; a formula at the end of the last that it reads."""
    place = {key: index for index, key in enumerate(keys)}
    numbers = sorted(
        (constant for constant in table.values() if constant.origin), key=lambda constant: place[constant.origin]
    )
    section_of = {constant.name: constant.section for constant in numbers}
    order = list(dict.fromkeys(section_of.values()))
    groups = {section: [constant for constant in numbers if constant.section == section] for section in order}
    for formula in (constant for constant in table.values() if not constant.origin):
        section_of[formula.name] = max((section_of[part] for part in formula.made_of), key=order.index)
        groups[section_of[formula.name]].append(formula)
    return list(groups.values())


def _line(constant: Constant) -> str:
    return f"{constant.name} = {constant.text}" + (f"  # {constant.origin}" if constant.origin else "")
