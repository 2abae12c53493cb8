"""infer/prepare.py of a package: a class for each block, which takes of the model's module what the block reads."""

from __future__ import annotations

from collections.abc import Mapping

from dsc.compiler.emit.header import header
from dsc.compiler.emit.printer import Printer
from dsc.compiler.emit.pyfile import constants, defined_names, imports, legend, used_names
from dsc.compiler.graph.block import Block, Node
from dsc.compiler.graph.graph import Graph
from dsc.compiler.ops.call import CallFunction, CallListedFunction, RepeatFunctions
from dsc.compiler.emit.model import requirements
from dsc.spec.model import ModelSpec

PREPARE = "infer/prepare.py"


def prepare_file(
    printer: Printer, spec: ModelSpec, serving: Graph, training: Graph, model: str, letters: Mapping[str, str]
) -> str:
    taker = Printer(printer.templates, owner="module")
    needed = {name: node.op for block in serving.blocks.values() for node in block.once for name in node.op.requires}
    texts = [
        printer.templates.get_template(f"helpers/{name}.py.jinja").render(op=op)
        for name, op in needed.items()
        if name not in requirements(training)
    ]
    names = dict.fromkeys(block.class_name for block in serving.blocks.values())
    texts += [_class(name, serving, taker) for name in names]
    body = "\n\n\n".join(text.strip("\n") for text in texts) + "\n"
    used = used_names(body)
    local = [("..model", name) for name in defined_names(model) if name not in names]
    table = constants(serving.constants, used, {name for _, name in local})
    return printer.templates.get_template(f"{PREPARE}.jinja").render(
        header=header(spec, PREPARE),
        legend=legend(serving.constants.symbols(), body, letters),
        imports=imports(used | {"model"}, [*local, ("..", "model")]),
        constants=table,
        body=body,
    )


def _class(name: str, serving: Graph, printer: Printer) -> str:
    blocks = serving.methods(name)
    doc = next((block.class_doc for block in blocks if block.class_doc), name)
    head = [f"class {name}:", f'    """{doc}"""', "", f"    def __init__(self, module: model.{name}) -> None:"]
    made = dict.fromkeys(line for block in blocks for line in _made(block, printer))
    return "\n".join([*head, *(f"        {line}" for line in [*made, *_own(blocks)])])


def _made(block: Block, printer: Printer) -> list[str]:
    """What is made of parameters."""
    read = {value for node in block.nodes() for value in node.inputs}
    return [line for node in block.once for line in printer.once(block, node, read)]


def _own(blocks: tuple[Block, ...]) -> list[str]:
    """What the module has itself, in the order in which it is read; runs of layers make one list."""
    found: dict[str, dict[str, None]] = {}
    for node in (node for block in blocks for node in block.nodes()):
        for name, expression in _taken(node):
            found.setdefault(name, {})[expression] = None
    return [f"self.{_typed(name)} = {' + '.join(parts)}" for name, parts in found.items()]


def _typed(name: str) -> str:
    return f"{name}: list[Any]" if name == "layers" else name


def _taken(node: Node) -> list[tuple[str, str]]:
    """What a node reads of its module, each with where it comes from."""
    match node.op:
        case CallFunction(signature, name):
            return [(name, f"{signature.class_name}(module.{name})")] if name else []
        case CallListedFunction(signature, name):
            return [(name, f"[{signature.class_name}(one) for one in module.{name}]")]
        case RepeatFunctions(signature) as op:
            return [("layers", f"[{signature.class_name}(layer) for layer in module.layers{op.slice}]")]
    names = [holder.attribute() for holder in node.op.holders()]
    return [(name, f"module.{name}") for name in names if name is not None]


