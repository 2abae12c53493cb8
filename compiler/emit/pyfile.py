"""One Python file: header, docstring, the imports and constants that the body really uses, the body."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Collection, Iterable, Mapping

from dsc.compiler.emit.printer import WIDTH
from dsc.compiler.graph.constants import Constant, Constants
from dsc.compiler.graph.dim import Symbol, T

# What a name in the body needs at the top of the file; the order is the order of printing.
IMPORTS = (
    ("math", "import math", 0),
    ("Callable", "from collections.abc import Callable", 0),
    ("Any", "from typing import Any", 0),
    ("Self", "from typing import Self", 0),
    ("torch", "import torch", 1),
    ("F", "import torch.nn.functional as F", 1),
    ("Tensor", "from torch import Tensor", 1),
    ("nn", "from torch import nn", 1),
)


def used_names(source: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}


def defined_names(source: str) -> list[str]:
    """Top-level constants, functions and classes."""
    names: list[str] = []
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            names.append(statement.name)
        elif isinstance(statement, ast.Assign):
            names += [target.id for target in statement.targets if isinstance(target, ast.Name)]
    return names


def imports(used: set[str], local: Iterable[tuple[str, str]] = ()) -> str:
    """The import lines for the names used: standard library, libraries, then the package's own modules."""
    groups: list[list[str]] = [[], [], []]
    for name, line, group in IMPORTS:
        if name in used:
            groups[group].append(line)
    if {"Tensor", "nn"} <= used:
        groups[1] = [*groups[1][:-2], "from torch import Tensor, nn"]
    wanted: dict[str, list[str]] = {}
    for module, name in local:
        if name in used:
            wanted.setdefault(module, []).append(name)
    groups[2] = [f"from {module} import {', '.join(sorted(n, key=_kind))}" for module, n in sorted(wanted.items())]
    return "\n\n".join("\n".join(group) for group in groups if group)


def _kind(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, as isort has them."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def constants(table: Constants, used: set[str], imported: Collection[str] = ()) -> str:
    """The constants used, and those that they are made of, in the order of the spec, less those imported."""
    entries = {constant.name: constant for constant in table}
    known = entries.keys() - imported
    wanted: set[str] = set()
    frontier = used & known
    while frontier:
        wanted |= frontier
        frontier = {n for name in frontier for n in used_names(entries[name].text)} & known - wanted
    return "\n".join(line for section in _sections(entries, wanted) for line in section)


def _sections(entries: dict[str, Constant], wanted: set[str]) -> list[list[str]]:
    """Constants of one section of the spec stand together; a derived one stands with the last that it is made of."""
    order = list(entries)
    section_of: dict[str, str] = {}
    groups: dict[str, list[str]] = {}
    for name in order:
        constant = entries[name]
        made_of = [n for n in order if n in used_names(constant.text)]
        key = constant.origin.split(" ")[0]
        section_of[name] = section_of[made_of[-1]] if made_of else re.split(r"[.\[]", key)[0] if "." in key else ""
        if name in wanted:
            comment = f"  # {constant.origin}" if constant.origin else ""
            groups.setdefault(section_of[name], []).append(f"{name} = {constant.text}{comment}")
    return [["", *group] if index else group for index, group in enumerate(groups.values())]


def legend(symbols: Iterable[Symbol], body: str, sizes: Mapping[str, str] | None = None) -> str:
    """What the letters in the shape comments stand for; `sizes` says it of those that are known at run time."""
    prose = " ".join(re.findall(r"#.*|\"\"\"[^\"]*\"\"\"", body))
    letters = {letter for shape in re.findall(r"\[[^\]]*\]", prose) for letter in re.findall(r"\b[A-Z]\b", shape)}
    cached = "C cached positions with the new ones"
    runtime = sizes or {"B": "B batch", "S": "S sequence", "T": f"T = {T.definition}", "C": cached}
    parts = [text for letter, text in runtime.items() if letter in letters]
    parts += [f"{symbol.letter} {symbol.name}" for symbol in symbols if symbol.letter in letters]
    return textwrap.fill(f"Shapes: {', '.join(parts)}.", WIDTH, subsequent_indent="    ")
