"""Small models of every family, as a user has them: the arguments of transformers' configuration classes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

Config = Mapping[str, object]

VOCABULARY = 83
ORIGINAL_LENGTH = 8  # of the rotary scalings: shorter than the sequences under test
LENGTH = 21

YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": ORIGINAL_LENGTH,
    "beta_fast": 4.0,
    "beta_slow": 0.5,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 0.5,
    "high_freq_factor": 2.0,
    "original_max_position_embeddings": ORIGINAL_LENGTH,
}
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "torch_dtype": "float32",
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LATENT = {
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
}
DEEPSEEK = {
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "rope_theta": 100.0,
    "rope_scaling": YARN,
}
BASES: dict[str, Config] = {
    "deepseek_v2": {
        **(COMMON | LATENT | DEEPSEEK),
        "topk_method": "group_limited_greedy",
        "norm_topk_prob": False,
        "routed_scaling_factor": 16.0,
        "n_shared_experts": 2,
    },
    "deepseek_v3": {
        **(COMMON | LATENT | DEEPSEEK),
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "num_nextn_predict_layers": 0,
    },
    "llama": {
        **COMMON,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100.0,
        "rope_scaling": LLAMA3,
    },
    "qwen3_moe": {
        **COMMON,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "moe_intermediate_size": 16,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
        "rope_theta": 100.0,
    },
    "mixtral": {
        **COMMON,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100.0,
        "sliding_window": None,
    },
    "qwen3": {
        **COMMON,
        "num_hidden_layers": 5,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "rope_theta": 100.0,
        "use_sliding_window": True,
        "sliding_window": 6,  # far below the sequences under test
        "layer_types": ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
    },
    "qwen2": {
        **COMMON,
        "num_hidden_layers": 5,
        "num_key_value_heads": 2,
        "rope_theta": 100.0,
        "use_sliding_window": True,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
    },
    "mistral": {
        **COMMON,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100.0,
        "sliding_window": 6,
    },
    "minicpm3": {
        **(COMMON | LATENT),
        "v_head_dim": 8,
        "rms_norm_eps": 1e-5,
        "scale_emb": 3,
        "scale_depth": 1.4,
        "dim_model_base": 8,
        "rope_theta": 100.0,
    },
}


@dataclass(frozen=True)
class Case:
    """A model to compare: a family's base with some keys changed."""

    family: str
    variant: str
    changes: Config = field(default_factory=dict, hash=False)
    bias: tuple[float, float] = (-0.3, 0.3)
    """Range of the router's selection bias."""

    @property
    def config(self) -> dict[str, object]:
        return {**BASES[self.family], **self.changes}

    @property
    def is_base(self) -> bool:
        return self.variant == "base"

    def __str__(self) -> str:
        return f"{self.family}-{self.variant}"


def yarn(**changes: float) -> Config:
    return {"rope_scaling": {**YARN, **changes}}


def _cases(family: str, variants: Mapping[str, Config]) -> list[Case]:
    return [Case(family, "base"), *(Case(family, name, changes) for name, changes in variants.items())]


ODD_DENSE_LATENT = {
    "hidden_size": 37,
    "intermediate_size": 29,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "q_lora_rank": 9,
    "kv_lora_rank": 11,
    "qk_nope_head_dim": 5,
    "qk_rope_head_dim": 6,
    "v_head_dim": 7,
}
ODD_LATENT = {**ODD_DENSE_LATENT, "moe_intermediate_size": 13}
ODD_GROUPED = {"hidden_size": 33, "num_attention_heads": 3, "num_key_value_heads": 3, "intermediate_size": 29}
ONE_GROUP = {"n_group": 1, "topk_group": 1}
# Without a scaling, mscale has nothing to scale.
MAGNITUDES: dict[str, Config] = {
    "mscale_unlike_mscale_all_dim": yarn(mscale=0.6, mscale_all_dim=1.3),
    "mscale_all_dim_0": yarn(mscale_all_dim=0.0),
    "mscale_0707": yarn(mscale=0.707, mscale_all_dim=0.707),
    "betas_1_1": yarn(beta_fast=1.0, beta_slow=1.0),
    "plain_rope": {"rope_scaling": None},
}
LATENT_SHAPES: dict[str, Config] = {
    "no_query_latent": {"q_lora_rank": None},
    "values_wider_than_keys": {"v_head_dim": 28},
    "values_as_wide_as_keys": {"v_head_dim": 20},
    "one_head": {"num_attention_heads": 1, "num_key_value_heads": 1},
}
DEEPSEEK_VARIANTS: dict[str, Config] = {
    **(MAGNITUDES | LATENT_SHAPES),
    "one_group": ONE_GROUP,
    "every_group_open": {"topk_group": 4},
    "one_expert_per_token": {"num_experts_per_tok": 1, "norm_topk_prob": False},
    "all_open_experts_chosen": {"num_experts_per_tok": 4},
    "all_layers_moe": {"first_k_dense_replace": 0},
    "all_layers_dense": {"first_k_dense_replace": 3},
    "no_shared_experts": {"n_shared_experts": 0},
    "one_moe_layer": {"first_k_dense_replace": 2},
    "tied": {"tie_word_embeddings": True},
}

CASES: list[Case] = [
    *_cases(
        "deepseek_v2",
        {
            **DEEPSEEK_VARIANTS,
            # transformers' deepseek_v2 wants heads that divide hidden_size, and rotated parts at even offsets.
            "odd": {**ODD_LATENT, "hidden_size": 39, "kv_lora_rank": 10, "qk_nope_head_dim": 4},
            "greedy": {"topk_method": "greedy"},
            "groups_of_one_expert": {"n_group": 8, "topk_group": 3, "num_experts_per_tok": 2},
            "one_shared_expert": {"n_shared_experts": 1},
            "unscaled": {"routed_scaling_factor": 1.0},
        },
    ),
    *_cases(
        "deepseek_v3",
        {
            **DEEPSEEK_VARIANTS,
            "odd": ODD_LATENT,
            "half_layout": {"rope_interleave": False},
            "not_normalised": {"norm_topk_prob": False},
            "two_shared_experts": {"n_shared_experts": 2},
            "eps_1e-5": {"rms_norm_eps": 1e-5},
        },
    ),
    # A bias that makes choices negative: a filler of 0 would open the closed groups (gotcha G11).
    Case("deepseek_v3", "bias_down_to_-1", bias=(-1.0, -0.7)),
    Case("deepseek_v3", "bias_-1_to_1", bias=(-1.0, 1.0)),
    *_cases(
        "llama",
        {
            "multi_head": {"num_key_value_heads": 4},
            "one_kv_head": {"num_key_value_heads": 1},
            "wide_heads": {"head_dim": 14},
            "odd": {**ODD_GROUPED, "num_key_value_heads": 1, "head_dim": 6},
            "tied": {"tie_word_embeddings": True},
            "plain_rope": {"rope_scaling": None},
            "yarn": {"rope_scaling": {k: v for k, v in YARN.items() if not k.startswith("mscale")}},
        },
    ),
    *_cases(
        "qwen3_moe",
        {
            "not_normalised": {"norm_topk_prob": False},
            "one_expert_per_token": {"num_experts_per_tok": 1, "norm_topk_prob": False},
            "all_experts": {"num_experts_per_tok": 8},
            "dense_in_the_middle": {"mlp_only_layers": [1]},
            "every_second_layer": {"decoder_sparse_step": 2, "num_hidden_layers": 5},
            "multi_head": {"num_key_value_heads": 4},
            "one_kv_head": {"num_key_value_heads": 1},
            "odd": {**ODD_GROUPED, "num_key_value_heads": 1, "moe_intermediate_size": 13, "num_experts": 7},
            "tied": {"tie_word_embeddings": True},
            "eps_1e-5": {"rms_norm_eps": 1e-5},
        },
    ),
    *_cases(
        "mixtral",
        {
            "all_experts": {"num_experts_per_tok": 4},
            "multi_head": {"num_key_value_heads": 4},
            "one_kv_head": {"num_key_value_heads": 1},
            "odd": {**ODD_GROUPED, "num_local_experts": 5, "num_experts_per_tok": 3, "head_dim": 6},
            "tied": {"tie_word_embeddings": True},
        },
    ),
    *_cases(
        "qwen3",
        {
            "last_layers": {"layer_types": None, "max_window_layers": 3},
            "all_layers": {"layer_types": None, "max_window_layers": 0},
            "no_window": {"use_sliding_window": False, "layer_types": None},
            "window_of_2": {"sliding_window": 2},
            "window_longer_than_the_sequence": {"sliding_window": LENGTH + 9},
            "multi_head": {"num_key_value_heads": 4},
            "odd": {**ODD_GROUPED, "num_key_value_heads": 1},
            "tied": {"tie_word_embeddings": True},
        },
    ),
    *_cases(
        "qwen2",
        {
            "last_layers": {"layer_types": None, "max_window_layers": 3},
            "no_window": {"use_sliding_window": False, "layer_types": None},
            "multi_head": {"num_key_value_heads": 4},
            "odd": {**ODD_GROUPED, "num_key_value_heads": 1, "head_dim": 6},
            "tied": {"tie_word_embeddings": True, "use_sliding_window": False, "layer_types": None},
        },
    ),
    *_cases(
        "mistral",
        {
            "no_window": {"sliding_window": None},
            "window_of_the_sequence": {"sliding_window": LENGTH},
            "one_kv_head": {"num_key_value_heads": 1},
            "wide_heads": {"head_dim": 14},
            "odd": {**ODD_GROUPED, "num_key_value_heads": 1, "head_dim": 6},
        },
    ),
    *_cases(
        "minicpm3",
        {
            **LATENT_SHAPES,
            "untied": {"tie_word_embeddings": False},
            "odd": {**ODD_DENSE_LATENT, "hidden_size": 39},
            "no_multipliers": {"scale_emb": 1, "scale_depth": None, "dim_model_base": None},
            "yarn": yarn(),
            "mscale_unlike_mscale_all_dim": yarn(mscale=0.6, mscale_all_dim=1.3),
        },
    ),
]


def case(name: str) -> Case:
    """The case with a name, such as deepseek_v3-odd."""
    return next(one for one in CASES if str(one) == name)
