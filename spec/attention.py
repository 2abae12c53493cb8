"""Attention kinds. A new kind is one class here, in the `Attention` union, and one builder in compiler/blocks."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from dsc.spec.base import Count, Epsilon, KindName, Section
from dsc.spec.rope import Rope

SEVERAL = "*"  # stands where the kind of a single section would


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
    latent_norm_eps: Epsilon = 1e-6
    """Epsilon of the two latent norms. Not always the model's norm.eps: Hugging Face fixes it at 1e-6."""
    rope: Rope
    """How positions are encoded in the rotary parts of queries and keys."""


class QkNorm(Section):
    """RMSNorm over each head of q and k, before rotation (Qwen3)."""

    eps: Epsilon
    """Added to the mean square before the root."""


class GroupedQueries(Section):
    """What the kinds share whose query heads share key-value heads (arXiv 2305.13245)."""

    kind: str
    num_attention_heads: Count
    """Query heads."""
    num_key_value_heads: Count
    """Key-value heads, each shared by num_attention_heads / num_key_value_heads query heads."""
    head_dim: Count
    """Width of each head's queries, keys and values; even."""
    qkv_bias: bool = False
    """Whether the projections to queries, keys and values add a bias (Qwen2)."""
    qk_norm: QkNorm | None = None
    """RMSNorm of each head's queries and keys before rotation; null for none."""
    rope: Rope
    """How positions are encoded in queries and keys."""


class GqaAttention(GroupedQueries):
    """Grouped-query attention (arXiv 2305.13245); num_key_value_heads = num_attention_heads is multi-head."""

    kind: Literal["gqa"]


class WindowAttention(GroupedQueries):
    """Grouped-query attention to the latest tokens only (Mistral 7B, arXiv 2310.06825, section 2)."""

    kind: Literal["window"]
    window: Count
    """Tokens that a token sees: itself and the window - 1 before it (Hugging Face's sliding_window)."""


Attention = Annotated[MlaAttention | GqaAttention | WindowAttention, Field(discriminator="kind")]


def _form(value: object) -> str | None:
    """The kind of a section; SEVERAL for sections by name, of which one at least has a kind."""
    if isinstance(value, dict) and "kind" not in value:
        return SEVERAL if any(_form(inner) not in (None, SEVERAL) for inner in value.values()) else None
    return str(value["kind"]) if isinstance(value, dict) else getattr(value, "kind", None)


def _by_name(attentions: dict[str, Attention]) -> dict[str, Attention]:
    """In an order that does not depend on how the file has it."""
    return dict(sorted(attentions.items()))


OneOrSeveral = Annotated[
    Annotated[MlaAttention, Tag("mla")]
    | Annotated[GqaAttention, Tag("gqa")]
    | Annotated[WindowAttention, Tag("window")]
    | Annotated[dict[KindName, Attention], AfterValidator(_by_name), Tag(SEVERAL)],
    Discriminator(_form),
]
"""One attention for all layers, or several by the names that layers give."""
