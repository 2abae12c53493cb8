"""Experts whose tokens DeepEP's kernels take to them and back: one op there, one back, nothing sorted in between."""

from __future__ import annotations

from dsc.compiler.graph.block import Block
from dsc.compiler.graph.builder import BlockBuilder
from dsc.compiler.ops.call import CallModule
from dsc.compiler.ops.deepep import Arrived, BringBack, SendToExperts
from dsc.compiler.ops.dispatch import quotient
from dsc.compiler.ops.elementwise import Add
from dsc.compiler.ops.moe import EveryExpert, SortByExpert
from dsc.compiler.ops.shape import ViewAs
from dsc.compiler.passes.fuse.pattern import find
from dsc.compiler.passes.shard import EXPERT_PARALLEL, Copy, begin, products

DOC = "This rank's share of the experts: DeepEP takes tokens to the ranks whose experts they chose, and back."


def share_experts_by_deepep(moe: Block, copy: Copy) -> Block:
    """The plain mixture of experts as one whose experts are shared out over ranks, whole ones to each."""
    _, *shared = (node for node in moe.nodes() if isinstance(node.op, CallModule))
    rows, every = find(moe, SortByExpert)[1].rows, find(moe, EveryExpert)[1].num_experts

    block = BlockBuilder(EXPERT_PARALLEL, class_doc=DOC)
    x, flat, experts, weights, losses = begin(block, moe)
    sent = block.add("sent", SendToExperts(), flat, experts, weights)
    shared_out = [block.add("shared", node.op, x) for node in shared]  # while tokens are on their way

    block.paragraph()
    arrived = Arrived(rows, quotient(every, copy.parts))
    h, slot_weights, ends = block.add_many(("h", "slot_weights", "ends"), arrived, sent, flat)
    h = products(block, moe, copy, h, slot_weights, ends)

    block.paragraph()
    out = block.add("out", find(moe, ViewAs)[1], block.add("out", BringBack(), h, sent, flat), x)
    for value in shared_out:
        out = block.add("out", Add(), out, value)
    return block.finish(out, *losses)
