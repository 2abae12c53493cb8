"""One Python file: the names that its code reads, the imports that they need, the legend of its shapes."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Iterable, Mapping

from dsc.compiler.emit.printer import WIDTH
from dsc.compiler.graph.dim import Symbol, T

# What a name in the body needs at the top of the file; the order is the order of printing.
IMPORTS = (
    ("math", "import math", 0),
    ("Callable", "from collections.abc import Callable", 0),
    ("TYPE_CHECKING", "from typing import TYPE_CHECKING", 0),
    ("Any", "from typing import Any", 0),
    ("Self", "from typing import Self", 0),
    ("cast", "from typing import cast", 0),
    ("torch", "import torch", 1),
    ("dist", "import torch.distributed as dist", 1),
    ("F", "import torch.nn.functional as F", 1),
    ("Tensor", "from torch import Tensor", 1),
    ("nn", "from torch import nn", 1),
)

# Docstrings, comments and strings hold no names; the fields of a formatted string do.
TOKEN = re.compile(
    r'''
    """[\s\S]*?""" | \#.*
    | f"(?P<formatted>(?:[^"\\]|\\.)*)" | "(?:[^"\\]|\\.)*"
    | (?<![\w.])(?P<name>[A-Za-z_]\w*)
    ''',
    re.VERBOSE,
)
FIELD = re.compile(r"\{([^{}]*)")


def names(code: str) -> set[str]:
    """Every identifier in Python code, attributes excepted."""
    found: set[str] = set()
    for token in TOKEN.finditer(code):
        if token["name"]:
            found.add(token["name"])
        elif token["formatted"]:
            found |= names(" ".join(FIELD.findall(token["formatted"])))
    return found


def imports(used: Collection[str]) -> str:
    """The import lines for the names used: standard library, then libraries."""
    groups: list[list[str]] = [[], []]
    for name, line, group in IMPORTS:
        if name in used:
            groups[group].append(line)
    if {"Tensor", "nn"} <= set(used):
        groups[1] = [*groups[1][:-2], "from torch import Tensor, nn"]
    return "\n\n".join("\n".join(group) for group in groups if group)


def local_imports(used: Collection[str], offered: Iterable[tuple[str, str]]) -> str:
    """The import lines for the names used of those that modules of the package offer: (module, name)."""
    wanted: dict[str, list[str]] = {}
    for module, name in offered:
        if name in used:
            wanted.setdefault(module, []).append(name)
    return "\n".join(import_line(module, found) for module, found in sorted(wanted.items()))


def import_line(module: str, found: Iterable[str]) -> str:
    return f"from {module} import {', '.join(sorted(found, key=_kind))}"


def _kind(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, as isort has them."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name.lower()


def legend(symbols: Iterable[Symbol], body: str, sizes: Mapping[str, str] | None = None) -> str:
    """What the letters in the shape comments stand for; `sizes` says it of those that are known at run time."""
    prose = " ".join(re.findall(r"#.*|\"\"\"[^\"]*\"\"\"", body))
    letters = {letter for shape in re.findall(r"\[[^\]]*\]", prose) for letter in re.findall(r"\b[A-Z]\b", shape)}
    cached = "C cached positions with the new ones"
    windowed = "P those that a window shows of them"
    training = {
        "B": "B batch",
        "S": "S sequence",
        "T": f"T = {T.definition}",
        "C": cached,
        "P": windowed,
        "M": "M rows to nodes",
    }
    runtime = sizes or training
    parts = [text for letter, text in runtime.items() if letter in letters]
    named: dict[str, list[str]] = {}
    for symbol in symbols:
        if symbol.letter is not None and symbol.letter in letters:
            named.setdefault(symbol.letter, []).append(symbol.name)
    parts += [f"{letter} {' or '.join(found)}" for letter, found in named.items()]
    whole = [part.replace(" ", "\0") for part in parts]  # a line breaks between two, never inside one
    return textwrap.fill(f"Dims: {', '.join(whole)}.", WIDTH, subsequent_indent="    ").replace("\0", " ")
