"""Rows that hold several documents each: Model.loss, with attention and labels that stay within a document.

Positions count through a row, and none is told: attention knows how far two tokens are apart, and a rotation of both
by the same angle changes no product.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dsc.compiler.graph.block import INPUT, Block, Node, Value
from dsc.compiler.graph.dim import B, S
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import tensor
from dsc.compiler.graph.types import DType, TensorType
from dsc.compiler.ops.attention import CausalAttention, WindowedAttention
from dsc.compiler.ops.call import BlockCall
from dsc.compiler.ops.packed import (
    DocumentAttention,
    DocumentAttentionInWindow,
    DocumentStarts,
    LabelsInDocument,
    VisibleInDocument,
)
from dsc.compiler.ops.shape import SkipFirst, SkipLast
from dsc.compiler.passes.handing import hand_down, readers_of
from dsc.compiler.passes.stages import LOSS, step_block

ROOT = "Model.losses"
DOC = "Of rows of several documents, numbered [B, S]: each loss as its share of the batch's, see stages.py."
STARTS = TensorType((B, S), DType.INT32)
PREFIX = "Document"
"""Of the classes that stand in for the model's own in pre-training."""


def packed(plain: Graph) -> Graph:
    """Supervised training, from the plain graph; kernels come after. Its root is a function of Model, and its changed
    blocks will be. That no label of multi-token prediction lies across a boundary is seen to by those who fill the
    rows (templates/train/packing.py.jinja)."""
    root = replace(step_block(plain), method="losses", doc=DOC, class_doc="")
    graph = replace(plain, blocks={**plain.blocks, ROOT: root})
    reached = {block.key for _, block in graph.executions(ROOT)}
    blocks = {key: block for key, block in graph.blocks.items() if key in reached}
    return _apart(replace(graph, blocks=blocks), (ROOT,))


def documents_apart(plain: Graph) -> Graph:
    """Pre-training, from the plain graph: Model.loss is told the documents, and its parts where they begin."""
    graph = _apart(plain, (LOSS, "Model.forward"))
    return replace(graph, blocks={**graph.blocks, LOSS: _labels_apart(graph.blocks[LOSS])})


def handed_starts(graph: Graph) -> tuple[Block, ...]:
    """The blocks below the model that are told where documents begin."""
    told = (block for block in graph.blocks.values() if any(value.name == "starts" for value in block.inputs))
    return tuple(block for block in told if block.class_name != graph.root)


def _apart(graph: Graph, roots: Iterable[str]) -> Graph:
    """`roots`: the blocks that are given the documents of a row; all that attend are handed where these begin."""
    apart = {block.key: _within_documents(block) for block in graph.blocks.values() if _attends(block)}
    graph = replace(graph, blocks={**graph.blocks, **apart})
    graph = hand_down(graph, "starts", STARTS, readers_of(graph, apart))
    return replace(graph, blocks={**graph.blocks, **{root: _told(graph.blocks[root]) for root in roots}})


def _attends(block: Block) -> bool:
    return any(isinstance(node.op, CausalAttention) for node in block.nodes())


def _within_documents(block: Block) -> Block:
    starts = Value(INPUT, len(block.inputs), "starts", STARTS)
    nodes: list[Node] = []
    for node in block.nodes():
        if isinstance(node.op, CausalAttention):
            see = VisibleInDocument()
            visible = Value(f"{node.id}.visible", 0, "visible", *see.infer((STARTS,)))
            nodes.append(Node(visible.producer, see, (starts,), (visible,), node.paragraph))
            node = _within(replace(node, paragraph=False), visible)
        nodes.append(node)
    return replace(block, inputs=(*block.inputs, starts)).with_nodes(nodes)


def _within(node: Node, visible: Value) -> Node:
    match node.op:
        case WindowedAttention(variant, prefix) as op:
            seeing: DocumentAttention = DocumentAttentionInWindow(variant, prefix, window=op.window)
        case CausalAttention(variant, prefix):
            seeing = DocumentAttention(variant, prefix)
        case op:
            raise AssertionError(op)
    return replace(node, op=seeing, inputs=(*node.inputs, visible))


def _told(root: Block) -> Block:
    """The root is given documents, and makes of them what its calls are handed: less for those that run on less."""
    given = root.inputs[-1]
    assert given.name == "starts", root.inputs
    documents = replace(given, name="documents", type=TensorType((B, S), DType.INT64))
    starts = Value("starts", 0, "starts", STARTS)
    nodes = [Node("starts", DocumentStarts(), (documents,), (starts,))]
    for node in root.nodes():
        if given in node.inputs:
            now = starts
            if skipped := _skipped(node):
                name = f"{node.id}.starts"
                op = SkipLast(skipped)
                (type,) = op.infer((STARTS,))
                now = Value(name, 0, f"{node.outputs[0].name.partition('_')[0]}_starts", type)
                nodes.append(Node(name, op, (starts,), (now,)))
            node = replace(node, inputs=tuple(now if value == given else value for value in node.inputs))
        nodes.append(node)
    return replace(root, inputs=(*root.inputs[:-1], documents)).with_nodes(nodes)


def _skipped(node: Node) -> int:
    """How many positions fewer than S a call runs on."""
    assert isinstance(node.op, BlockCall)
    return (S - tensor(node.inputs[0].type).shape[1]).value({"S": 0})


def _labels_apart(loss: Block) -> Block:
    """Of a token further ahead that is in another document nothing is learned."""
    inputs = {value.name: value for value in loss.inputs}
    labels, documents = inputs["labels"], inputs["documents"]
    ahead = {labels: 0}
    nodes = []
    for node in loss.nodes():
        if isinstance(node.op, SkipFirst) and node.inputs[0] in ahead:
            depth = ahead[node.inputs[0]] + node.op.count
            ahead[node.outputs[0]] = depth
            node = replace(node, op=LabelsInDocument(depth), inputs=(labels, documents))
        nodes.append(node)
    return loss.with_nodes(nodes)
