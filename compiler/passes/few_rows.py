"""Products of packed tokens for CPUs, in a form that is fast for a step's few rows too."""

from __future__ import annotations

from dataclasses import replace

from dsc.compiler.graph.block import Node
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import Op, tensor
from dsc.compiler.ops.few_rows import FewRowHead, FewRowLinear, FewRowMultiply
from dsc.compiler.ops.prepared import Multiply
from dsc.compiler.ops.projection import Linear, TiedHead


def multiply_few_rows(graph: Graph) -> Graph:
    """After weights are prepared. Keys and values of a whole text, [B, C, ...], are many rows and stay as they are."""
    return graph.map(lambda block: block.with_nodes(_few_rows(node) for node in block.nodes()))


def _few_rows(node: Node) -> Node:
    form = _FORMS.get(type(node.op))
    if form is None or len(tensor(node.inputs[0].type).shape) > 2:
        return node
    return replace(node, op=form(**vars(node.op)))


_FORMS: dict[type[Op], type[Op]] = {Linear: FewRowLinear, Multiply: FewRowMultiply, TiedHead: FewRowHead}
