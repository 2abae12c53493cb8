"""model.py of a package: the classes of the graph, and the helpers that their lines call."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from dsc.compiler.emit.classes import classes
from dsc.compiler.emit.file import File, FilePrinter
from dsc.compiler.emit.printer import Printer
from dsc.compiler.emit.pyfile import imports, legend, local_imports, names
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import Op

KERNELS = "kernels."  # a requirement of this kind, kernels.<module>.<function>, is no helper in the file
TRAIN = "train."  # nor is one of this kind, train.<module>.<function>
RECOMPUTE = f"{TRAIN}recompute."


class Definition(NamedTuple):
    """A class or a function of a module."""

    name: str
    text: str


class Helper(NamedTuple):
    """A helper, with the prefix that its name and its constants get."""

    prefix: str
    name: str


def requirements(graph: Graph) -> dict[Helper, Op]:
    """Every helper that some line calls, with the op that wants it first, in order of need."""
    found: dict[Helper, Op] = {}
    for block in graph.blocks.values():
        for node in block.nodes():
            for name in node.op.requires:
                found.setdefault(Helper(node.op.prefix, name), node.op)
    return found


def helpers(graph: Graph, printer: Printer, besides: Collection[Helper] = ()) -> list[Definition]:
    """The printed helpers, less those that stand elsewhere; those that others build on first."""
    return helpers_of(requirements(graph), printer, besides)


def helpers_of(needed: Mapping[Helper, Op], printer: Printer, besides: Collection[Helper] = ()) -> list[Definition]:
    """The same for these requirements."""
    wanted = [(need, op) for need, op in needed.items() if "." not in need.name and need not in besides]
    order = sorted(wanted, key=lambda item: (item[0].name != "upcast", not item[0].name.startswith("rotary_table")))
    return [_helper(printer, need.name, op) for need, op in order]


def _helper(printer: Printer, name: str, op: Op) -> Definition:
    """Where several templates define the same function, each says its name."""
    module = printer.templates.get_template(f"helpers/{name}.py.jinja").make_module({"op": op})
    return Definition(getattr(module, "name", name), str(module))


def kernel_functions(graph: Graph) -> list[tuple[str, str]]:
    """The functions of the package's kernels/ folder that the graph's lines call: (module, name)."""
    return _kernels_among(need.name for need in requirements(graph))


def _kernels_among(required: Iterable[str]) -> list[tuple[str, str]]:
    wanted = sorted({name.removeprefix(KERNELS) for name in required if name.startswith(KERNELS)})
    return [(module, name) for module, _, name in (path.partition(".") for path in wanted)]


def recompute_functions(graph: Graph) -> list[str]:
    """The functions of train/recompute.py that the graph's lines call."""
    names = (need.name for need in requirements(graph))
    return sorted({name.removeprefix(RECOMPUTE) for name in names if name.startswith(RECOMPUTE)})


def imported(graph: Graph, root: str, train: str) -> list[tuple[str, str]]:
    """The functions of other files that the graph's lines call: (module, name); `root` and `train` are prefixes."""
    return imported_among([need.name for need in requirements(graph)], root, train)


def imported_among(required: Collection[str], root: str, train: str) -> list[tuple[str, str]]:
    """The same for these requirements."""
    kernels = [(f"{root}kernels.{module}", name) for module, name in _kernels_among(required)]
    trained = sorted({name.removeprefix(TRAIN) for name in required if name.startswith(TRAIN)})
    return [*kernels, *((f"{train}{module}", name) for module, _, name in (path.partition(".") for path in trained))]


def definitions(graph: Graph, plain: Graph, printer: Printer) -> list[Definition]:
    """What model.py defines, in its order."""
    printed = classes(graph, plain, printer)
    return [*helpers(graph, printer), *(Definition(name, text) for name, text in printed.items())]


def module_body(parts: list[Definition]) -> str:
    return "\n\n\n".join(part.text.strip("\n") for part in parts) + "\n"


def model_file(files: FilePrinter, graph: Graph, parts: list[Definition]) -> File:
    body = module_body(parts)
    used = names(body)
    return files.file(
        "model.py",
        "model/model.py",
        legend=legend(graph.constants.symbols(), body),
        imports=imports(used),
        local=local_imports(used, imported(graph, ".", ".train.")),
        body=body,
    )
