"""Small specs, for what configs of transformers cannot say."""

import copy
import json
from typing import Any

from numerics.families import VOCABULARY

Sections = dict[str, Any]

BASE: Sections = {
    "name": "small",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "max_position_embeddings": 64,
    "norm": {"eps": 1e-6},
    "attention": {
        "kind": "mla",
        "num_attention_heads": 4,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 8,
        "v_head_dim": 12,
        "rope": {
            "layout": "interleaved",
            "theta": 100.0,
            "scaling": {
                "kind": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 8,
                "beta_fast": 4.0,
                "beta_slow": 0.5,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            },
        },
    },
    "ffn": {
        "dense": {"intermediate_size": 40},
        "moe": {
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 16,
            "n_shared_experts": 1,
            "router": {
                "score": "sigmoid",
                "selection_bias": True,
                "n_group": 4,
                "topk_group": 2,
                "group_score": "top2_sum",
                "norm_topk_prob": True,
                "routed_scaling_factor": 2.5,
            },
        },
    },
    "layers": [{"repeat": 1, "ffn": "dense"}, {"repeat": 2, "ffn": "moe"}],
    "precision": {"parameters": "fp32", "kv_cache": "fp32"},
    "workload": {"sequence_length": 16},
}
GROUPED: Sections = {
    "kind": "gqa",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "qk_norm": {"eps": 1e-3},
    "rope": {"layout": "interleaved", "theta": 100.0},
}
WINDOW: Sections = {**GROUPED, "kind": "window", "window": 4}
SOFTMAX: Sections = {"score": "softmax", "norm_topk_prob": True}

SMALL_MOE: Sections = {
    "kind": "moe",
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "router": SOFTMAX,
}

ROUTER = "ffn.moe.router"
MTP = {"depth": 1, "hidden": "post_norm", "loss_weight": 0.3}


def spec_text(**changes: object) -> str:
    """The base with some keys set; in a keyword, __ stands for a dot: ffn__moe__n_shared_experts=2."""
    spec = copy.deepcopy(BASE)
    for path, value in changes.items():
        *sections, key = path.split("__")
        section = spec
        for name in sections:
            section = section[name]
        section[key] = value
    return json.dumps(spec)


def balanced(**balance: float) -> str:
    return spec_text(ffn__moe__router__balance=balance)


# What other implementations get wrong or cannot express (each is a field of the language).
SPECS: dict[str, str] = {
    "latent_eps_unlike_norm_eps": spec_text(norm={"eps": 1e-2}, attention__latent_norm_eps=1e-1),
    "softmax_normalised_and_scaled": spec_text(
        ffn__moe__router={**SOFTMAX, "n_group": 4, "topk_group": 2, "group_score": "max", "routed_scaling_factor": 4.0}
    ),
    "softmax_with_top2_groups": spec_text(
        ffn__moe__router={**SOFTMAX, "n_group": 4, "topk_group": 2, "group_score": "top2_sum"}
    ),
    "softmax_with_bias": spec_text(ffn__moe__router={**SOFTMAX, "selection_bias": True}),
    "sigmoid_without_bias": spec_text(ffn__moe__router={"score": "sigmoid", "norm_topk_prob": False}),
    "sigmoid_with_max_groups": spec_text(ffn__moe__router__group_score="max"),
    "groups_of_one_expert": spec_text(
        ffn__moe__router__group_score="max", ffn__moe__router__n_group=8, ffn__moe__router__topk_group=3
    ),
    "gate_in_the_model's_type": spec_text(ffn__moe__router__compute_dtype="model"),
    "dense_after_moe": spec_text(
        layers=[{"repeat": n, "ffn": kind} for n, kind in ((1, "moe"), (1, "dense"), (2, "moe"), (1, "dense"))]
    ),
    "experts_beside_grouped_attention": spec_text(attention=GROUPED),
    "multipliers": spec_text(embedding_multiplier=3.0, logit_multiplier=0.25, residual={"multiplier": 0.4}),
    "z_loss": spec_text(z_loss=0.3),
    "clamped_swiglu": spec_text(ffn__swiglu_limit=0.5),
    "mtp": spec_text(mtp=MTP),
    "mtp_with_z_loss": spec_text(mtp=MTP, z_loss=0.3),
    "mtp_before_the_norm": spec_text(mtp={**MTP, "hidden": "pre_norm"}),
    "mtp_of_depth_2": spec_text(mtp={**MTP, "depth": 2}),
    "mtp_of_depth_3_before_the_norm": spec_text(mtp={**MTP, "depth": 3, "hidden": "pre_norm"}),
    "mtp_tied_with_multipliers": spec_text(
        mtp=MTP, tie_word_embeddings=True, logit_multiplier=0.25, residual={"multiplier": 0.4}
    ),
    "mtp_beside_grouped_attention": spec_text(mtp={**MTP, "depth": 2}, attention=GROUPED),
    "mtp_with_dense_last_layer": spec_text(
        mtp=MTP, layers=[{"repeat": 1, "ffn": "moe"}, {"repeat": 1, "ffn": "dense"}]
    ),
    "sequence_balance_loss": balanced(sequence_aux_loss_alpha=0.7),
    "sequence_balance_loss_of_softmax": spec_text(
        ffn__moe__router={"score": "softmax", "norm_topk_prob": False, "balance": {"sequence_aux_loss_alpha": 0.7}}
    ),
    "window": spec_text(attention=WINDOW, mtp=MTP),
    "two_ropes": spec_text(
        attention={
            "local": {**WINDOW, "rope": {"layout": "half", "theta": 10.0}},
            "full": {**GROUPED, "num_key_value_heads": 4},
        },
        layers=[{"repeat": 2, "cycle": [{"attention": name, "ffn": "dense"} for name in ("local", "full")]}],
        ffn={"dense": {"intermediate_size": 40}},
        mtp=MTP,
    ),
    # Three attentions of two ropes and two layouts; of three feed-forwards, two mixtures of experts, one has a loss.
    "layers_in_turn": spec_text(
        attention={"local": WINDOW, "full": GROUPED, "latent": BASE["attention"]},
        ffn={
            **BASE["ffn"],
            "moe": {
                **BASE["ffn"]["moe"],
                "router": {**BASE["ffn"]["moe"]["router"], "balance": {"sequence_aux_loss_alpha": 0.7}},
            },
            "small": SMALL_MOE,
        },
        layers=[
            {"repeat": 1, "attention": "full", "ffn": "dense"},
            {
                "repeat": 2,
                "cycle": [
                    {"attention": "local", "ffn": "dense"},
                    {"attention": "latent", "ffn": "small"},
                    {"attention": "full", "ffn": "moe"},
                ],
            },
            {"repeat": 1, "attention": "local", "ffn": "moe"},
        ],
        mtp={**MTP, "depth": 2},
    ),
    "everything": spec_text(
        mtp={**MTP, "depth": 2},
        ffn__moe__router__balance={"bias_update_rate": 0.01, "sequence_aux_loss_alpha": 0.7},
    ),
}
