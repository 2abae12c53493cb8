"""RMSNorm, fused with the residual add before it if there is one."""

from __future__ import annotations

from dataclasses import replace

from dsc.compiler.graph.block import Block, Node, Value
from dsc.compiler.graph.graph import Graph
from dsc.compiler.ops.elementwise import Add
from dsc.compiler.ops.fused.norm import AddRmsNorm, FusedRmsNorm
from dsc.compiler.ops.norm import RmsNorm


def fuse_norms(graph: Graph) -> Graph:
    return graph.map(_fuse)


def _fuse(block: Block) -> Block:
    nodes: list[Node] = []
    replacements: dict[Value, Value] = {}
    for node in block.nodes():
        if type(node.op) is not RmsNorm:
            nodes.append(node)
        elif nodes and isinstance(nodes[-1].op, Add) and nodes[-1].outputs == node.inputs:
            nodes.append(_with_add(nodes.pop(), node, replacements))
        else:
            nodes.append(replace(node, op=FusedRmsNorm(**vars(node.op))))
    return block.with_nodes(nodes).reinfer(replacements)


def _with_add(add: Node, norm: Node, replacements: dict[Value, Value]) -> Node:
    """One node with both results, in the place of the norm."""
    both = (*add.outputs, *norm.outputs)
    outputs = tuple(replace(value, producer=norm.id, index=index) for index, value in enumerate(both))
    replacements.update(zip(both, outputs, strict=True))
    return Node(norm.id, AddRmsNorm(**vars(norm.op)), add.inputs, outputs, norm.paragraph or add.paragraph)
