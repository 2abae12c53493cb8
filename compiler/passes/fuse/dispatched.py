"""Experts in FP8 over rows that other ranks sent: the kernel of one process, for which each row is a token of its own.

It reads rows where they arrived and puts results back there, so that nothing is copied into the order of experts. In
training rows bring what they weigh; where a package serves they are weighed when they are back, and here weigh 1.
"""

from __future__ import annotations

from dsc.compiler.graph.block import Block, Node, Value
from dsc.compiler.graph.dim import Int
from dsc.compiler.ops.deepep import Arrived, InOrder
from dsc.compiler.ops.dispatch import OrderByExpert, PutRows, ReceivedEnds, ReceivedExperts, TakeRows, WholeRows
from dsc.compiler.ops.fused.experts import FusedSort
from dsc.compiler.ops.fused.fp8 import Fp8RoutedExperts
from dsc.compiler.ops.moe import GroupedLinear
from dsc.compiler.passes.fuse.pattern import ancestors, find


def fuse_dispatched(block: Block, size: Int) -> Block:
    """A share of the experts with one op from received rows to those that go back; every other block as it is.

    `size`: elements that share a scale.
    """
    if any(isinstance(node.op, Arrived) for node in block.nodes()):
        return _fuse_in_order(block, size)
    if not any(isinstance(node.op, OrderByExpert) for node in block.nodes()):
        return block
    by_expert, sort = find(block, OrderByExpert)
    takes = (node for node in block.consumers(by_expert.outputs[0]) if isinstance(node.op, TakeRows))
    x, *weights = (take.inputs[0] for take in takes)
    received, _ = by_expert.inputs
    put, ends = (find(block, kind)[0] for kind in (PutRows, ReceivedEnds))
    inside = ancestors(block, put, [x, *weights, received])
    first, last = (node.op for node in inside if isinstance(node.op, GroupedLinear))

    of_rows = ReceivedExperts(sort.rows)
    expert = Value(by_expert.id, 0, "expert", *of_rows.infer((received.type, x.type)))
    op = FusedSort(first.num_experts, sort.rows)
    names = zip((by_expert.outputs[0].name, "position", "ends"), op.infer((expert.type,)), strict=True)
    made = tuple(Value(ends.id, index, name, type) for index, (name, type) in enumerate(names))
    products = Fp8RoutedExperts(first, last, sort.rows, size)
    whole = [] if weights else [_whole_rows(put, x)]
    (slot_weights,) = weights or whole[0].outputs
    fused = {
        by_expert.id: [Node(by_expert.id, of_rows, (received, x), (expert,), by_expert.paragraph)],
        ends.id: [Node(ends.id, op, (expert,), made)],
        put.id: [*whole, Node(put.id, products, (x, slot_weights, *made), put.outputs)],
    }
    gone = {node.id for node in inside} - fused.keys()
    return block.with_nodes(new for node in block.nodes() if node.id not in gone for new in fused.get(node.id, [node]))


def _whole_rows(put: Node, x: Value) -> Node:
    op, id = WholeRows(), f"{put.id}.weights"
    return Node(id, op, (x,), (Value(id, 0, "ones", *op.infer((x.type,))),))


def _fuse_in_order(block: Block, size: Int) -> Block:
    """Of rows that lie expert by expert already."""
    arrived, of_rows = find(block, Arrived)
    x, weights, ends = arrived.outputs
    products = [node for node in block.nodes() if isinstance(node.op, GroupedLinear)]
    first, last = products
    inside = ancestors(block, last, [x, weights, ends])
    assert isinstance(first.op, GroupedLinear) and isinstance(last.op, GroupedLinear)

    op = InOrder()
    types = zip(("order", "position"), op.infer((x.type,)), strict=True)
    made = tuple(Value(first.id, index, name, type) for index, (name, type) in enumerate(types))
    fused = Fp8RoutedExperts(first.op, last.op, of_rows.rows, size)
    new = {
        first.id: Node(first.id, op, (x,), made),
        last.id: Node(last.id, fused, (x, weights, *made, ends), last.outputs),
    }
    gone = {node.id for node in inside} - new.keys()
    return block.with_nodes(new.get(node.id, node) for node in block.nodes() if node.id not in gone)
