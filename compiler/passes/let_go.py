"""Names that hold a vocabulary for every token while other layers run, given up before: a local lives until its method
returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dsc.compiler.graph.block import Block, Node, Value
from dsc.compiler.graph.dim import Axis
from dsc.compiler.graph.graph import Call, Graph
from dsc.compiler.graph.types import TensorType
from dsc.compiler.ops.recompute import LetGo


def let_go(graph: Graph) -> Graph:
    """Of the logits of the next token, that is, where multi-token prediction follows."""
    return replace(graph, blocks={key: _shortened(block) for key, block in graph.blocks.items()})


def _shortened(block: Block) -> Block:
    nodes = block.nodes()
    ends = {value: index for index, node in enumerate(nodes) for value in node.inputs}
    modules = [index for index, node in enumerate(nodes) if isinstance(node.op, Call)]
    done: dict[str, list[Value]] = {}
    for value, end in ends.items():
        if _of_vocabulary(value) and value not in block.outputs and any(index > end for index in modules):
            done.setdefault(nodes[end].id, []).append(value)
    if not done:
        return block

    def followed(node: Node) -> Iterator[Node]:
        yield node
        for value in done.get(node.id, ()):
            yield Node(f"{node.id}.{value.name}", LetGo(), (value,), ())

    return block.rewrite(followed, {})


def _of_vocabulary(value: Value) -> bool:
    type = value.type
    return isinstance(type, TensorType) and {Axis.SEQUENCE, Axis.VOCABULARY} <= type.axes
