"""Grouped-query attention."""

from dsc.compiler.blocks.context import Context
from dsc.compiler.blocks.rope import softmax_scale
from dsc.compiler.blocks.scope import Scope
from dsc.compiler.graph.block import Block, Value
from dsc.compiler.graph.builder import BlockBuilder
from dsc.compiler.graph.dim import Axis, Dim
from dsc.compiler.graph.op import Op
from dsc.compiler.ops.attention import CausalAttention
from dsc.compiler.ops.norm import RmsNorm
from dsc.compiler.ops.projection import BiasedLinear, Linear
from dsc.compiler.ops.rope import Rotate
from dsc.compiler.ops.shape import FlattenHeads, Unflatten
from dsc.spec.attention import GqaAttention, GroupedQueries


def build_gqa(context: Context, scope: Scope, spec: GqaAttention) -> Block:
    core = CausalAttention(variant(spec), scope.prefix.lower())
    class_name = scope.class_name("Attention", alone="GroupedQueryAttention")
    return build_grouped(context, scope, spec, core, class_name, _doc(spec))


def build_grouped(
    context: Context, scope: Scope, spec: GroupedQueries, core: Op, class_name: str, doc: str, window: Dim | None = None
) -> Block:
    """[B, S, D] -> [B, S, D] through `core`, the attention of q to k and v; keys and values are kept."""
    hidden, dtype, table = context.hidden_size, context.dtype, context.ropes[scope.name]
    heads = scope.dim("NUM_HEADS", spec.num_attention_heads, "num_attention_heads", "H", Axis.HEADS)
    kv_heads = scope.dim("NUM_KV_HEADS", spec.num_key_value_heads, "num_key_value_heads", "J", Axis.HEADS)
    head_dim = scope.dim("HEAD_DIM", spec.head_dim, "head_dim", "N")
    softmax_scale(scope, table, head_dim)

    block = BlockBuilder(class_name, class_doc=doc)
    x, rope = block.input("x", context.hidden), block.input(table.name, table.type)

    def projection(name: str, width: Dim) -> Op:
        if spec.qkv_bias:
            return BiasedLinear(name, hidden, width, dtype)
        return Linear(name, hidden, width, dtype, "attention")

    q = block.add("q", projection("q_proj", heads * head_dim), x)
    k = block.add("k", projection("k_proj", kv_heads * head_dim), x)
    v = block.add("v", projection("v_proj", kv_heads * head_dim), x)
    q = block.add("q", Unflatten((heads, head_dim)), q)
    k = block.add("k", Unflatten((kv_heads, head_dim)), k)
    v = block.add("v", Unflatten((kv_heads, head_dim)), v)

    block.paragraph()
    q, k = _normed(block, context, scope, spec, (q, k), head_dim)
    q = block.add("q", Rotate(spec.rope.layout, head_dim, table.layout_prefix), q, rope)
    k = block.add("k", Rotate(spec.rope.layout, head_dim, table.layout_prefix), k, rope)
    block.keep(k, context.cache_dtype, window=window)
    block.keep(v, context.cache_dtype, window=window)

    block.paragraph()
    out = block.add("out", core, q, k, v)
    out = block.add("out", FlattenHeads(), out)
    return block.finish(block.add("out", Linear("o_proj", heads * head_dim, hidden, dtype, "attention"), out))


def variant(spec: GroupedQueries) -> str:
    return "equal" if spec.num_attention_heads == spec.num_key_value_heads else "grouped"


def _normed(
    block: BlockBuilder, context: Context, scope: Scope, spec: GroupedQueries, heads: tuple[Value, Value], width: Dim
) -> tuple[Value, Value]:
    """q and k, each head normalized where the spec says so."""
    if spec.qk_norm is None:
        return heads
    eps = scope.number("QK_NORM_EPS", spec.qk_norm.eps, "qk_norm.eps")
    q = block.add("q", RmsNorm("q_norm", width, eps, context.dtype), heads[0])
    return q, block.add("k", RmsNorm("k_norm", width, eps, context.dtype), heads[1])


def _doc(spec: GqaAttention) -> str:
    return f"Grouped-query attention{parts(spec)} (arXiv 2305.13245)."


def parts(spec: GroupedQueries) -> str:
    """What the doc of a class says besides its kind."""
    biases = "biases of q, k and v" if spec.qkv_bias else ""
    norms = "norms on the heads of q and k" if spec.qk_norm else ""
    named = " and ".join(part for part in (biases, norms) if part)
    return f", with {named}" if named else ""
