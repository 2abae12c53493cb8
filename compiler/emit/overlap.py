"""Of train/, what runs one micro-batch's forward in turns with another's backward."""

from __future__ import annotations

from collections.abc import Sequence

from dsc.compiler.emit.classes import holders, signature
from dsc.compiler.emit.documents import from_documents
from dsc.compiler.emit.file import File, FilePrinter
from dsc.compiler.emit.model import Definition, helpers, imported
from dsc.compiler.emit.printer import Printer
from dsc.compiler.emit.pyfile import imports, legend, local_imports, names
from dsc.compiler.graph.block import Block
from dsc.compiler.graph.graph import Graph
from dsc.compiler.ops.call import function_name
from dsc.compiler.ops.projection import BiasedLinear
from dsc.compiler.ops.turns import GroupedProduct
from dsc.compiler.passes import context, tensor
from dsc.compiler.passes.distribute import TrainingStep
from dsc.compiler.passes.shard import EXPERT_PARALLEL
from dsc.compiler.passes.turns import METHOD


def overlap_files(files: FilePrinter, step: TrainingStep, model: Sequence[Definition]) -> list[File]:
    """turns.py, from the graph; tape.py and overlap.py, the same for every model. None where nothing is paired."""
    if step.turns is None:
        return []
    ops = (node.op for block in step.turns.blocks.values() for node in block.nodes())
    stacked = any(isinstance(op, GroupedProduct) for op in ops)
    assert step.sharing is not None
    biases = any(isinstance(op, BiasedLinear) for op in holders(tuple(step.graph.blocks.values())))
    values = {"stacked": stacked, "two_hops": step.sharing.nodes > 1, "zero": step.sharing.zero, "biases": biases}
    values["recompute"] = bool(step.recompute)
    same = [files.file(path, path, **values) for path in ("train/tape.py", "train/overlap.py")]
    return [turns_file(files, step, step.turns, model), *same]


def turns_file(files: FilePrinter, step: TrainingStep, turns: Graph, model: Sequence[Definition]) -> File:
    printer = Printer(files.templates, owner="module")
    functions = [_function(block, printer) for block in turns.blocks.values() if block.method == METHOD]
    body = "\n\n\n".join(functions) + "\n"
    kinds = dict.fromkeys(stage.block.class_name for stage in step.stages)
    table = [(kind, _name(kind) if f"{kind}.{METHOD}" in turns.blocks else "unbroken") for kind in kinds]
    unbroken = any(function == "unbroken" for _, function in table)
    used = names(body) | {"Callable", "nn", "Turns", *(("Tensor", "Tape") if unbroken else ()), *kinds}
    of_documents = from_documents(step.graph, printer, model)
    elsewhere = {*(part.name for part in model), *(name for _, name in of_documents)}
    experts = [EXPERT_PARALLEL, *(one.name for one in helpers(step.graph, printer))]
    offered = [
        *imported(turns, "..", "."),
        *of_documents,
        *(("..model", part.name) for part in model),
        *((".stages", kind) for kind in kinds),
        *((".experts", name) for name in experts if name not in elsewhere),
        *_shares(step.graph, ".context", context.PREFIX),
        *_shares(step.graph, ".tensor", tensor.PREFIX),
        *((".tape", name) for name in ("Tape", "Turns")),
        *((".plan", name) for name in ("EP", "ETP", "NODES", "LOCAL")),
    ]
    return files.file(
        "train/turns.py",
        "train/turns.py",
        legend=legend(turns.constants.symbols(), body),
        imports=imports(used),
        local=local_imports(used, offered),
        body=body,
        table=table,
        unbroken=unbroken,
    )


def _shares(graph: Graph, module: str, prefix: str) -> list[tuple[str, str]]:
    return [(module, one.class_name) for one in graph.blocks.values() if one.class_name.startswith(prefix)]


def _name(class_name: str) -> str:
    return function_name(class_name, METHOD)


def _function(block: Block, printer: Printer) -> str:
    lines = [f"def {_name(block.class_name)}({signature(f'module: {block.class_name}', block)}) -> Turns:"]
    return "\n".join([*lines, *(f"    {line}" if line else "" for line in printer.body(block, block.doc))])
