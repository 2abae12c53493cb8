"""model.py of a package: the classes of the graph, the helpers that their lines call, the constants of both."""

from __future__ import annotations

from collections.abc import Collection

from dsc.compiler.emit.classes import classes
from dsc.compiler.emit.printer import Printer
from dsc.compiler.emit.pyfile import constants, imports, legend, used_names
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import Op

KERNELS = "kernels."  # a requirement of this kind, kernels.<module>.<function>, is no helper in the file


def model_body(graph: Graph, printer: Printer) -> str:
    definitions = [*helpers(graph, printer), *classes(graph, printer)]
    return "\n\n\n".join(text.strip("\n") for text in definitions) + "\n"


Requirement = tuple[str, str]
"""The prefix and the name of a helper."""


def requirements(graph: Graph) -> dict[Requirement, Op]:
    """Every helper that some line calls, with the op that wants it first, in order of need."""
    found: dict[Requirement, Op] = {}
    for block in graph.blocks.values():
        for node in block.nodes():
            for name in node.op.requires:
                found.setdefault((node.op.prefix, name), node.op)
    return found


def helpers(graph: Graph, printer: Printer, besides: Collection[Requirement] = ()) -> list[str]:
    """The printed helper functions, less those that stand elsewhere; those that others build on first."""
    needed = requirements(graph)
    wanted = {one: op for one, op in needed.items() if not one[1].startswith(KERNELS) and one not in besides}

    def rank(one: Requirement) -> tuple[bool, bool]:
        return one[1] != "upcast", not one[1].startswith("rotary_table")

    order = sorted(wanted, key=rank)
    return [printer.templates.get_template(f"helpers/{one[1]}.py.jinja").render(op=wanted[one]) for one in order]


def kernel_functions(graph: Graph) -> list[tuple[str, str]]:
    """The functions of the package's kernels/ folder that the graph's lines call: (module, name)."""
    wanted = sorted({name.removeprefix(KERNELS) for _, name in requirements(graph) if name.startswith(KERNELS)})
    return [(module, name) for module, _, name in (path.partition(".") for path in wanted)]


def model_file(graph: Graph, printer: Printer, name: str, header: str) -> str:
    body = model_body(graph, printer)
    used = used_names(body)
    table = constants(graph.constants, used)
    local = [(f".kernels.{module}", name) for module, name in kernel_functions(graph)]
    return printer.templates.get_template("model/model.py.jinja").render(
        header=header,
        name=name,
        legend=legend(graph.constants.symbols(), body),
        imports=imports(used | used_names(table), local),
        constants=table,
        body=body,
    )
