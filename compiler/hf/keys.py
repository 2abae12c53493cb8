"""What config.json of Hugging Face calls the keys of a spec, where it has a key for them."""

from __future__ import annotations

# Every other key that config.json has is called there what it is called here.
OTHERWISE = {
    "norm.eps": "rms_norm_eps",
    "attention.rope.theta": "rope_theta",
    "attention.rope.layout": "rope_interleave",
    "attention.rope.scaling.kind": "rope_scaling.type",
    "attention.rope.scaling.factor": "rope_scaling.factor",
    "attention.rope.scaling.original_max_position_embeddings": "rope_scaling.original_max_position_embeddings",
    "attention.rope.scaling.beta_fast": "rope_scaling.beta_fast",
    "attention.rope.scaling.beta_slow": "rope_scaling.beta_slow",
    "attention.rope.scaling.mscale": "rope_scaling.mscale",
    "attention.rope.scaling.mscale_all_dim": "rope_scaling.mscale_all_dim",
    "attention.rope.scaling.low_freq_factor": "rope_scaling.low_freq_factor",
    "attention.rope.scaling.high_freq_factor": "rope_scaling.high_freq_factor",
    "ffn.moe.router.score": "scoring_func",
    "layers[].repeat": "num_hidden_layers",
    "mtp.depth": "num_nextn_predict_layers",
}
SAME = (
    "vocab_size",
    "hidden_size",
    "max_position_embeddings",
    "tie_word_embeddings",
    "initializer_range",
    "attention.num_attention_heads",
    "attention.q_lora_rank",
    "attention.kv_lora_rank",
    "attention.qk_nope_head_dim",
    "attention.qk_rope_head_dim",
    "attention.v_head_dim",
    "attention.num_key_value_heads",
    "attention.head_dim",
    "ffn.dense.intermediate_size",
    "ffn.moe.n_routed_experts",
    "ffn.moe.num_experts_per_tok",
    "ffn.moe.moe_intermediate_size",
    "ffn.moe.n_shared_experts",
    "ffn.moe.router.n_group",
    "ffn.moe.router.topk_group",
    "ffn.moe.router.norm_topk_prob",
    "ffn.moe.router.routed_scaling_factor",
)


def config_key(key: str) -> str | None:
    """As DeepSeek's config.json has it, and Llama's for what only that has."""
    return key.rpartition(".")[2] if key in SAME else OTHERWISE.get(key)
