"""Sorting tokens by expert and the experts themselves become two kernels; tokens are not copied."""

from __future__ import annotations

from dsc.compiler.graph.block import Block, Node, Value
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import tensor
from dsc.compiler.ops.elementwise import Add
from dsc.compiler.ops.fused.experts import FusedSort, RoutedAndSharedExperts, RoutedExperts
from dsc.compiler.ops.moe import EveryExpert, GroupedLinear, GroupEnds, ScatterSum, SlotWeights, SortByExpert
from dsc.compiler.ops.shape import ViewAs
from dsc.compiler.passes.fuse.pattern import ancestors, each_node, find


def fuse_experts(graph: Graph) -> Graph:
    return each_node(graph, ScatterSum, _fuse)


def _fuse(block: Block, scatter: Node) -> Block:
    if not any(isinstance(node.op, EveryExpert) for node in block.nodes()):
        return block  # rows of other ranks, which arrive copied and sorted
    sort, _ = find(block, SortByExpert)
    (chosen,) = sort.inputs
    weights, _, x = find(block, SlotWeights)[0].inputs
    inside = ancestors(block, scatter, [chosen, weights, x])
    views = (node for node in block.consumers(scatter.outputs[0]) if isinstance(node.op, ViewAs))
    end = next(views, scatter)  # packed tokens are flat already

    op = FusedSort(find(block, EveryExpert)[1].num_experts, tensor(scatter.inputs[2].type).shape[0])
    made = tuple(
        Value(sort.id, index, name, type)
        for index, (name, type) in enumerate(zip(("order", "position", "ends"), op.infer((chosen.type,)), strict=True))
    )
    gate_up, down = (node.op for node in inside if isinstance(node.op, GroupedLinear))
    products = (gate_up, down, find(block, SortByExpert)[1].rows)
    last = next((node for node in block.consumers(end.outputs[0]) if isinstance(node.op, Add)), end)
    shared = tuple(value for value in last.inputs if last is not end and value != end.outputs[0])
    experts = RoutedAndSharedExperts(*products) if shared else RoutedExperts(*products)

    fused = {
        sort.id: Node(sort.id, op, (chosen,), made),
        last.id: Node(last.id, experts, (x, weights, *made, *shared), last.outputs),
    }
    gone = {node.id for node in (*inside, scatter, end)} - fused.keys()
    nodes = [fused.get(node.id, node) for node in block.nodes() if node.id not in gone]
    old_ends, ends = find(block, GroupEnds)[0].outputs[0], made[2]
    return block.with_nodes(nodes).reinfer({old_ends: ends})
