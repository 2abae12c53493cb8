"""The weight of multi-token prediction's loss as an input, where it is not the same throughout training."""

from __future__ import annotations

from dataclasses import replace

from dsc.compiler.graph.block import INPUT, Value
from dsc.compiler.graph.dim import B
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.types import DType, TensorType
from dsc.compiler.ops.loss import WeighMtpLoss, WeighMtpLossOfStep
from dsc.compiler.passes.stages import LOSS, MTP_WEIGHT


def weight_of_step(plain: Graph) -> Graph:
    """Model.loss is given the weight of its step, in every row, because pipelines cut what they are given into rows."""
    loss = plain.blocks[LOSS]
    weight = Value(INPUT, len(loss.inputs), MTP_WEIGHT, TensorType((B,), DType.FP32))
    nodes = [
        replace(node, op=WeighMtpLossOfStep(node.op.depth), inputs=(*node.inputs, weight))
        if isinstance(node.op, WeighMtpLoss)
        else node
        for node in loss.nodes()
    ]
    given = replace(loss, inputs=(*loss.inputs, weight)).with_nodes(nodes)
    return replace(plain, blocks={**plain.blocks, LOSS: given})
