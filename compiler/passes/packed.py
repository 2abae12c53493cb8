"""The losses of rows that hold several documents each: Model.loss, with attention that stays within a document.

Positions count through a row, and none is told: attention knows how far two tokens are apart, and a rotation of both
by the same angle changes no product. What crosses a boundary otherwise, labels of multi-token prediction, is for those
who fill the rows to avoid (templates/train/packing.py.jinja).
"""

from __future__ import annotations

from dataclasses import replace

from dsc.compiler.graph.block import INPUT, Block, Node, Value
from dsc.compiler.graph.dim import B, S
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import tensor
from dsc.compiler.graph.types import DType, TensorType
from dsc.compiler.ops.attention import CausalAttention, WindowedAttention
from dsc.compiler.ops.call import BlockCall
from dsc.compiler.ops.packed import DocumentAttention, DocumentAttentionInWindow, SkipLastSeen, VisibleInDocument
from dsc.compiler.passes.handing import hand_down, readers_of
from dsc.compiler.passes.stages import step_block

ROOT = "Model.losses"
DOC = "Of rows of several documents, numbered [B, S]: each loss as its share of the batch's, see stages.py."
VISIBLE = TensorType((B, S, S), DType.BOOL)


def packed(plain: Graph) -> Graph:
    """From the plain graph; kernels come after. Its root is a function of Model, and its changed blocks will be."""
    root = replace(step_block(plain), method="losses", doc=DOC, class_doc="")
    graph = replace(plain, blocks={**plain.blocks, ROOT: root})
    reached = {block.key for _, block in graph.executions(ROOT)}
    blocks = {key: block for key, block in graph.blocks.items() if key in reached}
    apart = {key: _apart(block) for key, block in blocks.items() if _attends(block)}
    graph = replace(graph, blocks={**blocks, **apart})
    graph = hand_down(graph, "visible", VISIBLE, readers_of(graph, apart))
    return replace(graph, blocks={**graph.blocks, ROOT: _told(graph.blocks[ROOT])})


def _attends(block: Block) -> bool:
    return any(isinstance(node.op, CausalAttention) for node in block.nodes())


def _apart(block: Block) -> Block:
    visible = Value(INPUT, len(block.inputs), "visible", VISIBLE)
    nodes = [_within(node, visible) for node in block.nodes()]
    return replace(block, inputs=(*block.inputs, visible), cached=()).with_nodes(nodes)


def _within(node: Node, visible: Value) -> Node:
    match node.op:
        case WindowedAttention(variant, prefix) as op:
            seeing: DocumentAttention = DocumentAttentionInWindow(variant, prefix, window=op.window)
        case CausalAttention(variant, prefix):
            seeing = DocumentAttention(variant, prefix)
        case _:
            return node
    return replace(node, op=seeing, inputs=(*node.inputs, visible))


def _told(root: Block) -> Block:
    """The root is given documents, and makes of them what its calls are handed: less for those that run on less."""
    given = root.inputs[-1]
    assert given.name == "visible", root.inputs
    documents = replace(given, name="documents", type=TensorType((B, S), DType.INT64))
    visible = Value("visible", 0, "visible", VISIBLE)
    nodes = [Node("visible", VisibleInDocument(), (documents,), (visible,))]
    for node in root.nodes():
        if given in node.inputs:
            now = visible
            if skipped := _skipped(node):
                name = f"{node.id}.visible"
                op = SkipLastSeen(skipped)
                (type,) = op.infer((VISIBLE,))
                now = Value(name, 0, f"{node.outputs[0].name.partition('_')[0]}_visible", type)
                nodes.append(Node(name, op, (visible,), (now,)))
            node = replace(node, inputs=tuple(now if value == given else value for value in node.inputs))
        nodes.append(node)
    return replace(root, inputs=(*root.inputs[:-1], documents)).with_nodes(nodes)


def _skipped(node: Node) -> int:
    """How many positions fewer than S a call runs on."""
    assert isinstance(node.op, BlockCall)
    return (S - tensor(node.inputs[0].type).shape[1]).value({"S": 0})
