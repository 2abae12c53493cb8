"""Attention kinds. A new kind is one class here, in the `Attention` union, and one builder in compiler/blocks."""

from typing import Annotated, Literal

from pydantic import Field

from dsc.spec.base import Count, PositiveFloat, Section
from dsc.spec.rope import Rope


class MlaAttention(Section):
    """Multi-head latent attention (DeepSeek-V2, section 2.1): keys and values from one small latent per token."""

    kind: Literal["mla"]
    num_attention_heads: Count
    """Heads, each with queries, keys and values of its own."""
    q_lora_rank: Count | None = None
    """Rank of the query latent; null projects queries straight from the hidden state."""
    kv_lora_rank: Count
    """Rank of the latent of keys and values: what is cached of each token, besides one rotary key."""
    qk_nope_head_dim: Count
    """Width of the part of each head's queries and keys that knows no position."""
    qk_rope_head_dim: Count
    """Width of the rotary part, whose key all heads share; even."""
    v_head_dim: Count
    """Width of each head's values."""
    latent_norm_eps: PositiveFloat = 1e-6
    """Epsilon of the two latent norms. Not always the model's norm.eps: Hugging Face fixes it at 1e-6."""
    rope: Rope
    """How positions are encoded in the rotary parts of queries and keys."""


class QkNorm(Section):
    """RMSNorm over each head of q and k, before rotation (Qwen3)."""

    eps: PositiveFloat
    """Added to the mean square before the root."""


class GqaAttention(Section):
    """Grouped-query attention (arXiv 2305.13245); num_key_value_heads = num_attention_heads is multi-head."""

    kind: Literal["gqa"]
    num_attention_heads: Count
    """Query heads."""
    num_key_value_heads: Count
    """Key-value heads, each shared by num_attention_heads / num_key_value_heads query heads."""
    head_dim: Count
    """Width of each head's queries, keys and values; even."""
    qk_norm: QkNorm | None = None
    """RMSNorm of each head's queries and keys before rotation; null for none."""
    rope: Rope
    """How positions are encoded in queries and keys."""


Attention = Annotated[MlaAttention | GqaAttention, Field(discriminator="kind")]
