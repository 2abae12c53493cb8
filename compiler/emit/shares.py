"""Of train/, the classes of what a rank has of a module: experts.py its experts, context.py its part of sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dsc.compiler.emit.classes import Method, describe, holders
from dsc.compiler.emit.file import File, FilePrinter
from dsc.compiler.emit.model import Definition, helpers, imported, module_body, requirements
from dsc.compiler.emit.printer import Printer
from dsc.compiler.emit.pyfile import imports, legend, local_imports, names
from dsc.compiler.graph.graph import Graph
from dsc.compiler.ops.context import LeaveOut
from dsc.compiler.ops.moe import GroupedLinear
from dsc.compiler.passes.context import OF_CONTEXT, PREFIX
from dsc.compiler.passes.shard import EXPERT_PARALLEL

OF_RANK = {"B": "B batch", "S": "S tokens of a sequence that are this rank's", "T": "T = B * S"}
COLLECTIVES = "from torch.distributed._functional_collectives import all_gather_single_autograd"
IMPORTS = (
    ("", "from collections.abc import Callable\n"),
    ("", "import torch"),
    ("", "import torch.distributed as dist"),
    ("F", "import torch.nn.functional as F"),
    ("", "from torch import Tensor, nn"),
    ("all_reduce", f"{COLLECTIVES}, all_reduce"),
    ("causal_lower_right", "from torch.nn.attention.bias import causal_lower_right"),
)
"""Lines of the file, by the name of its body that one is there for; always, where none is said."""


@dataclass(frozen=True)
class _Share:
    """What templates/train/context.py.jinja prints of a class."""

    name: str
    base: str
    doc: str
    methods: tuple[Method, ...]
    of_mtp: bool


def context_file(files: FilePrinter, graph: Graph, model: Sequence[Definition]) -> File:
    """The classes that the pass made, less what they inherit."""
    printer = Printer(files.templates)
    blocks = {key: block for key, block in graph.blocks.items() if block.class_name.startswith(PREFIX)}
    only = Graph({key: one for key, one in blocks.items() if one.class_name != OF_CONTEXT}, graph.constants)
    shared = [_share(only, printer, name) for name in dict.fromkeys(one.class_name for one in only.blocks.values())]
    defined = {part.name for part in model}
    body = module_body([part for part in helpers(only, printer) if part.name not in defined])
    lines = "\n".join(line for one in shared for method in one.methods for line in method.lines)
    used = names(f"{body}\n{lines}") | {one.base for one in shared} | {"CP", "Model"}
    used |= {"MultiTokenPredictor"} if any(one.of_mtp for one in shared) else set()
    offered = [*imported(only, "..", "."), (".plan", "CP"), *(("..model", part.name) for part in model)]
    return files.file(
        "train/context.py",
        "train/context.py",
        shared=shared,
        legend=legend(graph.constants.symbols(), f"{body}\n{lines}", OF_RANK),
        imports=_imports(used),
        local=local_imports(used, offered),
        body=body,
    )


def _share(graph: Graph, printer: Printer, name: str) -> _Share:
    described = describe(graph, graph, printer, name)
    of_mtp = any(isinstance(node.op, LeaveOut) for block in graph.methods(name) for node in block.nodes())
    return _Share(name, name.removeprefix(PREFIX), described.doc, described.methods, of_mtp)


def _imports(used: set[str]) -> str:
    lines = (COLLECTIVES if name == "all_reduce" and name not in used else line for name, line in IMPORTS)
    return "\n".join(line for (name, _), line in zip(IMPORTS, lines, strict=True) if name in {"", "all_reduce", *used})


def experts_file(files: FilePrinter, graph: Graph, plain: Graph, model: Sequence[Definition], two_hops: bool) -> File:
    """The class of the block that the sharding pass made, less what it inherits."""
    printer = Printer(files.templates)
    described = describe(graph, graph, printer, EXPERT_PARALLEL)
    stacked = {op.name for op in holders(graph.methods(EXPERT_PARALLEL)) if isinstance(op, GroupedLinear)}
    shared = [declaration for declaration in described.declarations if declaration.name in stacked]
    only = Graph({block.key: block for block in graph.methods(EXPERT_PARALLEL)}, graph.constants)
    parts = helpers(only, printer, besides=set(requirements(plain)))
    body = module_body(parts)
    lines = "\n".join(line for one in described.methods for line in one.lines)
    used = (
        names(f"{body}\n{lines}")
        | names(" ".join(one.expression for one in shared))
        | {"torch", "dist", "nn", "Tensor", "MixtureOfExperts", "EP"}
    )
    offered = [*imported(only, "..", "."), *((".plan", name) for name in ("EP", "NODES", "LOCAL"))]
    return files.file(
        "train/experts.py",
        "train/experts.py",
        described=described,
        two_hops=two_hops,
        declarations=shared,
        legend=legend(graph.constants.symbols(), lines),
        imports=imports(used),
        local=local_imports(used, [*offered, *(("..model", part.name) for part in model)]),
        body=body,
    )
