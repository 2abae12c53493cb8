"""Whether a step that writes texts can be captured as a CUDA graph: what its ops would have to know while it runs."""

from __future__ import annotations

from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import Op, OpClass
from dsc.compiler.ops.moe import GroupedLinear
from dsc.compiler.ops.paged import ReadRows
from dsc.compiler.ops.policy import RecordExperts
from dsc.compiler.passes.serve import DRAFT, FORWARD


def uncaptured(serving: Graph) -> str:
    """Why it cannot, for a token or two of each text; empty where it can.

    A captured step has the sizes that it was captured with. So the host may wait for nothing, and nothing may be as
    large as the longest text: where keys and values are expanded or read in PyTorch, they would be those of the longest
    text that there can be.
    """
    roots = (key for key in (FORWARD, DRAFT) if key in serving.blocks)
    blocks = {block.key: block for root in roots for _, block in serving.executions(root)}
    reasons = (_reason(node.op) for block in blocks.values() for node in block.nodes())
    return next((reason for reason in reasons if reason), "")


def _reason(op: Op) -> str:
    if op.waits:
        return "the host counts the rows of experts"
    if op.op_class is OpClass.EXCHANGE:
        return "ranks exchange rows"
    if isinstance(op, GroupedLinear):
        return "routed experts are multiplied in PyTorch"
    if isinstance(op, ReadRows):
        return "attention over pages is PyTorch's"
    return "the routers' choices are recorded" if isinstance(op, RecordExperts) else ""
