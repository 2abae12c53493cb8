"""The router: its product, and all from its logits to the chosen experts with their weights as one kernel."""

from __future__ import annotations

from dataclasses import replace

from dsc.compiler.graph.block import Block, Node
from dsc.compiler.graph.graph import Graph
from dsc.compiler.ops.elementwise import Scale
from dsc.compiler.ops.fused.router import BiasedRoute, FusedRouterLogits, Route
from dsc.compiler.ops.router import (
    BiasedSelectionScores,
    NormalizeWeights,
    RouterLogits,
    Score,
    TopExperts,
)
from dsc.compiler.passes.fuse.pattern import ancestors, each_node, find, used_outside


def fuse_router(graph: Graph) -> Graph:
    return each_node(graph, TopExperts, _fuse)


def _fuse(block: Block, choose: Node) -> Block:
    """Scores that a balance loss also reads are kept."""
    last = _weights(block, choose)
    product, linear = find(block, RouterLogits)
    (logits,) = product.outputs
    inside = (*ancestors(block, last, [logits]), last)
    kept = {node.id for node in inside if isinstance(node.op, Score) and _read_by_others(block, node, inside)}

    biased = [node.op for node in inside if isinstance(node.op, BiasedSelectionScores)]
    assert isinstance(choose.op, TopExperts)
    op = BiasedRoute(choose.op.top_k, biased[0]) if biased else Route(choose.op.top_k)
    old = (*choose.outputs, *last.outputs)
    new = tuple(replace(value, producer=last.id, index=index) for index, value in enumerate(old))
    fused = Node(last.id, op, (logits,), new, paragraph=bool(kept))

    gone = {node.id for node in inside} - kept - {last.id}
    changed = {last.id: fused}
    if type(linear) is RouterLogits:
        changed[product.id] = replace(product, op=FusedRouterLogits(linear))
    nodes = [changed.get(node.id, node) for node in block.nodes() if node.id not in gone]
    return block.with_nodes(nodes).reinfer(dict(zip(old, new, strict=True)))


def _weights(block: Block, choose: Node) -> Node:
    """The last of the nodes that make the weights of the chosen."""
    last = next(node for node in block.consumers(choose.outputs[0]) if len(node.inputs) == 2)
    while following := [n for n in block.consumers(last.outputs[0]) if isinstance(n.op, NormalizeWeights | Scale)]:
        (last,) = following
    return last


def _read_by_others(block: Block, node: Node, inside: tuple[Node, ...]) -> bool:
    return any(used_outside(block, value, inside) for value in node.outputs)
