"""Products in FP8, as precision.linear of the spec asks: linear layers by their role, and the routed experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from dsc.compiler.graph.block import Block, Node, Value
from dsc.compiler.graph.dim import Int
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import Op
from dsc.compiler.ops.fused.elementwise import FusedSwiglu
from dsc.compiler.ops.fused.experts import RoutedAndSharedExperts, RoutedExperts
from dsc.compiler.ops.fused.fp8 import (
    Fp8Linear,
    Fp8Linears,
    Fp8RoutedAndSharedExperts,
    Fp8RoutedExperts,
    Fp8SwigluLinear,
)
from dsc.compiler.ops.projection import Linear
from dsc.compiler.passes.fuse.dispatched import fuse_dispatched
from dsc.compiler.passes.fuse.pattern import collapse, each_node, made_by, used_outside
from dsc.spec.precision import Fp8BlockLinear

EXPERTS: Mapping[type[Op], Callable[..., Op]] = {
    RoutedExperts: Fp8RoutedExperts,
    RoutedAndSharedExperts: Fp8RoutedAndSharedExperts,
}


def multiply_in_fp8(graph: Graph, linear: Fp8BlockLinear) -> Graph:
    """After `fuse_experts` and `fuse_elementwise`.

    Products that the spec's table has in bf16, and layers without a role in it, are left as they are.
    """
    chosen = linear.products.in_fp8()
    block = Int(linear.weight_block[0])

    def rewrite(body: Block) -> Block:
        body = _linears(body, chosen, block)
        return _experts(body, block) if "experts" in chosen else body

    return each_node(graph.map(rewrite), Fp8Linear, _behind_swiglu)


def _behind_swiglu(body: Block, node: Node) -> Block:
    """A layer that is the only reader of a SwiGLU takes its result in FP8."""
    (x,) = node.inputs
    found = made_by(body, x, FusedSwiglu)
    if found is None or used_outside(body, x, [node]) or not isinstance(node.op, Fp8Linear):
        return body
    swiglu, _ = found
    op = Fp8SwigluLinear(node.op.linears, node.op.block)
    return collapse(body, [swiglu, node], replace(node, op=op, inputs=swiglu.inputs))


def _linears(body: Block, chosen: frozenset[str], block: Int) -> Block:
    """Layers that read the same x become one node, where the first of them stood: x is quantized and saved once."""
    readers: dict[Value, list[Node]] = {}
    for node in body.nodes():
        if isinstance(node.op, Linear) and node.op.role in chosen:
            readers.setdefault(node.inputs[0], []).append(node)
    fused = {nodes[0].id: _together(nodes, block) for nodes in readers.values()}
    made = {
        node.outputs[0]: fused[nodes[0].id].outputs[index]
        for nodes in readers.values()
        for index, node in enumerate(nodes)
    }
    gone = {node.id for nodes in readers.values() for node in nodes[1:]}

    kept: list[Node] = []
    paragraph = False
    for node in body.nodes():
        paragraph |= node.paragraph
        if node.id not in gone:
            kept.append(replace(fused.get(node.id, node), paragraph=paragraph))
            paragraph = False
    return body.with_nodes(kept).reinfer(made)


def _together(nodes: list[Node], block: Int) -> Node:
    first = nodes[0]
    linears = tuple(node.op for node in nodes if isinstance(node.op, Linear))
    kind = Fp8Linear if len(linears) == 1 else Fp8Linears
    outputs = [replace(node.outputs[0], producer=first.id, index=index) for index, node in enumerate(nodes)]
    return replace(first, op=kind(linears, block), outputs=tuple(outputs))


def _experts(body: Block, block: Int) -> Block:
    """Of this rank's tokens, and of those that other ranks sent."""
    body = body.with_nodes(
        replace(node, op=EXPERTS[type(node.op)](**vars(node.op), block=block)) if type(node.op) in EXPERTS else node
        for node in body.nodes()
    )
    return fuse_dispatched(body, block)
