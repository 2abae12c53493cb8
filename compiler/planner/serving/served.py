"""The graph that the package's engine runs, as one step of a phase runs it, and the weights that it holds.

The engine packs the new tokens of all texts. A step that is planned has one group of them: B texts with S new tokens
each, of C tokens with those before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

from dsc.compiler.graph.block import Block, Node, Value
from dsc.compiler.graph.dim import B, Dim, S
from dsc.compiler.graph.graph import Call, Graph
from dsc.compiler.graph.op import Parameter, Types, record, tensor
from dsc.compiler.graph.saved import Step, trace
from dsc.compiler.graph.types import TensorType
from dsc.compiler.ops.call import BlockCall
from dsc.compiler.ops.paged import BATCH, GROUP, ROWS, AttendGroups, AttendGroupsEitherWay
from dsc.compiler.passes.pack import TOKENS
from dsc.compiler.passes.paged import PAGES
from dsc.compiler.passes.serve import DRAFT, FORWARD

Phase = Literal["prefill", "decode"]
Sizes = Mapping[str, Dim]

PACKED = B * S
"""New tokens of a step."""
ROTARY = "rotary table"


class Graphs(NamedTuple):
    """What serves a model: on one GPU, and where several share its experts out."""

    alone: Graph
    shared: Graph


@dataclass(frozen=True)
class Weight:
    """What a GPU holds of a parameter, as it was trained or as it was prepared."""

    name: str
    """Full name of the parameter."""
    parameter: Parameter | None
    """None of a table that is made of no parameter."""
    bytes: int
    """Of the whole of it."""

    @property
    def is_matrix(self) -> bool:
        return self.parameter is not None and len(self.parameter.type.shape) > 1

    @property
    def is_routed(self) -> bool:
        return self.parameter is not None and self.parameter.is_routed


@record
class AttendOneGroup(BlockCall):
    """Attention of a batch that is one group."""

    def bindings(self, inputs: Types) -> Sizes:
        return {B.name: B, S.name: S}


class Served:
    """One graph of the engine in one phase."""

    def __init__(self, graph: Graph, phase: Phase, drafts: bool) -> None:
        self._forms = {form: _one_group(graph, form) for form in ("prefill", "decode")}
        self._roots = (FORWARD, DRAFT) if drafts else (FORWARD,)
        self._graph = self._forms[phase]
        self._sizes = {TOKENS.name: PACKED, ROWS.name: PACKED if phase == "decode" else B}

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Of the model."""
        return trace(self._graph, FORWARD, self._sizes)

    @cached_property
    def draft(self) -> tuple[Step, ...]:
        """Of one guess of multi-token prediction."""
        return trace(self._graph, DRAFT, self._sizes)

    @cached_property
    def weights(self) -> Mapping[str, tuple[Weight, ...]]:
        """All that is held, by what makes it or reads it. Both forms of attention are in memory, whichever runs."""
        found: dict[str, tuple[Weight, ...]] = {}
        for graph in self._forms.values():
            for root in self._roots:
                for path, block, sizes in _executions(graph, root, "", {}):
                    for value, weights in _prepared(path, block, sizes).items():
                        found[f"{path}{value.producer}[{value.index}]"] = weights
                    for node in block.nodes():
                        found |= {one.name: (one,) for one in _own(path, node, sizes)}
        return found

    def read_by(self, step: Step) -> tuple[Weight, ...]:
        """What a step reads of them: its own parameters, and operands that were prepared."""
        operands = [self.weights.get(f"{step.path}{value.producer}[{value.index}]", ()) for value in weights_of(step)]
        operands += [self.weights[name] for name in step.node.op.borrowed()]
        return (*_own(step.path, step.node, step.sizes), *(one for weights in operands for one in weights))


def weights_of(step: Step) -> tuple[Value, ...]:
    """The operands that were prepared: tensors that no op of the step has made, and that are no pages."""
    pairs = zip(step.node.inputs, step.inputs, strict=True)
    return tuple(
        value
        for value, storage in pairs
        if storage is None and isinstance(value.type, TensorType) and not is_pages(value.type)
    )


def is_pages(type: object) -> bool:
    """Whether it is the cache of a layer."""
    return isinstance(type, TensorType) and PAGES in type.shape


def reads_cache(node: Node) -> bool:
    """Whether an op reads the rows of its group's texts."""
    return GROUP in node.input_types and any(map(is_pages, node.input_types))


def writes_cache(node: Node) -> bool:
    """Whether an op writes the rows of the new tokens."""
    return BATCH in node.input_types and any(map(is_pages, node.input_types))


def _one_group(graph: Graph, phase: str) -> Graph:
    """The engine chooses for each group whether latents are expanded: for whole prompts that takes fewer operations."""

    def attending(node: Node) -> Node:
        op = node.op
        if isinstance(op, AttendGroupsEitherWay) and phase == "prefill":
            return replace(node, op=AttendOneGroup(op.other))
        return replace(node, op=AttendOneGroup(op.signature)) if isinstance(op, AttendGroups) else node

    return graph.map(lambda block: block.with_nodes(attending(node) for node in block.nodes()))


def _executions(graph: Graph, key: str, prefix: str, sizes: Sizes) -> Iterator[tuple[str, Block, Sizes]]:
    """Every block that runs: the path of its module, and the module's own sizes."""
    yield prefix, graph.blocks[key], sizes
    for node in graph.blocks[key].nodes():
        if isinstance(node.op, Call):
            bound = {name: dim.substitute(sizes) for name, dim in node.op.bindings(node.input_types).items()}
            for callee, path in node.op.runs():
                yield from _executions(graph, callee, f"{prefix}{path}." if path else prefix, bound)


def _own(path: str, node: Node, sizes: Sizes) -> Iterator[Weight]:
    for parameter in node.op.parameters():
        bound = parameter.substitute(sizes)
        yield Weight(path + bound.name, bound, bound.type.bytes.value())


def _prepared(path: str, block: Block, sizes: Sizes) -> dict[Value, tuple[Weight, ...]]:
    """The tensors that preparing leaves, each in parts as large as the parameters that it is made of; of an object the
    parameters are those of the op that calls it."""
    read = {value for node in block.nodes() for value in node.inputs} | set(block.outputs)
    found = {}
    for node in block.once:
        parameters = [parameter.substitute(sizes) for parameter in node.op.parameters()]
        whole = sum(parameter.type.numel.value() for parameter in parameters)
        for value in node.outputs:
            if value in read and isinstance(value.type, TensorType):
                size = tensor(value.type).bytes.substitute(sizes).value()
                parts = [(one, size * one.type.numel.value() // whole) for one in parameters]
                found[value] = tuple(Weight(path + one.name, one, part) for one, part in parts) or (
                    Weight(path + ROTARY, None, size),
                )
    return found
