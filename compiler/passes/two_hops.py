"""Experts on the ranks of several nodes: a token goes once to each node, and there to the ranks that have its experts.

With a limit on the nodes of a token, this is what bounds the traffic of the network (DeepSeek-V3, section 3.2.2).
"""

from __future__ import annotations

from dsc.compiler.graph.block import Block
from dsc.compiler.graph.builder import BlockBuilder
from dsc.compiler.graph.dim import Int, M, Symbol
from dsc.compiler.ops.call import CallModule
from dsc.compiler.ops.dispatch import AllToAll, ExchangeCounts, Splits, TakeRows, quotient
from dsc.compiler.ops.elementwise import Add
from dsc.compiler.ops.hops import RowsFor, SumRows, WeightByExpert
from dsc.compiler.ops.moe import EveryExpert, SortByExpert
from dsc.compiler.ops.shape import ViewAs
from dsc.compiler.ops.slices import SlicesOfNode
from dsc.compiler.passes.fuse.pattern import find
from dsc.compiler.passes.shard import EXPERT_PARALLEL, Copy, begin, multiply

DOC = "This rank's share of the experts: a token goes once to each node, and there to the ranks of its experts."
NODES, LOCAL = "nodes", "local"
"""Attributes of the class: the ranks with our number on every node, and those of our node."""


def share_experts_over_nodes(moe: Block, copy: Copy, nodes: int) -> Block:
    """The plain mixture of experts as one whose experts are shared out over so many nodes, on each as many ranks."""
    across, within = Symbol("NODES", size=nodes), Symbol("LOCAL", size=copy.ranks.value() // nodes)
    _, *shared = (node for node in moe.nodes() if isinstance(node.op, CallModule))
    rows, every = find(moe, SortByExpert)[1].rows * copy.slices, find(moe, EveryExpert)[1].num_experts

    block = BlockBuilder(EXPERT_PARALLEL, class_doc=DOC)
    x, flat, experts, weights, losses = begin(block, moe)
    chosen = block.add("chosen", WeightByExpert(every), experts, weights, flat)

    block.paragraph()
    chosen, token, sent = block.add_many(("chosen", "token", "sent"), RowsFor(across, M), chosen)
    received = block.add("received", ExchangeCounts(across, NODES), sent)
    to_nodes, of_nodes = block.add_many(("to_nodes", "of_nodes"), Splits(across, only=False), sent, received)
    copies = block.add("copies", TakeRows(), flat, token)
    copies = block.add("copies", AllToAll(M, NODES), copies, to_nodes, of_nodes)
    chosen = block.add("chosen", AllToAll(M, NODES), chosen, to_nodes, of_nodes)
    shared_out = [block.add("shared", node.op, x) for node in shared]  # while tokens are on their way

    block.paragraph()
    if copy.slices != Int(1):
        chosen = block.add("chosen", SlicesOfNode(quotient(every, copy.parts), copy.slices), chosen)
    slots = RowsFor((every // across) * copy.slices, rows)
    slot_weights, row, sent = block.add_many(("slot_weights", "row", "sent"), slots, chosen)
    received = block.add("received", ExchangeCounts(within, LOCAL), sent)
    to, of = block.add_many(("to", "of"), Splits(within, only=False), sent, received)
    h = block.add("h", TakeRows(), copies, row)
    h = block.add("h", AllToAll(rows, LOCAL), h, to, of)
    slot_weights = block.add("slot_weights", AllToAll(rows, LOCAL), slot_weights, to, of)

    block.paragraph()
    h = multiply(block, moe, copy, h, slot_weights, received)
    h = block.add("h", AllToAll(rows, LOCAL), h, of, to)

    block.paragraph()
    h = block.add("h", SumRows(), h, row, copies)
    h = block.add("h", AllToAll(M, NODES), h, of_nodes, to_nodes)
    out = block.add("out", find(moe, ViewAs)[1], block.add("out", SumRows(), h, token, flat), x)
    for value in shared_out:
        out = block.add("out", Add(), out, value)
    return block.finish(out, *losses)
