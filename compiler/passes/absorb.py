"""Latent attention at inference, absorbed: no keys and values of heads, only the latent, in a paged cache."""

from __future__ import annotations

from dsc.compiler.graph.block import Block
from dsc.compiler.graph.builder import BlockBuilder
from dsc.compiler.graph.graph import Graph
from dsc.compiler.ops.attention import CachedAttention
from dsc.compiler.ops.fused.latent import (
    AbsorbUp,
    AbsorbValue,
    LatentDecode,
    UpProjections,
    WriteLatent,
    WriteLatentAndNorm,
)
from dsc.compiler.ops.norm import RmsNorm
from dsc.compiler.ops.projection import Linear
from dsc.compiler.ops.rope import Rotate
from dsc.compiler.ops.shape import FlattenHeads, Split, Unflatten

DOC = "Multi-head latent attention, absorbed: queries attend to the latent itself (DeepSeek-V2, section 2.1)."


def absorb_latent(graph: Graph) -> Graph:
    """The attention block rebuilt from the layers of the expanded one, with a paged cache."""
    return graph.map(lambda block: _absorbed(block) if _attends(block) else block)


def _attends(block: Block) -> bool:
    return any(isinstance(node.op, CachedAttention) for node in block.nodes())


def _absorbed(expanded: Block) -> Block:
    ops = [node.op for node in expanded.nodes()]
    linears = {op.name: op for op in ops if isinstance(op, Linear)}
    norms = {op.name: op for op in ops if isinstance(op, RmsNorm)}
    rotate = next(op for op in ops if isinstance(op, Rotate))
    heads_of_q, heads_of_kv = (op for op in ops if isinstance(op, Unflatten))
    parts_of_q, _, parts_of_kv = (op for op in ops if isinstance(op, Split))

    block = BlockBuilder(expanded.class_name, DOC, class_doc=expanded.class_doc, method=expanded.method)
    x, rope, cache = (block.input(value.name, value.type) for value in expanded.inputs)
    if "q_a_proj" in linears:
        kv = block.add("kv", linears["kv_a_proj_with_mqa"], x)
        q_latent = block.add("q_latent", linears["q_a_proj"], x)
        write = WriteLatentAndNorm(norms["kv_a_layernorm"], norms["q_a_layernorm"])
        q_latent = block.add("q_latent", write, kv, q_latent, rope, cache)
        q = block.add("q", linears["q_b_proj"], q_latent)
    else:
        kv = block.add("kv", linears["kv_a_proj_with_mqa"], x)
        block.add_many((), WriteLatent(norms["kv_a_layernorm"]), kv, rope, cache)
        q = block.add("q", linears["q_proj"], x)
    q = block.add("q", heads_of_q, q)
    q_nope, q_rope = block.add_many(("q_nope", "q_rope"), parts_of_q, q)
    q_rope = block.add("q_rope", rotate, q_rope, rope)

    block.paragraph()
    heads, _ = heads_of_kv.sizes
    up = UpProjections(linears["kv_b_proj"], heads, *parts_of_kv.sizes)
    w_uk, w_uv = block.add_many(("w_uk", "w_uv"), up)
    q_latent = block.add("q_latent", AbsorbUp(), q_nope, w_uk)
    out_latent = block.add("out_latent", LatentDecode(), q_latent, q_rope, cache)
    out = block.add("out", AbsorbValue(), out_latent, w_uv)
    out = block.add("out", FlattenHeads(), out)
    return block.finish(block.add("out", linears["o_proj"], out))
