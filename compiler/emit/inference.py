"""infer/ of a package: the decoding functions, printed from the inference graph, and the engine that calls them."""

from __future__ import annotations

from dsc.compiler.emit.classes import returns, signature
from dsc.compiler.emit.header import header
from dsc.compiler.emit.model import helpers, kernel_functions, requirements
from dsc.compiler.emit.printer import Printer
from dsc.compiler.emit.pyfile import constants, defined_names, imports, legend, used_names
from dsc.compiler.graph.block import Block
from dsc.compiler.graph.graph import Graph
from dsc.compiler.ops.call import function_name
from dsc.compiler.passes.cache import is_module
from dsc.spec.model import ModelSpec

DECODE, ENGINE = "infer/decode.py", "infer/engine.py"


def inference_files(printer: Printer, spec: ModelSpec, inference: Graph, training: Graph, model: str) -> dict[str, str]:
    """`model` is the text of model.py, which the functions import from."""
    engine = printer.templates.get_template(f"{ENGINE}.jinja").render(header=header(spec, ENGINE), spec=spec)
    return {DECODE: decode_file(printer, spec, inference, training, model), ENGINE: engine}


def decode_file(printer: Printer, spec: ModelSpec, inference: Graph, training: Graph, model: str) -> str:
    functions = Printer(printer.templates, owner="module")
    blocks = [block for block in inference.blocks.values() if not is_module(block, training)]
    texts = helpers(inference, functions, besides=set(requirements(training)))
    texts += [function_text(block, functions) for block in blocks]
    body = "\n\n\n".join(text.strip("\n") for text in texts) + "\n"
    used = used_names(body) | {"torch", "Tensor"}
    defined = defined_names(model)
    table = constants(inference.constants, used, set(defined))
    used |= used_names(table)
    return printer.templates.get_template(f"{DECODE}.jinja").render(
        header=header(spec, DECODE),
        legend=legend(inference.constants.symbols(), body),
        imports=imports(used, [("..model", name) for name in defined] + _kernels(inference)),
        constants=table,
        body=body,
    )


def function_text(block: Block, printer: Printer) -> str:
    """A block as a function of the module that holds its parameters."""
    name = function_name(block.class_name, block.method)
    lines = [f"def {name}({signature(f'module: {block.class_name}', block)}) -> {returns(block)}:"]
    return "\n".join([*lines, *(f"    {line}".rstrip() for line in printer.body(block, block.doc or block.class_doc))])


def _kernels(graph: Graph) -> list[tuple[str, str]]:
    return [(f"..kernels.{module}", name) for module, name in kernel_functions(graph)]
