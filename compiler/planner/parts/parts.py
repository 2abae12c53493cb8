"""The model in the pieces that pipeline stages are made of: the embedding, the layers, MTP modules, the head.

This is where the planner reads the graph; everything after works on these pieces.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from dsc.compiler.graph.graph import Call, Graph
from dsc.compiler.graph.op import Parameter, tensor
from dsc.compiler.graph.saved import Step, Storage, trace
from dsc.compiler.graph.types import DType, TensorType
from dsc.compiler.passes.recompute import layer_blocks
from dsc.compiler.passes.turns import puts_off
from dsc.compiler.planner.parts.context import Rows, Whole, rows_of, whole
from dsc.compiler.planner.parts.tensor import whole_on_each

EMBEDDING, HEAD = "embedding", "head"
LOSS, BACKBONE = "Model.loss", "Model.backbone"
FLOATS = (DType.BF16, DType.FP32, DType.FP8)
"""Types of what has a gradient."""


@dataclass(frozen=True)
class Part:
    """What always stays together on one rank. Parts of one kind are equal but for their names."""

    name: str
    """A module of the model such as layers.3 or mtp.0; or embedding or head."""
    kind: str
    """The block that runs: MoeLayer.forward, ...; or embedding or head."""
    parameters: Mapping[str, Parameter]
    """By full name; each parameter of the model is in one part."""
    borrowed: Mapping[str, Parameter]
    """Those of earlier parts that this one uses too: on another rank, that is a copy kept in step."""
    steps: tuple[Step, ...]
    """Every op that runs in training, in order."""
    rows: Rows
    """Of the model, what ranks send each other that share sequences."""
    layer: str | None
    """The path of the layer in it, ending in a dot; None where there is none."""

    @cached_property
    def weighed(self) -> tuple[Storage, ...]:
        """Results of the ops that have parameters, whose gradients tell those of the parameters."""
        ops = ((step.node.op, step.outputs) for step in self.steps)
        made = (one for op, outputs in ops if op.parameters() or op.borrowed() for one in outputs)
        return tuple(dict.fromkeys(one for one in made if one is not None and one.type.dtype in FLOATS))

    @cached_property
    def put_off(self) -> tuple[Storage, ...]:
        """What products hold whose weights' gradients are put off where pairs take turns, from backward to these: their
        operands, kept or made again, and the gradients of their results."""
        steps = [step for step in self.steps if puts_off(step.node.op)]
        held = (one for step in steps for one in (*step.saved, *step.outputs))
        return tuple(dict.fromkeys(one for one in held if one is not None))

    @cached_property
    def whole(self) -> Whole:
        """What is of whole sequences where ranks share them."""
        return whole(self.steps, self.rows)

    @cached_property
    def whole_on_each(self) -> frozenset[Storage]:
        """What tensor parallelism does not divide."""
        return whole_on_each(self.steps)


class _Same:
    """A graph as a key: itself, and not one like it."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.graph is other.graph

    def __hash__(self) -> int:
        return id(self.graph)


def parts_of(graph: Graph) -> tuple[Part, ...]:
    """In the order in which they run; the same for all who ask for those of one graph."""
    return _parts_of(_Same(graph))


@lru_cache(maxsize=8)
def _parts_of(same: _Same) -> tuple[Part, ...]:
    graph = same.graph
    kinds = dict(_modules(graph))
    names = [EMBEDDING, *(name for name in kinds), HEAD]
    place = _places(graph, names)
    steps: dict[str, list[Step]] = {name: [] for name in names}
    for step in trace(graph, LOSS):
        steps[_module(step.path) if step.path else place[id(step.node)]].append(step)
    return tuple(_parts(graph, kinds, {name: tuple(run) for name, run in steps.items()}))


def _modules(graph: Graph) -> Iterator[tuple[str, str]]:
    """(path, block) of the layers, then of the MTP modules: the submodules that the root class calls."""
    for key in (BACKBONE, LOSS):
        for node in graph.blocks[key].nodes():
            if isinstance(node.op, Call):
                yield from ((path, callee) for callee, path in node.op.runs() if path)


def stream(graph: Graph) -> TensorType:
    """What one layer hands to the next, and one pipeline stage to the next: sizes in B and S."""
    types = [
        tensor(node.output_types[0])
        for node in graph.blocks[BACKBONE].nodes()
        if isinstance(node.op, Call) and any(path for _, path in node.op.runs())
    ]
    assert all(type.same(types[0]) for type in types), f"layers hand on {', '.join(one.shape_text() for one in types)}"
    return types[0]


def _module(path: str) -> str:
    """layers.3 of layers.3.self_attn., the module of the root that a path leads into."""
    return ".".join(path.split(".")[:2])


def _places(graph: Graph, names: list[str]) -> dict[int, str]:
    """The part of each op that the root class runs itself, by the identity of its node.

    Those of the backbone come before the layers. Of the rest, each belongs to the first part that reads its results,
    so that the final norm goes where its first reader is, and what nobody reads, the losses, is the head's.
    """
    place = {id(node): EMBEDDING for node in graph.blocks[BACKBONE].nodes()}
    readers: dict[tuple[str, int], str] = {}
    for node in reversed(graph.blocks[LOSS].nodes()):
        if isinstance(node.op, Call):
            part = next((path for _, path in node.op.runs() if path), EMBEDDING)
        else:
            read_by = [readers.get((value.producer, value.index), HEAD) for value in node.outputs]
            part = min(read_by, key=names.index, default=HEAD)
        place[id(node)] = part
        for value in node.inputs:
            key = value.producer, value.index
            readers[key] = min(part, readers.get(key, part), key=names.index)
    return place


def _parts(graph: Graph, kinds: Mapping[str, str], steps: Mapping[str, tuple[Step, ...]]) -> Iterator[Part]:
    every, layers = graph.parameters(), layer_blocks(graph)
    owner: dict[str, str] = {}
    known: dict[int, tuple[list[str], tuple[str, ...]]] = {}
    used = {name: tuple(_used(run, known)) for name, run in steps.items()}
    rows = rows_of(graph)
    for name, parameters in used.items():
        for parameter in parameters:
            owner.setdefault(parameter, name)
    assert set(owner) == set(every), "a parameter that training does not use, or one that nobody knows"
    for name, parameters in used.items():
        own = {parameter: every[parameter] for parameter in parameters if owner[parameter] == name}
        borrowed = {parameter: every[parameter] for parameter in parameters if owner[parameter] != name}
        kind = kinds.get(name, name)
        layer = _layer(graph, layers, kind, f"{name}.")
        yield Part(name, kind, own, borrowed, steps[name], rows, layer)


def _layer(graph: Graph, layers: Container[str], kind: str, path: str) -> str | None:
    """The path of the module that is a layer: the part's own, or one that it calls."""
    if kind in layers:
        return path
    calls = (
        (node.op for node in graph.blocks[kind].nodes() if isinstance(node.op, Call)) if kind in graph.blocks else ()
    )
    return next((f"{path}{name}." for op in calls for callee, name in op.runs() if callee in layers), None)


def _used(steps: tuple[Step, ...], known: dict[int, tuple[list[str], tuple[str, ...]]]) -> Iterator[str]:
    """Full names of the parameters that ops read. `known`: those of a node, by its identity."""
    for step in steps:
        key = id(step.node)
        if key not in known:
            op = step.node.op
            known[key] = ([parameter.name for parameter in op.parameters()], tuple(op.borrowed()))
        own, borrowed = known[key]
        yield from (f"{step.path}{name}" for name in own)
        yield from borrowed
