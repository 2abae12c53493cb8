"""The files of kernels/: each one template, filled with the constants of the model and the tiles of the target."""

from __future__ import annotations

import re
from collections.abc import Iterable

from dsc.compiler.emit.file import File, FilePrinter
from dsc.compiler.emit.model import kernel_functions
from dsc.compiler.graph.graph import Graph
from dsc.compiler.kernels.registry import kernel_named
from dsc.compiler.kernels.target import Target

SIBLING = re.compile(r"^from \.(\w+) import", re.MULTILINE)


def kernel_files(printer: FilePrinter, graphs: Iterable[Graph], target: Target | None) -> list[File]:
    """Every kernel that some graph calls, and those that they import."""
    files: dict[str, File] = {}
    for graph in graphs:
        add_kernels(files, printer, [module for module, _ in kernel_functions(graph)], graph, target)
    return list(files.values())


def add_kernels(
    files: dict[str, File], printer: FilePrinter, names: list[str], graph: Graph, target: Target | None
) -> None:
    """Some kernels and those that they import, by name, where they are not there yet."""
    wanted = list(names)
    while wanted:
        if (name := wanted.pop()) not in files:
            files[name] = kernel_file(printer, name, graph, target)
            wanted += SIBLING.findall(files[name].text)


def kernel_file(printer: FilePrinter, name: str, graph: Graph, target: Target | None) -> File:
    """kernels/<name>.py."""
    path = f"kernels/{name}.py"
    told = kernel_named(name).told(graph, printer.spec, target)
    return printer.file(path, path, graph=graph, target=target, **told)
