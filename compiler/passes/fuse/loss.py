"""Output head and cross-entropy, where nobody else reads the logits."""

from __future__ import annotations

from dataclasses import replace

from dsc.compiler.graph.block import Block, Node
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import Op
from dsc.compiler.ops.fused.loss import LinearCrossEntropy, TiedLinearCrossEntropy
from dsc.compiler.ops.loss import CrossEntropy, CrossEntropyAndZLoss
from dsc.compiler.ops.projection import Linear, TiedHead
from dsc.compiler.passes.fuse.pattern import collapse, each_node, made_by, used_outside


def fuse_linear_cross_entropy(graph: Graph) -> Graph:
    for kind in (CrossEntropy, CrossEntropyAndZLoss):  # the kernel is emitted with the spec's z-loss, if any
        graph = each_node(graph, kind, _fuse)
    return graph


def _fuse(block: Block, loss: Node) -> Block:
    logits, labels = loss.inputs
    op: Op
    if (linear := made_by(block, logits, Linear)) is not None:
        head, op = linear[0], LinearCrossEntropy(linear[1])
    elif (tied := made_by(block, logits, TiedHead)) is not None:
        head, op = tied[0], TiedLinearCrossEntropy(tied[1])
    else:
        return block
    if used_outside(block, logits, [loss]):
        return block
    return collapse(block, [head, loss], replace(loss, op=op, inputs=(*head.inputs, labels)))
