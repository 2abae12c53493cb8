"""Of train/, the classes of what a rank has of a module: experts.py its experts, context.py its part of sequences,
tensor.py its heads, columns and vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dsc.compiler.emit.classes import Method, describe, holders
from dsc.compiler.emit.documents import document_helpers, from_documents, told_class
from dsc.compiler.emit.file import File, FilePrinter
from dsc.compiler.emit.model import Definition, helpers, imported, module_body, requirements
from dsc.compiler.emit.printer import Printer
from dsc.compiler.emit.pyfile import imports, legend, local_imports, names
from dsc.compiler.graph.block import Block
from dsc.compiler.graph.graph import Graph
from dsc.compiler.ops.call import CallModule
from dsc.compiler.ops.context import GatherContext, LeaveOut
from dsc.compiler.ops.moe import GroupedLinear
from dsc.compiler.ops.tensor import CrossEntropyAndZLossOfShards, GatherSequences
from dsc.compiler.passes import context, tensor
from dsc.compiler.passes.context import STARTS
from dsc.compiler.passes.distribute import TrainingStep
from dsc.compiler.passes.shard import EXPERT_PARALLEL, MOE, Sharing

OF_RANK = {"B": "B batch", "S": "S tokens of a sequence that are this rank's", "T": "T = B * S"}
COLLECTIVES = "from torch.distributed._functional_collectives import "
IMPORTS = (
    ("Callable", "from collections.abc import Callable\n"),
    ("", "import torch"),
    ("", "import torch.distributed as dist"),
    ("F", "import torch.nn.functional as F"),
    ("", "from torch import Tensor"),
    (COLLECTIVES, "all_gather_single_autograd"),
    (COLLECTIVES, "all_reduce"),
    (COLLECTIVES, "reduce_scatter_single_autograd"),
    ("causal_lower_right", "from torch.nn.attention.bias import causal_lower_right"),
)
"""Lines of the file, by the name of its body that one is there for; always, where none is said."""


@dataclass(frozen=True)
class _Share:
    """What templates/train/context.py.jinja and tensor.py.jinja print of a class."""

    name: str
    base: str
    doc: str
    methods: tuple[Method, ...]
    of_mtp: bool
    has_width: bool
    plain: str
    """The class of model.py: the base, unless that is told where documents begin."""
    kept: tuple[str, ...]
    """Of a layer of multi-token prediction, the modules that are no longer those that its class makes."""
    groups: tuple[str, ...]
    """Attributes that hold ranks."""
    balances: bool

    @property
    def told(self) -> bool:
        return self.base != self.plain

    @property
    def given(self) -> tuple[str, ...]:
        """What they are where ranks share sequences as contexts too: a balance loss is of whole sequences."""
        return ("sequence",) if self.balances else self.groups


def context_file(files: FilePrinter, graph: Graph, model: Sequence[Definition], tensor: bool) -> File:
    """The classes that the pass made, less what they inherit. `tensor`: none, for those of tensor.py do this too."""
    shared, body, text = _classes(files, graph, context.PREFIX, context.OF_CONTEXT, model)
    used = names(text) | _bases(shared) | {"CP", "all_gather_single_autograd"}
    used |= set() if tensor else {"Model", "Callable", "nn"}
    used |= {"MultiTokenPredictor"} if any(one.of_mtp for one in shared) else set()
    offered = [*imported(graph, "..", "."), (".plan", "CP"), *_definitions(files, graph, model)]
    return files.file(
        "train/context.py",
        "train/context.py",
        tensor=tensor,
        shared=shared,
        legend=legend(graph.constants.symbols(), f"{text}\n# [B, S, D]", OF_RANK),
        imports=_imports(used),
        local=local_imports(used, [one for one in offered if one[0] != ".context"]),
        body=body,
    )


def tensor_file(files: FilePrinter, step: TrainingStep, plain: Graph, model: Sequence[Definition]) -> File:
    """The same of heads, columns and the vocabulary; and which weights are cut, how."""
    graph = step.graph
    shared, body, text = _classes(
        files, graph, tensor.PREFIX, tensor.OF_TENSOR, model, [stage.block for stage in step.stages]
    )
    assert step.sharing is not None
    ops = [node.op for block in graph.blocks.values() for node in block.nodes()]
    used = names(text) | _bases(shared) | {"TP", "Model", "F", "upcast"}
    used |= {"all_gather_single_autograd", "all_reduce", "reduce_scatter_single_autograd", "Callable", "nn"}
    used |= {"MultiTokenPredictor"} if any(one.of_mtp for one in shared) else set()
    offered = [*imported(graph, "..", "."), (".plan", "CP"), (".plan", "TP"), *_definitions(files, graph, model)]
    return files.file(
        "train/tensor.py",
        "train/tensor.py",
        shared=shared,
        legend=legend(graph.constants.symbols(), f"{text}\n# [B, S, D, W]", OF_RANK),
        imports=_imports(used),
        local=local_imports(used, [one for one in offered if one[0] != ".tensor"]),
        body=body,
        cut=sorted(tensor.cut_weights(plain, step.sharing.tp).items()),
        several=any(isinstance(op, GatherSequences) for op in ops),
        z_loss=any(isinstance(op, CrossEntropyAndZLossOfShards) for op in ops),
        widths=any(one.has_width for one in shared),
        of_mtp=_of_mtp(shared),
        routed=MOE in plain.blocks,
        context=step.sharing.cp > 1,
    )


def _definitions(files: FilePrinter, graph: Graph, model: Sequence[Definition]) -> list[tuple[str, str]]:
    """What model.py and document_layers.py define: (module, name)."""
    return [*(("..model", part.name) for part in model), *from_documents(graph, Printer(files.templates), model)]


def _of_mtp(shared: Sequence[_Share]) -> dict[str, _Share | None] | None:
    """Of multi-token prediction the class of its layer, if that routes, and of shared experts in it, if there are."""
    layers = [one for one in shared if one.of_mtp and not one.has_width]
    beside = [one for one in shared if one.of_mtp and one.has_width]
    return {"layer": layers[0], "shared_experts": beside[0] if beside else None} if layers else None


def _classes(
    files: FilePrinter,
    graph: Graph,
    prefix: str,
    whole: str,
    model: Sequence[Definition],
    stages: Sequence[Block] = (),
) -> tuple[list[_Share], str, str]:
    """Those of a prefix but for the whole model's, the helpers that model.py does not define, and all of their text.

    `stages`: blocks whose helpers are wanted too.
    """
    printer = Printer(files.templates)
    blocks = {key: one for key, one in graph.blocks.items() if one.class_name.startswith(prefix)}
    only = Graph({key: one for key, one in blocks.items() if one.class_name != whole}, graph.constants)
    shared = [_share(only, printer, name) for name in dict.fromkeys(one.class_name for one in only.blocks.values())]
    defined = {part.name for part in (*model, *document_helpers(graph, printer, model))}
    calling = Graph({**only.blocks, **{block.key: block for block in stages}}, graph.constants)
    body = module_body([part for part in helpers(calling, printer) if part.name not in defined]).strip("\n")
    lines = "\n".join(line for one in shared for method in one.methods for line in method.lines)
    return shared, f"{body}\n" if body else "", f"{body}\n{lines}"


def _share(graph: Graph, printer: Printer, name: str) -> _Share:
    described = describe(graph, graph, printer, name)
    blocks = graph.methods(name)
    of_mtp = any(isinstance(node.op, LeaveOut) for block in blocks for node in block.nodes())
    has_width = any(block.arguments for block in blocks)
    gathers = (node.op.group for block in blocks for node in block.nodes() if isinstance(node.op, GatherContext))
    groups = tuple(dict.fromkeys(("group", *gathers)))
    balances = any(map(context.balances, blocks))
    base, kept = told_class(blocks[0]), tuple(_kept(blocks))
    plain = tensor.of_plain(name)
    return _Share(name, base, described.doc, described.methods, of_mtp, has_width, plain, kept, groups, balances)


def _bases(shared: Sequence[_Share]) -> set[str]:
    """The classes that shares name: what they inherit, and what a layer of multi-token prediction is given."""
    return {one.base for one in shared} | {one.plain for one in shared if one.of_mtp and not one.has_width}


def _kept(blocks: Sequence[Block]) -> Iterator[str]:
    """The modules of a layer that are told of documents, and what may be this rank's share of the experts."""
    calls = [node.op for block in blocks for node in block.nodes() if isinstance(node.op, CallModule)]
    yield from (op.name for op in calls if STARTS in op.operands or op.name == "mlp")


def _imports(used: set[str]) -> str:
    """Always what has no name of its own; functional collectives in one line."""
    collectives = ", ".join(name for where, name in IMPORTS if where == COLLECTIVES and name in used)
    lines = [line if where != COLLECTIVES else f"{COLLECTIVES}{collectives}" for where, line in IMPORTS]
    wanted = (line for (where, _), line in zip(IMPORTS, lines, strict=True) if where in {"", COLLECTIVES, *used})
    text = "\n".join(dict.fromkeys(wanted))
    return text.replace("import Tensor", "import Tensor, nn") if "nn" in used else text


def sequence_ranks(sharing: Sharing | None) -> str | None:
    """As constants of plan.py, how many ranks share each sequence, if any do."""
    if sharing is None or sharing.cp * sharing.tp == 1:
        return None
    return " * ".join(name for name, size in (("CP", sharing.cp), ("TP", sharing.tp)) if size > 1)


def experts_files(
    files: FilePrinter, graph: Graph, plain: Graph, model: Sequence[Definition], sharing: Sharing
) -> Iterator[File]:
    """The class of the block that the sharding pass made, less what it inherits, and what it sends by."""
    if sharing.deepep:
        constants = ["MICRO_BATCH", *(name for name in ("CP", "TP") if getattr(sharing, name.lower()) > 1)]
        values = {"constants": ", ".join(sorted(constants)), "sequences": sequence_ranks(sharing)}
        yield files.file("train/deepep.py", "train/deepep.py", **values)
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
        | {"torch", "nn", "Tensor", "MixtureOfExperts", *(("TYPE_CHECKING",) if sharing.deepep else ("dist",))}
    )
    offered = [*imported(only, "..", "."), *((".plan", name) for name in ("EP", "ETP", "NODES", "LOCAL"))]
    yield files.file(
        "train/experts.py",
        "train/experts.py",
        described=described,
        two_hops=sharing.nodes > 1,
        deepep=sharing.deepep,
        declarations=shared,
        legend=legend(graph.constants.symbols(), lines),
        imports=imports(used),
        local=local_imports(used, [*offered, *(("..model", part.name) for part in model)]),
        body=body,
    )
