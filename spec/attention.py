"""Attention kinds. A new kind is one class here, in the `Attention` union, and one builder in compiler/blocks."""

from typing import Annotated, Literal

from pydantic import Field

from dsc.spec.base import Count, PositiveFloat, Section
from dsc.spec.rope import Rope


class MlaAttention(Section):
    """Multi-head latent attention (DeepSeek-V2, section 2.1): keys and values from one small latent per token."""

    kind: Literal["mla"]
    num_attention_heads: Count
    q_lora_rank: Count | None = None
    """Rank of the query latent; null projects queries straight from the hidden state."""
    kv_lora_rank: Count
    qk_nope_head_dim: Count
    qk_rope_head_dim: Count
    v_head_dim: Count
    latent_norm_eps: PositiveFloat = 1e-6
    """Epsilon of the two latent norms. Not always the model's norm.eps: Hugging Face fixes it at 1e-6."""
    rope: Rope


class QkNorm(Section):
    """RMSNorm over each head of q and k, before rotation (Qwen3)."""

    eps: PositiveFloat


class GqaAttention(Section):
    """Grouped-query attention (arXiv 2305.13245); num_key_value_heads = num_attention_heads is multi-head."""

    kind: Literal["gqa"]
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Count
    qk_norm: QkNorm | None = None
    rope: Rope


Attention = Annotated[MlaAttention | GqaAttention, Field(discriminator="kind")]
