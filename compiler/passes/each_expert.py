"""Routed experts for CPUs: a loop over those that somebody chose instead of one product over all.

On several ranks it is over those of this rank, and over rows that came from all.
"""

from __future__ import annotations

from dataclasses import replace

from dsc.compiler.graph.block import Block, Node, Value
from dsc.compiler.graph.graph import Graph
from dsc.compiler.ops.dispatch import ReceivedEnds
from dsc.compiler.ops.each_expert import COUNTS, ChosenExperts, EachExpert, SelectTokens, SumSlots, TokenOfSlot
from dsc.compiler.ops.exchange import CountReceived
from dsc.compiler.ops.moe import EveryExpert, GatherRows, GroupedLinear, GroupEnds, ScatterSum, SlotSource, SortByExpert


def loop_over_experts(graph: Graph) -> Graph:
    return graph.map(_rewritten)


def _rewritten(block: Block) -> Block:
    sort = next((node for node in block.nodes() if isinstance(node.op, SortByExpert)), None)
    ends = next((node for node in block.nodes() if isinstance(node.op, GroupEnds | ReceivedEnds)), None)
    if sort is None or ends is None:
        return block
    received = isinstance(ends.op, ReceivedEnds)
    told = Value(ends.id, 0, "counts", COUNTS) if received else sort.outputs[0]
    form = EachExpert if received else ChosenExperts
    nodes = [new for node in block.nodes() if (new := _changed(node, form, told)) is not None]
    return block.with_nodes(nodes).reinfer({ends.outputs[0]: told})


def _changed(node: Node, form: type[EachExpert], told: Value) -> Node | None:
    match node.op:
        case EveryExpert() | GroupEnds():
            return None
        case ReceivedEnds():
            return replace(node, op=CountReceived(), outputs=(told,))
        case SlotSource() as op:
            return replace(node, op=TokenOfSlot(**vars(op)))
        case GatherRows():
            return replace(node, op=SelectTokens())
        case GroupedLinear() as op:
            return replace(node, op=form(**vars(op)))
        case ScatterSum():
            return replace(node, op=SumSlots())
    return node
