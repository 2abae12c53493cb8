"""A block: the dataflow of one method of one class, as an immutable graph of typed ops."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import networkx as nx

from dsc.compiler.graph.dim import Dim, Symbol
from dsc.compiler.graph.op import Op, Parameter, Types
from dsc.compiler.graph.types import DType, ValueType


@dataclass(frozen=True)
class Value:
    """One result of a node (or an input of the block). `name` is the Python variable that holds it."""

    producer: str
    index: int
    name: str
    type: ValueType


@dataclass(frozen=True)
class Node:
    """One op applied to values: one line of the emitted method."""

    id: str
    op: Op
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    paragraph: bool = False
    """A blank line stands before it."""

    @property
    def input_types(self) -> Types:
        return tuple(value.type for value in self.inputs)

    @property
    def output_types(self) -> Types:
        return tuple(value.type for value in self.outputs)

    def flops(self) -> Dim:
        return self.op.flops(self.input_types, self.output_types)


INPUT = ""  # the producer of a block's inputs


@dataclass(frozen=True)
class CachedValue:
    """What inference keeps of every token, [B, S, ...], and as what."""

    value: Value
    dtype: DType
    has_fp8_form: bool = False
    """Whether an FP8 cache keeps codes of it."""
    window: Dim | None = None
    """How many of the last tokens are enough; None: all are kept."""


@dataclass(frozen=True)
class Block:
    """Method `method` of class `class_name`. `arguments` are sizes that whoever constructs the class gives."""

    class_name: str
    method: str
    doc: str
    class_doc: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    dataflow: nx.DiGraph[str]
    arguments: tuple[Symbol, ...] = ()
    cached: tuple[CachedValue, ...] = ()
    base: str = "nn.Module"
    """The base class."""

    @property
    def key(self) -> str:
        return f"{self.class_name}.{self.method}"

    def nodes(self) -> tuple[Node, ...]:
        """In the order of emission: dependencies first, ties as the builder said them."""
        return self._order

    @cached_property
    def _order(self) -> tuple[Node, ...]:
        rank = {name: data["rank"] for name, data in self.dataflow.nodes(data=True)}
        order = nx.lexicographical_topological_sort(self.dataflow, key=rank.__getitem__)
        return tuple(self.dataflow.nodes[name]["node"] for name in order)

    def node(self, name: str) -> Node:
        found: Node = self.dataflow.nodes[name]["node"]
        return found

    def consumers(self, value: Value) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes() if value in node.inputs)

    def parameters(self) -> dict[str, Parameter]:
        """By name relative to the class; a module used by two nodes counts once."""
        return {p.name: p for node in self.nodes() for p in node.op.parameters()}

    def with_nodes(self, nodes: Iterable[Node], outputs: tuple[Value, ...] | None = None) -> Block:
        """The same method with another body."""
        return replace(self, dataflow=connect(tuple(nodes)), outputs=self.outputs if outputs is None else outputs)

    def without(self, node_id: str, replacements: Mapping[Value, Value]) -> Block:
        """The body less one node; `replacements` says what its users read instead of its outputs."""
        return self.rewrite(lambda node: () if node.id == node_id else (node,), replacements)

    def rewrite(self, rule: Callable[[Node], Iterable[Node]], replacements: Mapping[Value, Value]) -> Block:
        """Each node replaced by what `rule` makes of it, then read values replaced, then all types inferred anew."""
        nodes = tuple(new for node in self.nodes() for new in rule(node))
        return self._inferred(nodes, replacements, ())

    def reinfer(self, replacements: Mapping[Value, Value], leave: tuple[str, ...] = ()) -> Block:
        """The same nodes with `replacements` read instead (but not by nodes in `leave`), all types inferred again."""
        return self._inferred(self.nodes(), replacements, leave)

    def _inferred(self, body: tuple[Node, ...], replacements: Mapping[Value, Value], leave: tuple[str, ...]) -> Block:
        current: dict[Value, Value] = {}

        def read(value: Value, reader: str = "") -> Value:
            value = value if reader in leave else replacements.get(value, value)
            return current.get(value, value)

        nodes = []
        for node in body:
            inputs = tuple(read(value, node.id) for value in node.inputs)
            types = node.op.infer(tuple(value.type for value in inputs))
            outputs = tuple(replace(v, type=t) for v, t in zip(node.outputs, types, strict=True))
            current.update(zip(node.outputs, outputs, strict=True))
            nodes.append(replace(node, inputs=inputs, outputs=outputs))
        cached = tuple(replace(kept, value=read(kept.value)) for kept in self.cached)
        return replace(self, cached=cached).with_nodes(nodes, tuple(read(value) for value in self.outputs))


def connect(nodes: tuple[Node, ...]) -> nx.DiGraph[str]:
    """The networkx graph of some nodes, frozen; an edge carries the type that flows along it."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    for rank, node in enumerate(nodes):
        assert node.id not in graph, f"two nodes named {node.id}"
        graph.add_node(node.id, node=node, rank=rank)
    for node in nodes:
        for value in node.inputs:
            if value.producer in graph:  # not an input; a producer that is missing is for verify() to report
                graph.add_edge(value.producer, node.id, type=value.type)
    frozen: nx.DiGraph[str] = nx.freeze(graph)
    return frozen
