"""Attention as one kernel: of latents with split, rotation and concat; of grouped queries without a mask of S x S."""

from __future__ import annotations

from dataclasses import replace

from dsc.compiler.graph.block import Block, Node
from dsc.compiler.graph.graph import Graph
from dsc.compiler.graph.op import Op
from dsc.compiler.ops.attention import CausalAttention, WindowedAttention
from dsc.compiler.ops.fused.attention import (
    FusedDocumentAttention,
    FusedGroupedAttention,
    FusedLatentAttention,
    FusedWindowAttention,
    FusedWindowDocumentAttention,
)
from dsc.compiler.ops.packed import DocumentAttention, DocumentAttentionInWindow
from dsc.compiler.ops.rope import Rotate
from dsc.compiler.ops.shape import Concat, ExpandHeads, Split
from dsc.compiler.passes.fuse.pattern import collapse, each_node, made_by


def fuse_latent_attention(graph: Graph) -> Graph:
    return each_node(each_node(graph, CausalAttention, _fuse), DocumentAttention, _fuse)


def fuse_masked_attention(graph: Graph) -> Graph:
    """Of grouped queries, where they do not see all keys before them."""
    for kind in (DocumentAttention, WindowedAttention, DocumentAttentionInWindow):
        graph = each_node(graph, kind, _without_mask)
    return graph


def _without_mask(block: Block, attention: Node) -> Block:
    q, k, v, *masks = attention.inputs
    seeing = [node for mask in masks if (node := block.producer(mask)) is not None]
    starts = [value for node in seeing for value in node.inputs]
    match attention.op:
        case DocumentAttentionInWindow(prefix=prefix, window=window):
            kind: Op = FusedWindowDocumentAttention(prefix, window=window)
        case WindowedAttention(prefix=prefix, window=window):
            kind = FusedWindowAttention(prefix, window=window)
        case DocumentAttention(prefix=prefix):
            kind = FusedGroupedAttention(prefix)
        case op:
            raise AssertionError(op)
    return collapse(block, [attention, *seeing], replace(attention, op=kind, inputs=(q, k, v, *starts)))


def _fuse(block: Block, attention: Node) -> Block:
    """q = concat(q_nope, rotate(q_rope)), k = concat(k_nope, expand(k_rope)), v beside k_nope: all of it or nothing."""
    q, k, v, *masks = attention.inputs
    joined_q, joined_k = made_by(block, q, Concat), made_by(block, k, Concat)
    if joined_q is None or joined_k is None:
        return block
    q_nope, q_turned = joined_q[0].inputs
    k_nope, k_expanded = joined_k[0].inputs
    turn, expand = made_by(block, q_turned, Rotate), made_by(block, k_expanded, ExpandHeads)
    split_q, split_kv = made_by(block, q_nope, Split), made_by(block, v, Split)
    if turn is None or expand is None or split_q is None or split_kv is None:
        return block
    assert split_kv[0].outputs == (k_nope, v) and split_q[0].outputs == (q_nope, turn[0].inputs[0])
    seeing = [node for mask in masks if (node := block.producer(mask)) is not None]
    starts = [value for node in seeing for value in node.inputs]
    inputs = (*split_q[0].inputs, *split_kv[0].inputs, *expand[0].inputs, turn[0].inputs[1], *starts)
    parts = (joined_q, joined_k, turn, expand, split_q, split_kv)
    kind = FusedDocumentAttention if starts else FusedLatentAttention
    fused = replace(attention, op=kind(*split_kv[1].sizes), inputs=inputs)
    return collapse(block, [attention, *(node for node, _ in parts), *seeing], fused)
