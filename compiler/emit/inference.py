"""infer/ of a package: the decoding functions, printed from the inference graph, and the engine that calls them."""

from __future__ import annotations

from collections.abc import Iterable

from dsc.compiler.emit.classes import returns, signature
from dsc.compiler.emit.file import File, FilePrinter
from dsc.compiler.emit.model import Definition, helpers, kernel_functions, module_body, requirements
from dsc.compiler.emit.printer import Printer
from dsc.compiler.emit.pyfile import imports, legend, local_imports, names
from dsc.compiler.graph.block import Block
from dsc.compiler.graph.graph import Graph
from dsc.compiler.ops.call import function_name
from dsc.compiler.passes.cache import is_module

DECODE, ENGINE = "infer/decode.py", "infer/engine.py"


def inference_files(files: FilePrinter, inference: Graph, training: Graph, model: Iterable[Definition]) -> list[File]:
    """`model` is what model.py defines, which the functions import."""
    return [decode_file(files, inference, training, model), files.file(ENGINE, ENGINE)]


def decode_file(files: FilePrinter, inference: Graph, training: Graph, model: Iterable[Definition]) -> File:
    printer = Printer(files.templates, owner="module")
    blocks = [block for block in inference.blocks.values() if not is_module(block, training)]
    parts = helpers(inference, printer, besides=set(requirements(training)))
    body = module_body([*parts, *(function(block, printer) for block in blocks)])
    used = names(body) | {"torch", "Tensor"}
    offered = [(f"..kernels.{module}", name) for module, name in kernel_functions(inference)]
    offered += [("..model", part.name) for part in model]
    return files.file(
        DECODE,
        DECODE,
        legend=legend(inference.constants.symbols(), body),
        imports=imports(used),
        local=local_imports(used, offered),
        body=body,
    )


def function(block: Block, printer: Printer) -> Definition:
    """A block as a function of the module that holds its parameters."""
    name = function_name(block.class_name, block.method)
    lines = [f"def {name}({signature(f'module: {block.class_name}', block)}) -> {returns(block)}:"]
    lines += [f"    {line}".rstrip() for line in printer.body(block, block.doc or block.class_doc)]
    return Definition(name, "\n".join(lines))
