"""Grouped-query attention."""

from dsc.compiler.blocks.context import Context
from dsc.compiler.blocks.rope import softmax_scale
from dsc.compiler.graph.block import Block
from dsc.compiler.graph.builder import BlockBuilder
from dsc.compiler.graph.dim import Axis
from dsc.compiler.ops.attention import CausalAttention
from dsc.compiler.ops.norm import RmsNorm
from dsc.compiler.ops.projection import Linear
from dsc.compiler.ops.rope import Rotate
from dsc.compiler.ops.shape import FlattenHeads, Unflatten
from dsc.spec.attention import GqaAttention


def build_gqa(context: Context, spec: GqaAttention) -> Block:
    constants, hidden, dtype = context.constants, context.hidden_size, context.dtype
    heads = constants.dim("NUM_HEADS", spec.num_attention_heads, "attention.num_attention_heads", "H", Axis.HEADS)
    kv_heads = constants.dim("NUM_KV_HEADS", spec.num_key_value_heads, "attention.num_key_value_heads", "J", Axis.HEADS)
    head_dim = constants.dim("HEAD_DIM", spec.head_dim, "attention.head_dim", "N")
    softmax_scale(constants, spec.rope, "attention.rope", "HEAD_DIM")

    block = BlockBuilder("GroupedQueryAttention", class_doc=_doc(spec))
    x, rope = block.input("x", context.hidden), block.input("rope", context.rope)

    q = block.add("q", Linear("q_proj", hidden, heads * head_dim, dtype, "attention"), x)
    k = block.add("k", Linear("k_proj", hidden, kv_heads * head_dim, dtype, "attention"), x)
    v = block.add("v", Linear("v_proj", hidden, kv_heads * head_dim, dtype, "attention"), x)
    q = block.add("q", Unflatten((heads, head_dim)), q)
    k = block.add("k", Unflatten((kv_heads, head_dim)), k)
    v = block.add("v", Unflatten((kv_heads, head_dim)), v)

    block.paragraph()
    if spec.qk_norm is not None:
        eps = constants.number("QK_NORM_EPS", spec.qk_norm.eps, "attention.qk_norm.eps")
        q = block.add("q", RmsNorm("q_norm", head_dim, eps, dtype), q)
        k = block.add("k", RmsNorm("k_norm", head_dim, eps, dtype), k)
    q = block.add("q", Rotate(spec.rope.layout, head_dim), q, rope)
    k = block.add("k", Rotate(spec.rope.layout, head_dim), k, rope)
    block.keep(k, context.cache_dtype)
    block.keep(v, context.cache_dtype)

    block.paragraph()
    variant = "equal" if spec.num_attention_heads == spec.num_key_value_heads else "grouped"
    out = block.add("out", CausalAttention(variant), q, k, v)
    out = block.add("out", FlattenHeads(), out)
    return block.finish(block.add("out", Linear("o_proj", heads * head_dim, hidden, dtype, "attention"), out))


def _doc(spec: GqaAttention) -> str:
    norms = ", with norms on the heads of q and k" if spec.qk_norm else ""
    return f"Grouped-query attention{norms} (arXiv 2305.13245)."
