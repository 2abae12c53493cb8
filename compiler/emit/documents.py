"""Of train/, the classes that stand in for the model's own where a row holds several documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dsc.compiler.emit.classes import Method, method
from dsc.compiler.emit.file import File, FilePrinter
from dsc.compiler.emit.model import Definition, helpers, imported, module_body
from dsc.compiler.emit.printer import Printer
from dsc.compiler.emit.pyfile import imports, legend, local_imports, names
from dsc.compiler.graph.block import Block
from dsc.compiler.graph.graph import Graph
from dsc.compiler.passes.context import STARTS
from dsc.compiler.passes.packed import PREFIX, handed_starts
from dsc.compiler.passes.stages import LOSS
from dsc.compiler.passes.tensor import of_plain

FILE = "document_layers"
SIZES = {"B": "B batch", "S": "S sequence", "C": "C = S"}


@dataclass(frozen=True)
class _Apart:
    """What templates/train/document_layers.py.jinja prints of a class."""

    name: str
    base: str
    methods: tuple[Method, ...]


def documents_file(files: FilePrinter, graph: Graph, model: Sequence[Definition]) -> File:
    """Of each class whose methods are told where documents begin, one that inherits all else."""
    printer = Printer(files.templates)
    told = told_in_model(graph)
    bases = dict.fromkeys(block.class_name for block in told)
    apart = [
        _Apart(f"{PREFIX}{base}", base, tuple(method(block, printer) for block in told if block.class_name == base))
        for base in bases
    ]
    body = module_body(document_helpers(graph, printer, model))
    lines = "\n".join(line for one in apart for method in one.methods for line in method.lines)
    used = names(f"{body}\n{lines}") | {*bases, "Model", "Tensor", "nn", "torch"}
    only = Graph({block.key: block for block in told}, graph.constants)
    offered = [*imported(only, "..", "."), *(("..model", part.name) for part in model)]
    return files.file(
        f"train/{FILE}.py",
        f"train/{FILE}.py",
        apart=apart,
        legend=legend(graph.constants.symbols(), f"{body}\n{lines}", SIZES),
        imports=imports(used),
        local=local_imports(used, offered),
        body=body,
    )


def told_in_model(graph: Graph) -> list[Block]:
    """The model's own blocks that are told where documents begin, less shares that ranks have of them."""
    return [block for block in handed_starts(graph) if block.class_name == of_plain(block.class_name)]


def told_class(block: Block) -> str:
    """The class that a share of this block stands in for: of the model, or that which is told of documents."""
    plain = of_plain(block.class_name)
    return f"{PREFIX}{plain}" if any(value.name == STARTS for value in block.inputs) else plain


def document_helpers(graph: Graph, printer: Printer, model: Sequence[Definition]) -> list[Definition]:
    """What lines about documents call, less what model.py has; nothing where documents are joined."""
    if not (told := told_in_model(graph)):
        return []
    defined = {part.name for part in model}
    only = Graph({block.key: block for block in (*told, graph.blocks[LOSS])}, graph.constants)
    return [part for part in helpers(only, printer) if part.name not in defined]


def from_documents(graph: Graph, printer: Printer, model: Sequence[Definition]) -> list[tuple[str, str]]:
    """The same and the classes, as what other files of train/ may import: (module, name)."""
    classes = dict.fromkeys(told_class(block) for block in told_in_model(graph))
    named = [part.name for part in document_helpers(graph, printer, model)]
    return [(f".{FILE}", name) for name in (*classes, *named)]
