"""Finding a pattern of nodes, and replacing it by a single node."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeVar

from dsc.compiler.graph.block import Block, Node, Value
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import Op

O = TypeVar("O", bound=Op)  # noqa: E741  an op


def made_by(block: Block, value: Value, kind: type[O]) -> tuple[Node, O] | None:
    """The node that makes a value, with its op, if it is of that kind."""
    node = block.producer(value)
    return (node, node.op) if node is not None and isinstance(node.op, kind) else None


def find(block: Block, kind: type[O]) -> tuple[Node, O]:
    """The one node of a kind, with its op."""
    ((node, op),) = ((node, node.op) for node in block.nodes() if isinstance(node.op, kind))
    return node, op


def collapse(block: Block, removed: Collection[Node], node: Node) -> Block:
    """The block with `node` in place of the removed nodes, at the position of the one that has its id.

    Nothing else may read what the others make, which the graph's verification checks.
    """
    assert node.id in {old.id for old in removed}, node.id
    ids = {old.id for old in removed} - {node.id}
    nodes = [node if old.id == node.id else old for old in block.nodes() if old.id not in ids]
    return block.with_nodes(nodes)


def ancestors(block: Block, node: Node, stop: Collection[Value]) -> tuple[Node, ...]:
    """The nodes that a node depends on, in order, without those behind the values of `stop`."""
    found: set[str] = set()
    wanted = [value for value in node.inputs if value not in stop]
    while wanted:
        producer = block.producer(wanted.pop())
        if producer is not None and producer.id not in found:
            found.add(producer.id)
            wanted += [read for read in producer.inputs if read not in stop]
    return tuple(each for each in block.nodes() if each.id in found)


def used_outside(block: Block, value: Value, inside: Collection[Node]) -> bool:
    """Whether anything but some nodes reads a value."""
    ids = {node.id for node in inside}
    kept = value in block.outputs or value in {cached.value for cached in block.cached}
    return kept or any(node.id not in ids for node in block.consumers(value))


def each_node(graph: Graph, kind: type[Op], change: Callable[[Block, Node], Block]) -> Graph:
    """Every block, changed at each of its nodes of a kind."""

    def rewrite(block: Block) -> Block:
        for node in block.nodes():
            if type(node.op) is kind:
                block = change(block, node)
        return block

    return graph.map(rewrite)
