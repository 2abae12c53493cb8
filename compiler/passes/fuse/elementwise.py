"""Single ops that have a kernel of their own."""

from __future__ import annotations

from dataclasses import replace

from dsc.compiler.graph.block import Node
from dsc.compiler.graph.graph import Graph
from dsc.compiler.ops.elementwise import Swiglu
from dsc.compiler.ops.fused.elementwise import FusedRotate, FusedSwiglu
from dsc.compiler.ops.rope import Rotate


def fuse_elementwise(graph: Graph) -> Graph:
    """SwiGLU, and rotations where all are of one layout, which is all that the kernel has."""
    ops = [node.op for block in graph.blocks.values() for node in block.nodes()]
    one_layout = len({op.layout for op in ops if isinstance(op, Rotate)}) == 1
    return graph.map(lambda block: block.with_nodes(_fused(node, one_layout) for node in block.nodes()))


def _fused(node: Node, one_layout: bool) -> Node:
    if isinstance(node.op, Swiglu):  # clamped or not: the kernel is emitted with the spec's limit
        return replace(node, op=FusedSwiglu())
    return replace(node, op=FusedRotate(**vars(node.op))) if one_layout and type(node.op) is Rotate else node
