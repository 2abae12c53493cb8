"""Single ops that have a kernel of their own."""

from __future__ import annotations

from dataclasses import replace

from dsc.compiler.graph.block import Block, Node
from dsc.compiler.graph.graph import Graph
from dsc.compiler.ops.elementwise import Swiglu
from dsc.compiler.ops.fused.elementwise import FusedRotate, FusedSwiglu
from dsc.compiler.ops.rope import Rotate


def fuse_elementwise(graph: Graph) -> Graph:
    return graph.map(_fuse)


def _fuse(block: Block) -> Block:
    return block.with_nodes(_fused(node) for node in block.nodes())


def _fused(node: Node) -> Node:
    if isinstance(node.op, Swiglu):  # clamped or not: the kernel is emitted with the spec's limit
        return replace(node, op=FusedSwiglu())
    return replace(node, op=FusedRotate(**vars(node.op))) if type(node.op) is Rotate else node
