"""Multi-head latent attention, expanded: keys and values of every head are computed from the latent."""

from dsc.compiler.blocks.context import Context
from dsc.compiler.blocks.rope import softmax_scale
from dsc.compiler.blocks.scope import Scope
from dsc.compiler.graph.block import Block, Value
from dsc.compiler.graph.builder import BlockBuilder
from dsc.compiler.graph.dim import Axis, Dim
from dsc.compiler.graph.types import DType
from dsc.compiler.ops.attention import CausalAttention
from dsc.compiler.ops.norm import RmsNorm
from dsc.compiler.ops.projection import Linear
from dsc.compiler.ops.rope import Rotate
from dsc.compiler.ops.shape import AddHeadDim, Concat, ExpandHeads, FlattenHeads, Split, Unflatten
from dsc.spec.attention import MlaAttention


def build_mla(context: Context, scope: Scope, spec: MlaAttention) -> Block:
    hidden, dtype, table = context.hidden_size, context.dtype, context.ropes[scope.name]
    heads = scope.dim("NUM_HEADS", spec.num_attention_heads, "num_attention_heads", "H", Axis.HEADS)
    latent = scope.dim("KV_LORA_RANK", spec.kv_lora_rank, "kv_lora_rank", "L")
    nope = scope.dim("QK_NOPE_HEAD_DIM", spec.qk_nope_head_dim, "qk_nope_head_dim", "N")
    rotary = scope.dim("QK_ROPE_HEAD_DIM", spec.qk_rope_head_dim, "qk_rope_head_dim", "R")
    value = scope.dim("V_HEAD_DIM", spec.v_head_dim, "v_head_dim", "V")
    head_dim = scope.derived("QK_HEAD_DIM", nope + rotary)
    eps = scope.number("LATENT_NORM_EPS", spec.latent_norm_eps, "latent_norm_eps")
    softmax_scale(scope, table, head_dim)

    block = BlockBuilder(scope.class_name("Attention", alone="LatentAttention"), class_doc=_doc(spec))
    x, rope = block.input("x", context.hidden), block.input(table.name, table.type)

    q = _queries(block, context, scope, spec, x, heads * head_dim)
    q = block.add("q", Unflatten((heads, head_dim)), q)
    q_nope, q_rope = block.add_many(("q_nope", "q_rope"), Split((nope, rotary)), q)
    q_rope = block.add("q_rope", Rotate(spec.rope.layout, rotary, table.layout_prefix), q_rope, rope)
    q = block.add("q", Concat(), q_nope, q_rope)

    block.paragraph()
    kv = block.add("kv", Linear("kv_a_proj_with_mqa", hidden, latent + rotary, dtype, "attention"), x)
    kv_latent, k_rope = block.add_many(("kv_latent", "k_rope"), Split((latent, rotary)), kv)
    kv_latent = block.add("kv_latent", RmsNorm("kv_a_layernorm", latent, eps, dtype), kv_latent)
    k_rope = block.add("k_rope", AddHeadDim(), k_rope)
    k_rope = block.add("k_rope", Rotate(spec.rope.layout, rotary, table.layout_prefix), k_rope, rope)
    block.keep(kv_latent, context.cache_dtype, has_fp8_form=True)
    block.keep(k_rope, DType.BF16 if context.cache_dtype is DType.FP8 else context.cache_dtype)

    block.paragraph()
    kv = block.add("kv", Linear("kv_b_proj", latent, heads * (nope + value), dtype, "attention"), kv_latent)
    kv = block.add("kv", Unflatten((heads, nope + value)), kv)
    k_nope, v = block.add_many(("k_nope", "v"), Split((nope, value)), kv)
    k_rope = block.add("k_rope", ExpandHeads(heads), k_rope)
    k = block.add("k", Concat(), k_nope, k_rope)

    block.paragraph()
    out = block.add("out", CausalAttention(_variant(spec), scope.prefix.lower()), q, k, v)
    out = block.add("out", FlattenHeads(), out)
    return block.finish(block.add("out", Linear("o_proj", heads * value, hidden, dtype, "attention"), out))


def _queries(block: BlockBuilder, context: Context, scope: Scope, spec: MlaAttention, x: Value, width: Dim) -> Value:
    """[B, S, width], through a latent of their own where the spec has one."""
    hidden, dtype = context.hidden_size, context.dtype
    if spec.q_lora_rank is None:
        return block.add("q", Linear("q_proj", hidden, width, dtype, "attention"), x)
    rank = scope.dim("Q_LORA_RANK", spec.q_lora_rank, "q_lora_rank", "Q")
    eps = scope.number("LATENT_NORM_EPS", spec.latent_norm_eps, "latent_norm_eps")
    q_latent = block.add("q_latent", Linear("q_a_proj", hidden, rank, dtype, "attention"), x)
    q_latent = block.add("q_latent", RmsNorm("q_a_layernorm", rank, eps, dtype), q_latent)
    return block.add("q", Linear("q_b_proj", rank, width, dtype, "attention"), q_latent)


def _variant(spec: MlaAttention) -> str:
    """PyTorch's fused attention wants equal head dims: the narrower side is padded."""
    qk = spec.qk_nope_head_dim + spec.qk_rope_head_dim
    if qk == spec.v_head_dim:
        return "equal"
    return "padded_v" if qk > spec.v_head_dim else "padded_qk"


def _doc(spec: MlaAttention) -> str:
    queries = "" if spec.q_lora_rank is None else ", queries through a latent too"
    return f"Multi-head latent attention in its expanded form{queries} (DeepSeek-V2, section 2.1)."
