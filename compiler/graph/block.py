"""A block: the dataflow of one method of one class, as an immutable graph of typed ops."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import heapify, heappop, heappush
from operator import is_

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

    def __hash__(self) -> int:
        return hash((self.producer, self.index, self.name))  # types take long to hash, and seldom tell two apart


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
    """A value [B, S, ...] that inference caches, and the type it has there."""

    value: Value
    dtype: DType
    has_fp8_form: bool = False
    """Whether an FP8 cache holds it in FP8."""
    window: Dim | None = None
    """How many of the last tokens are enough; None: all are kept."""


@dataclass(frozen=True)
class Block:
    """Method `method` of class `class_name`. `arguments` are sizes that its constructor takes."""

    class_name: str
    method: str
    doc: str
    class_doc: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    body: tuple[Node, ...]
    """In the order of emission: dependencies first (`in_order`)."""
    arguments: tuple[Symbol, ...] = ()
    cached: tuple[CachedValue, ...] = ()
    once: tuple[Node, ...] = ()
    """What depends on parameters alone, in order: it runs when weights are prepared, and the body reads its results."""

    @property
    def key(self) -> str:
        return f"{self.class_name}.{self.method}"

    def nodes(self) -> tuple[Node, ...]:
        """In the order of emission."""
        return self.body

    @cached_property
    def _by_id(self) -> dict[str, Node]:
        return {node.id: node for node in self.body}

    def node(self, name: str) -> Node:
        return self._by_id[name]

    def producer(self, value: Value) -> Node | None:
        """The node that makes a value; none for an input."""
        return self._by_id.get(value.producer)

    def consumers(self, value: Value) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes() if value in node.inputs)

    def parameters(self) -> dict[str, Parameter]:
        """By name relative to the class; a module used by two nodes counts once."""
        return {p.name: p for node in (*self.once, *self.body) for p in node.op.parameters()}

    @cached_property
    def prepared(self) -> frozenset[Value]:
        """The results of `once`."""
        return frozenset(value for node in self.once for value in node.outputs)

    def with_nodes(self, nodes: Iterable[Node], outputs: tuple[Value, ...] | None = None) -> Block:
        """The same method with another body; the block itself, which was verified, where that changes nothing."""
        body, outputs = in_order(tuple(nodes)), self.outputs if outputs is None else outputs
        if len(body) == len(self.body) and all(map(is_, body, self.body)) and outputs == self.outputs:
            return self
        return replace(self, body=body, outputs=outputs)

    def without(self, node_id: str, replacements: Mapping[Value, Value]) -> Block:
        """The body without one node; `replacements` says what its users read instead of its outputs."""
        return self.rewrite(lambda node: () if node.id == node_id else (node,), replacements)

    def rewrite(self, rule: Callable[[Node], Iterable[Node]], replacements: Mapping[Value, Value]) -> Block:
        """Each node replaced by what `rule` returns, then values by `replacements`, then all types inferred again."""
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
            if types == node.output_types and all(map(is_, inputs, node.inputs)):
                nodes.append(node)
                continue
            outputs = tuple(replace(v, type=t) for v, t in zip(node.outputs, types, strict=True))
            current.update(zip(node.outputs, outputs, strict=True))
            nodes.append(replace(node, inputs=inputs, outputs=outputs))
        outputs = tuple(read(value) for value in self.outputs)
        cached = tuple(replace(kept, value=read(kept.value)) for kept in self.cached)
        block = self if cached == self.cached else replace(self, cached=cached)
        return block.with_nodes(nodes, outputs)


def in_order(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """Topological order: each node after those that it reads, otherwise in the order of `nodes`."""
    rank = {node.id: index for index, node in enumerate(nodes)}
    assert len(rank) == len(nodes), f"two nodes of one name among {[node.id for node in nodes]}"
    # Inputs have no node; a producer that is missing is for verify() to report.
    waits = [{rank[value.producer] for value in node.inputs if value.producer in rank} for node in nodes]
    readers: list[list[int]] = [[] for _ in nodes]
    for index, producers in enumerate(waits):
        for producer in producers:
            readers[producer].append(index)
    ready = [index for index, producers in enumerate(waits) if not producers]
    heapify(ready)
    order = []
    while ready:
        order.append(done := heappop(ready))
        for reader in readers[done]:
            waits[reader].discard(done)
            if not waits[reader]:
                heappush(ready, reader)
    assert len(order) == len(nodes), (
        f"a cycle through {[node.id for node, left in zip(nodes, waits, strict=True) if left]}"
    )
    return tuple(nodes[index] for index in order)
