"""Experts in FP8 over rows that other ranks sent: the kernel of one process, for which each row is a token of its own.

It reads rows where they arrived and puts results back there, so that nothing is copied into the order of experts.
"""

from __future__ import annotations

from dsc.compiler.graph.block import Block, Node, Value
from dsc.compiler.graph.dim import Int
from dsc.compiler.ops.dispatch import OrderByExpert, PutRows, ReceivedEnds, ReceivedExperts, TakeRows
from dsc.compiler.ops.fused.experts import FusedSort
from dsc.compiler.ops.fused.fp8 import Fp8RoutedExperts
from dsc.compiler.ops.moe import GroupedLinear, WeighSlots
from dsc.compiler.passes.fuse.pattern import ancestors, find, made_by


def fuse_dispatched(block: Block, size: Int) -> Block:
    """A share of the experts with one op from received rows to those that go back; every other block as it is.

    `size`: elements that share a scale.
    """
    kinds = {type(node.op) for node in block.nodes()}
    if not {WeighSlots, PutRows} <= kinds:
        return block
    (put, weigh), (by_expert, sort) = (
        (find(block, kind)[0] for kind in (PutRows, WeighSlots)),
        find(block, OrderByExpert),
    )
    first, last = (node for node in block.nodes() if isinstance(node.op, GroupedLinear))
    assert isinstance(first.op, GroupedLinear) and isinstance(last.op, GroupedLinear)
    x, slot_weights = (_taken(block, value) for value in (first.inputs[0], weigh.inputs[1]))
    (received,) = by_expert.inputs
    inside = ancestors(block, put, [x, slot_weights, received])
    ends = find(block, ReceivedEnds)[0]

    of_rows = ReceivedExperts(sort.rows)
    expert = Value(by_expert.id, 0, "expert", *of_rows.infer((received.type, x.type)))
    op = FusedSort(first.op.num_experts, sort.rows)
    names = zip(("order", "position", "ends"), op.infer((expert.type,)), strict=True)
    made = tuple(Value(ends.id, index, name, type) for index, (name, type) in enumerate(names))
    products = Fp8RoutedExperts(first.op, last.op, sort.rows, size)
    fused = {
        by_expert.id: Node(by_expert.id, of_rows, (received, x), (expert,), by_expert.paragraph),
        ends.id: Node(ends.id, op, (expert,), made),
        put.id: Node(put.id, products, (x, slot_weights, *made), put.outputs),
    }
    gone = {node.id for node in inside} - fused.keys()
    return block.with_nodes(fused.get(node.id, node) for node in block.nodes() if node.id not in gone)


def _taken(block: Block, value: Value) -> Value:
    """What a value was, in the order in which it was received."""
    found = made_by(block, value, TakeRows)
    assert found is not None, value
    return found[0].inputs[0]
