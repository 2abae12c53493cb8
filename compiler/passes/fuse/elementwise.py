"""Single ops that have a kernel of their own."""

from __future__ import annotations

from dataclasses import replace

from dsc.compiler.graph.block import Block, Node
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import Op
from dsc.compiler.ops.elementwise import Swiglu
from dsc.compiler.ops.fused.elementwise import FusedRotate, FusedSwiglu
from dsc.compiler.ops.rope import Rotate

KERNELS: dict[type[Op], type[Op]] = {Swiglu: FusedSwiglu, Rotate: FusedRotate}


def fuse_elementwise(graph: Graph) -> Graph:
    return graph.map(_fuse)


def _fuse(block: Block) -> Block:
    return block.with_nodes(_fused(node) for node in block.nodes())


def _fused(node: Node) -> Node:
    kernel = KERNELS.get(type(node.op))
    return node if kernel is None else replace(node, op=kernel(**vars(node.op)))
