"""Products and norms of packed tokens for CPUs, in forms that are fast for a step's few rows too."""

from __future__ import annotations

from dataclasses import replace

from dsc.compiler.graph.block import Block, Node, Value
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import Op, tensor
from dsc.compiler.ops.few_rows import (
    FewRowHead,
    FewRowMultiply,
    FewRowNorm,
    FewRowRouter,
    PreparedNorm,
    ProductWeight,
)
from dsc.compiler.ops.norm import RmsNorm
from dsc.compiler.ops.prepared import Multiply, StackedWeight
from dsc.compiler.ops.projection import Linear, TiedHead
from dsc.compiler.ops.router import RouterLogits


def multiply_few_rows(graph: Graph) -> Graph:
    """After weights are prepared. Keys and values of a whole text, [B, C, ...], are many rows and stay as they are."""
    return graph.map(_rewritten)


def _rewritten(block: Block) -> Block:
    once = {node.id: _packable(node) for node in block.once}
    body = []
    for node in block.nodes():
        if type(node.op) is RmsNorm:
            norm = _norm(node.op)
            once[norm.id] = norm
            body.append(replace(node, op=FewRowNorm(**vars(node.op)), inputs=(*node.inputs, *norm.outputs)))
            continue
        form = _FORMS.get(type(node.op))
        if form is None or len(tensor(node.inputs[0].type).shape) > 2:
            body.append(node)
        elif type(node.op) is Linear:
            weight = _weight(node.op)
            once[weight.id] = weight
            body.append(replace(node, op=FewRowMultiply(), inputs=(*node.inputs, *weight.outputs)))
        else:
            body.append(replace(node, op=form(**vars(node.op))))
    return replace(block, once=tuple(once.values())).with_nodes(body)


def _packable(node: Node) -> Node:
    return replace(node, op=ProductWeight(node.op.linears)) if isinstance(node.op, StackedWeight) else node


def _weight(linear: Linear) -> Node:
    """What makes the weight of one linear."""
    op = ProductWeight((linear,))
    value = Value(f"{linear.name}.weight", 0, linear.name, op.infer(())[0])
    return Node(value.producer, op, (), (value,))


def _norm(norm: RmsNorm) -> Node:
    """What makes a norm for few rows."""
    op = PreparedNorm(norm)
    value = Value(f"{norm.name}.norm", 0, norm.name, op.infer(())[0])
    return Node(value.producer, op, (), (value,))


_FORMS: dict[type[Op], type[Op]] = {
    Linear: FewRowMultiply,
    Multiply: FewRowMultiply,
    TiedHead: FewRowHead,
    RouterLogits: FewRowRouter,
}
