"""infer/prepare.py of a package: a class for each block, which takes of the model's module what the block reads."""

from __future__ import annotations

from collections.abc import Mapping

from dsc.compiler.emit.file import File, FilePrinter
from dsc.compiler.emit.model import Definition, Helper, helpers_of, imported_among, module_body, requirements
from dsc.compiler.emit.printer import Printer
from dsc.compiler.emit.pyfile import imports, legend, local_imports, names
from dsc.compiler.graph.block import Block, Node
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import Op
from dsc.compiler.ops.call import CallFunction, CallListedFunction, RepeatFunctions
from dsc.compiler.ops.few_rows import ProductWeight

PREPARE = "infer/prepare.py"


def prepared_definitions(files: FilePrinter, serving: Graph, training: Graph) -> list[Definition]:
    """What prepare.py defines: the helpers that make weights, and a class for each class of the model."""
    printer = Printer(files.templates, owner="module")
    needed = {Helper(op.prefix, name): op for op in _makers(serving) for name in op.requires}
    classes = dict.fromkeys(block.class_name for block in serving.blocks.values())
    helpers = helpers_of(needed, printer, besides=set(requirements(training)))
    return [*helpers, *(Definition(name, _class(name, serving, printer)) for name in classes)]


def prepare_file(
    files: FilePrinter, serving: Graph, prepared: list[Definition], model: list[Definition], sizes: Mapping[str, str]
) -> File:
    body = module_body(prepared)
    used = names(body)
    ours = {part.name for part in prepared}
    offered = imported_among([name for op in _makers(serving) for name in op.requires], "..", "..train.")
    offered += [("..model", part.name) for part in model if part.name not in ours]
    return files.file(
        PREPARE,
        PREPARE,
        legend=legend(serving.constants.symbols(), body, sizes),
        imports=imports(used),
        local=local_imports(used, offered),
        body=body,
    )


def packs(serving: Graph) -> bool:
    """Whether weights can be prepared in another layout than the model has them in."""
    return any(isinstance(op, ProductWeight) for op in _makers(serving))


def _makers(serving: Graph) -> list[Op]:
    """What makes weights of parameters."""
    return [node.op for block in serving.blocks.values() for node in block.once]


def _class(name: str, serving: Graph, printer: Printer) -> str:
    blocks = serving.methods(name)
    doc = next((block.class_doc for block in blocks if block.class_doc), name)
    told = ("away",) if packs(serving) else ()
    arguments = ", ".join(["self", f"module: model.{name}", *(f"{name}: Away | None" for name in told)])
    head = [f"class {name}:", f'    """{doc}"""', "", f"    def __init__({arguments}) -> None:"]
    made = dict.fromkeys(line for block in blocks for line in _made(block, printer))
    return "\n".join([*head, *(f"        {line}" for line in [*made, *_own(blocks, told)])])


def _made(block: Block, printer: Printer) -> list[str]:
    """What is made of parameters."""
    read = {value for node in block.nodes() for value in node.inputs}
    return [line for node in block.once for line in printer.once(block, node, read)]


def _own(blocks: tuple[Block, ...], told: tuple[str, ...]) -> list[str]:
    """What the module has itself, in the order in which it is read; runs of layers make one list."""
    found: dict[str, dict[str, None]] = {}
    for node in (node for block in blocks for node in block.nodes()):
        for name, expression in _taken(node, told):
            found.setdefault(name, {})[expression] = None
    layers = found.pop("layers", {})
    lines = [f"self.{name} = {expression}" for name, (expression,) in found.items()]
    return [*lines, *([f"self.layers: list[Any] = [{', '.join(layers)}]"] if layers else [])]


def _taken(node: Node, told: tuple[str, ...]) -> list[tuple[str, str]]:
    """What a node reads of its module, each with where it comes from; `told`: what all classes are told besides."""
    also = "".join(f", {name}" for name in told)
    match node.op:
        case CallFunction(signature, name):
            return [(name, f"{signature.class_name}(module.{name}{also})")] if name else []
        case CallListedFunction(signature, name):
            return [(name, f"[{signature.class_name}(part{also}) for part in module.{name}]")]
        case RepeatFunctions(signature) as op:
            layers = f"module.layers{op.slice}"
            if len(op.classes) == 1:
                return [("layers", f"*({signature.class_name}(layer{also}) for layer in {layers})")]
            turns = f"({', '.join(op.classes)}) * {op.count}"
            return [("layers", f"*(turn(layer{also}) for turn, layer in zip({turns}, {layers}, strict=True))")]
    names = [holder.attribute() for holder in node.op.holders()]
    return [(name, f"module.{name}") for name in names if name is not None]
