"""infer/ of a package: weights and forward printed from the graph that serves, and the engine around them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from jinja2 import Environment

from dsc.compiler.emit.classes import returns
from dsc.compiler.emit.header import header
from dsc.compiler.emit.model import helpers, kernel_functions, requirements
from dsc.compiler.emit.prepare import prepare_file
from dsc.compiler.emit.printer import Printer
from dsc.compiler.emit.pyfile import constants, defined_names, imports, legend, used_names
from dsc.compiler.graph.block import Block
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import tensor
from dsc.compiler.ops.call import RepeatFunctions, function_name
from dsc.compiler.passes.serve import DRAFT
from dsc.spec.model import ModelSpec

DECODE = "infer/decode.py"
FILES = ("batch", "cache", "engine", "sampling", "scheduler", "text")
LETTERS = {"T": "T new tokens of all texts", "B": "B texts of a group", "S": "S new tokens of each", "C": "C rows of the longest"}


def serving_files(
    printer: Printer, spec: ModelSpec, serving: Graph, training: Graph, model: str, page_size: int
) -> dict[str, str]:
    """`model` is the text of model.py, which these files import from."""
    prepared = prepare_file(printer, spec, serving, training, model, LETTERS)
    values = {"spec": spec, "page_size": page_size, "guesses": DRAFT in serving.blocks}
    files = (*FILES, "speculation") if DRAFT in serving.blocks else FILES
    plain = {f"infer/{name}.py": _print(printer.templates, spec, f"infer/{name}.py", values) for name in files}
    return {
        DECODE: decode_file(printer, spec, serving, training, model, prepared),
        "infer/prepare.py": prepared,
        **plain,
    }


def _print(templates: Environment, spec: ModelSpec, name: str, values: Mapping[str, object]) -> str:
    return templates.get_template(f"{name}.jinja").render(header=header(spec, name), **values)


def decode_file(
    printer: Printer, spec: ModelSpec, serving: Graph, training: Graph, model: str, prepared: str
) -> str:
    functions = Printer(printer.templates, owner="module")
    texts = helpers(serving, functions, besides={*requirements(training), *_once(serving)})
    texts += [function_text(block, functions) for block in serving.blocks.values()]
    texts.append(_caches(printer.templates, spec, serving))
    body = "\n\n\n".join(text.strip("\n") for text in texts) + "\n"
    used = used_names(body) | {"torch", "Tensor"}
    ours = [(".prepare", name) for name in defined_names(prepared)]
    ours += [(".batch", "Batch"), (".batch", "Group"), (".cache", "PAGE_SIZE")]
    known = {name for _, name in ours}
    local = [*ours, *(("..model", name) for name in defined_names(model) if name not in known), *_kernels(serving)]
    table = constants(serving.constants, used, {name for _, name in local})
    used |= used_names(table)
    return printer.templates.get_template(f"{DECODE}.jinja").render(
        header=header(spec, DECODE),
        legend=legend(serving.constants.symbols(), body, LETTERS),
        imports=imports(used, local),
        constants=table,
        body=body,
    )


def function_text(block: Block, printer: Printer) -> str:
    """A block as a function of its prepared weights, where it reads any."""
    lines = [f"    {line}".rstrip() for line in printer.body(block, block.doc or block.class_doc)]
    arguments = [f"{value.name}: {value.type.annotation}" for value in block.inputs]
    if re.search(rf"\b{printer.owner}\b", "\n".join(lines)):
        arguments.insert(0, f"{printer.owner}: {block.class_name}")
    head = f"def {function_name(block.class_name, block.method)}({', '.join(arguments)}) -> {returns(block)}:"
    return "\n".join([head, *lines])


def _once(serving: Graph) -> set[str]:
    """Helpers that preparing needs."""
    return {name for block in serving.blocks.values() for node in block.once for name in node.op.requires}


def _caches(templates: Environment, spec: ModelSpec, serving: Graph) -> str:
    """The pages of every layer: their rows, and their type where the spec keeps them narrower than its parameters."""
    counts: dict[str, list[str]] = {}
    for block in serving.blocks.values():
        for node in block.nodes():
            if isinstance(node.op, RepeatFunctions):
                row = tensor(node.op.signature.inputs[-1]).shape[-1]
                counts.setdefault(str(row), []).append(str(node.op.count))
    rows = " + ".join(f"[{row}] * ({' + '.join(parts)})" if len(parts) > 1 else f"[{row}] * {parts[0]}" for row, parts in counts.items())
    if DRAFT in serving.blocks:
        row = tensor(serving.blocks[DRAFT].inputs[-1].type).shape[-1]
        rows += f" + [{row}]"
    narrower = spec.precision.kv_cache == "bf16" and spec.precision.parameters == "fp32"
    return templates.get_template("infer/caches.jinja").render(
        rows=rows, dtype="bfloat16" if narrower else None, guesses=DRAFT in serving.blocks
    )


def _kernels(graph: Graph) -> list[tuple[str, str]]:
    return [(f"..kernels.{module}", name) for module, name in kernel_functions(graph)]
