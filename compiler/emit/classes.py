"""Blocks to classes: which attributes a class makes, and its methods, ready to print."""

from __future__ import annotations

from dataclasses import dataclass

from dsc.compiler.emit.printer import Printer
from dsc.compiler.graph.block import Block
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import Op


@dataclass(frozen=True)
class Declaration:
    name: str
    expression: str


@dataclass(frozen=True)
class Method:
    name: str
    signature: str
    returns: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Class:
    name: str
    doc: str
    constructor: str
    declarations: tuple[Declaration, ...]
    construction: tuple[str, ...]
    overrides: tuple[str, ...]
    methods: tuple[Method, ...]


def classes(graph: Graph, plain: Graph, printer: Printer) -> dict[str, str]:
    """The printed classes by name, leaves first. `plain` is the graph without kernels; see `declarations`."""
    names = dict.fromkeys(block.class_name for block in graph.blocks.values())
    template = printer.templates.get_template("model/class.py.jinja")
    return {name: template.render({"class": describe(graph, plain, printer, name)}) for name in names}


def describe(graph: Graph, plain: Graph, printer: Printer, name: str) -> Class:
    blocks = graph.methods(name)
    arguments = {symbol.name: symbol for block in blocks for symbol in block.arguments}
    return Class(
        name=name,
        doc=next((block.class_doc for block in blocks if block.class_doc), name),
        constructor=", ".join(["self", *(f"{argument}: int" for argument in arguments)]),
        declarations=declarations(blocks, plain.methods(name), printer),
        construction=("self.init_weights()",) if name == graph.root else (),
        overrides=tuple(dict.fromkeys(text for op in holders(blocks) if (text := printer.override(op)))),
        methods=tuple(method(block, printer) for block in blocks),
    )


def holders(blocks: tuple[Block, ...]) -> list[Op]:
    """The ops that declare attributes of a class."""
    return [op for block in blocks for node in block.nodes() for op in node.op.holders()]


def declarations(blocks: tuple[Block, ...], plain: tuple[Block, ...], printer: Printer) -> tuple[Declaration, ...]:
    """Each attribute once; parts of a module list in the order of the schedule.

    The order is that of first use in the plain methods, whatever kernels made of them: parameters are drawn in it, and
    a seed means the same weights on any machine.
    """
    found: dict[str, list[str]] = {}
    for op in holders(blocks):
        expression = printer.declaration(op)
        name = op.attribute()
        if expression is not None and name is not None and expression not in found.setdefault(name, []):
            found[name].append(expression)
    order = list(dict.fromkeys(op.attribute() for op in holders(plain)))
    return tuple(Declaration(name, _joined(name, found[name])) for name in sorted(found, key=order.index))


def _joined(name: str, parts: list[str]) -> str:
    if parts[0].startswith("["):
        return f"nn.ModuleList({' + '.join(parts)})"
    assert len(parts) == 1, f"{name} is declared in two ways: {parts}"
    return parts[0]


def method(block: Block, printer: Printer) -> Method:
    return Method(block.method, signature(printer.owner, block), returns(block), tuple(printer.body(block, block.doc)))


def signature(first: str, block: Block) -> str:
    return ", ".join([first, *(f"{value.name}: {value.type.annotation}" for value in block.inputs)])


def returns(block: Block) -> str:
    kinds = [value.type.annotation for value in block.outputs]
    if not kinds:
        return "None"
    return kinds[0] if len(kinds) == 1 else f"tuple[{', '.join(kinds)}]"
