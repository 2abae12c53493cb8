"""Pairs of specs that differ by one change of one key, for every key of the schema, at toy sizes.

Each changes something that shows, where the key has any effect on what a model computes.
"""

from __future__ import annotations

import copy
import json
import re
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from dsc.compiler.facts.breaking_rules import CATEGORIES
from dsc.spec.loader import loads
from dsc.spec.model import ModelSpec
from dsc.spec.page import language_page
from dsc.spec.zoo import CLUSTERS

Sections = dict[str, Any]

MLA: Sections = {
    "name": "small",
    "vocab_size": 64,
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
                "original_max_position_embeddings": 16,
                "beta_fast": 4.0,
                "beta_slow": 0.5,
                "mscale": 1.0,
                "mscale_all_dim": 0.5,
            },
        },
    },
    "ffn": {
        "dense": {"intermediate_size": 40},
        "moe": {
            "n_routed_experts": 16,
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
                "balance": {"bias_update_rate": 0.001, "sequence_aux_loss_alpha": 0.0001},
            },
        },
    },
    "layers": [{"repeat": 1, "ffn": "dense"}, {"repeat": 2, "ffn": "moe"}, {"repeat": 1, "ffn": "moe"}],
    "mtp": {"depth": 1},
    "precision": {"parameters": "fp32", "kv_cache": "fp32"},
    "workload": {"sequence_length": 16},
}

GQA: Sections = {
    **{key: MLA[key] for key in ("name", "vocab_size", "hidden_size", "max_position_embeddings", "norm")},
    "attention": {
        "kind": "gqa",
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "qk_norm": {"eps": 1e-6},
        "rope": {
            "layout": "half",
            "theta": 100.0,
            "scaling": {
                "kind": "llama3",
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    },
    "ffn": {"dense": {"intermediate_size": 40}},
    "layers": [{"repeat": 2, "ffn": "dense"}],
    **{key: MLA[key] for key in ("precision", "workload")},
}
WINDOW: Sections = {**GQA, "attention": {**GQA["attention"], "kind": "window", "window": 8}}
CYCLE: Sections = {
    **GQA,
    "attention": {"local": WINDOW["attention"], "all": GQA["attention"]},
    "ffn": {**GQA["ffn"], "wide": {"kind": "dense", "intermediate_size": 48}},
    "layers": [
        {
            "repeat": 2,
            "cycle": [
                {"attention": "local", "ffn": "dense"},
                {"attention": "all", "ffn": "wide"},
                {"attention": "local", "ffn": "wide"},
            ],
        },
        {"repeat": 1, "attention": "all", "ffn": "dense"},
    ],
}
MIXTRAL = {
    **GQA,
    "attention": {key: value for key, value in GQA["attention"].items() if key != "qk_norm"},
    "ffn": {
        "moe": {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "router": {"score": "softmax", "norm_topk_prob": True},
        }
    },
    "layers": [{"repeat": 2, "ffn": "moe"}],
}
MIXTRAL["attention"]["rope"] = {"layout": "half", "theta": 100.0}
H800: Sections = {**MLA, "cluster": {"kind": "h800", "nodes": 2}}
SENT: Sections = {
    **MLA,
    "hidden_size": 256,
    "precision": {"parameters": "bf16"},
    "cluster": {"kind": "h800", "gpus": 2},
    "placement": {"pp": 1, "dp": 2, "ep": 2},
}
GPUS: Sections = {**MLA, "cluster": {"kind": "h800", "gpus": 8}}
MACHINE = YAML(typ="safe").load(CLUSTERS / "h800.yaml") | {"name": "mine"}
MINE: Sections = {**MLA, "cluster": {"kind": "mine", "nodes": 2, "machine": MACHINE}}
MACHINE_CHANGES = {
    **{key: value / 2 for key, value in MACHINE.items() if isinstance(value, float)},
    **{key: value // 2 for key, value in MACHINE.items() if isinstance(value, int)},
    **dict.fromkeys(("name", "gpu", "source", "links_source"), "another"),
}
FP8 = {"kind": "fp8_block"}
FP8_WEIGHTS: Sections = {**MLA, "precision": {**MLA["precision"], "linear": FP8}}
CLUSTER = {"kind": "h800", "nodes": 1}
SPIKE = {"action": "skip"}
MARKS = {"begin": "<think>", "end": "</think>"}
THINKS: Sections = {**MLA, "tokens": {"reasoning": MARKS}}
SERVED: Sections = {**MLA, "serving": {"ep": 2}}
LATER = {"after_tokens": 1000, "loss_weight": 0.1}
WEIGHED: Sections = {**MLA, "mtp": {**MLA["mtp"], "later": LATER}}
SPIKES: Sections = {**MLA, "training": {"spike": SPIKE}}
SPIKE_CHANGES = {"deviations": (3.0, ""), "window": (16, ""), "action": ("count", "python")}

GROWS: Sections = {
    **MLA,
    "workload": {**MLA["workload"], "global_batch": 64},
    "training": {"batch_ramp": {"start": 16, "increment": 16, "tokens": 1000}},
}
RAMP_CHANGES = {"start": 32, "increment": 48, "tokens": 2000}

PENALTY = {"buffer": 4}
REWARDS: Sections = {**MLA, "rl": {"max_new_tokens": 16, "length_penalty": PENALTY}}
REWARD_CHANGES = {
    "group_size": 8,
    "max_new_tokens": 32,
    "temperature": 0.5,
    "ratio": "sequence",
    "clip_low": 0.2,
    "clip_high": 0.28,
    "kl": 0.0,
    "reference_refresh": 200,
    "denominator": "tokens",
    "std_normalization": False,
    "epochs": 2,
    "importance_cap": 2.0,
    "overlong_mask": True,
    "length_penalty": None,
    "length_penalty.buffer": 8,
    "length_penalty.weight": 0.5,
}

PINS: dict[str, tuple[Any, str]] = {  # where layers cannot be compiled, the trainer has nothing that does it
    "pp": (2, "python plan"),
    "vpp": (2, "python plan"),
    "schedule": ("1f1b", "plan"),
    "tp": (2, "python plan"),
    "cp": (2, "python plan"),
    "ep": (2, "python plan"),
    "etp": (2, "python plan"),
    "dp": (2, "python plan"),
    "zero": (1, "plan"),
    "micro_batch": (2, "plan"),
    "recompute": (["norms"], "python plan"),
    "activations": ("bf16", "plan"),
}
FP8_CHANGES: dict[str, tuple[Any, str]] = {  # without FP8, export has nothing that writes codes
    "products": ({"experts": "bf16"}, "python"),
    "products.attention": ("bf16", "python"),
    "products.feed_forward": ("bf16", "python"),
    "products.experts": ("bf16", "python"),
    "weight_block": ([64, 128], ""),
    "activation_block": ([2, 128], "python"),
    "scale": ("ue8m0", ""),
}

BASES = {
    "mla": MLA,
    "gqa": GQA,
    "mixtral": MIXTRAL,
    "h800": H800,
    "sent": SENT,
    "gpus": GPUS,
    "mine": MINE,
    "window": WINDOW,
    "cycle": CYCLE,
    "fp8": FP8_WEIGHTS,
    "spike": SPIKES,
    "later": WEIGHED,
    "grows": GROWS,
    "thinks": THINKS,
    "rewards": REWARDS,
    "served": SERVED,
}


class Change(NamedTuple):
    base: str
    key: str
    """Dotted, of what is replaced; in the table, of what the schema calls it."""
    value: Any
    """None takes the key away."""
    breaks: str
    """The categories, as the table shows them; empty where nothing breaks."""

    @property
    def id(self) -> str:
        return f"{self.base}: {self.key} = {json.dumps(self.value)}"

    @property
    def schema_key(self) -> str:
        """layers[].repeat for layers.1.repeat."""
        return re.sub(r"\.\d+\b", "[]", self.key)

    def specs(self) -> tuple[ModelSpec, ModelSpec]:
        return _spec(BASES[self.base]), _spec(_changed(BASES[self.base], self.key.split("."), self.value))


def _spec(sections: Sections) -> ModelSpec:
    return loads(json.dumps(sections), "spec.yaml")


def _changed(sections: Sections, parts: list[str], value: Any) -> Sections:
    new = copy.deepcopy(sections)
    *outer, last = [int(part) if part.isdigit() else part for part in parts]
    place: Any = new
    for part in outer:
        place = place[part] if isinstance(part, int) else place.setdefault(part, {})
    if value is None:
        del place[last]
    else:
        place[last] = value
    return new


ROPE, SCALING, ROUTER = "attention.rope", "attention.rope.scaling", "ffn.moe.router"
CHANGES = (
    Change("mla", "name", "other", "python"),
    Change("mla", "tokens.bos", 1, ""),
    Change("mla", "tokens.eos", [2], ""),
    Change("mla", "tokens.pad", 3, ""),
    Change("mla", "tokens.reasoning", MARKS, "python"),
    *(Change("thinks", f"tokens.reasoning.{key}", "<other>", "") for key in MARKS),
    Change("mla", "vocab_size", 72, "checkpoint plan"),
    Change("mla", "hidden_size", 40, "checkpoint plan"),
    Change("mla", "max_position_embeddings", 32, "plan"),
    Change("mla", "max_position_embeddings", 128, ""),
    Change("mla", "tie_word_embeddings", True, "checkpoint"),
    Change("mla", "initializer_range", 0.01, ""),
    Change("mla", "embedding_multiplier", 2.0, "meaning"),
    Change("mla", "logit_multiplier", 0.5, "meaning"),
    Change("mla", "z_loss", 1e-4, ""),
    Change("mla", "norm.eps", 1e-4, "meaning"),
    Change("mla", "residual.kind", "add", ""),
    Change("mla", "residual.multiplier", 0.5, "meaning"),
    Change("gqa", "attention", MLA["attention"], "checkpoint meaning plan"),
    Change("mla", "attention.num_attention_heads", 2, "checkpoint"),
    Change("gqa", "attention.num_attention_heads", 8, "checkpoint plan"),
    Change("mla", "attention.q_lora_rank", None, "checkpoint"),
    Change("mla", "attention.kv_lora_rank", 24, "checkpoint plan"),
    Change("mla", "attention.qk_nope_head_dim", 8, "checkpoint"),
    Change("mla", "attention.qk_rope_head_dim", 4, "checkpoint plan"),
    Change("mla", "attention.v_head_dim", 8, "checkpoint"),
    Change("mla", "attention.latent_norm_eps", 1e-4, "meaning"),
    Change("window", "attention.window", 4, "meaning plan"),
    Change("gqa", "attention", WINDOW["attention"], "meaning plan"),
    Change("gqa", "attention.num_key_value_heads", 4, "checkpoint plan"),
    Change("gqa", "attention.head_dim", 16, "checkpoint plan"),
    Change("gqa", "attention.qkv_bias", True, "checkpoint plan"),
    Change("gqa", "attention.qk_norm", None, "checkpoint"),
    Change("gqa", "attention.qk_norm.eps", 1e-4, "meaning"),
    Change("mla", f"{ROPE}.layout", "half", "meaning"),
    Change("mla", f"{ROPE}.theta", 50.0, "meaning"),
    Change("mla", SCALING, None, "meaning"),
    Change("mla", f"{SCALING}.factor", 2.0, "meaning"),
    Change("mla", f"{SCALING}.original_max_position_embeddings", 64, "meaning"),
    Change("mla", f"{SCALING}.beta_fast", 0.6, "meaning"),
    Change("mla", f"{SCALING}.beta_slow", 0.1, "meaning"),
    Change("mla", f"{SCALING}.mscale", 2.0, "meaning"),
    Change("mla", f"{SCALING}.mscale_all_dim", 1.0, "meaning"),
    Change("gqa", f"{SCALING}.factor", 2.0, "meaning"),
    Change("gqa", f"{SCALING}.low_freq_factor", 2.0, "meaning"),
    Change("gqa", f"{SCALING}.high_freq_factor", 2.0, "meaning"),
    Change("mla", "ffn.dense.intermediate_size", 48, "checkpoint plan"),
    Change("mla", "ffn.swiglu_limit", 1e-3, "meaning"),
    Change("mla", "ffn.moe.n_routed_experts", 24, "checkpoint plan"),
    Change("mla", "ffn.moe.num_experts_per_tok", 2, "meaning"),
    Change("mla", "ffn.moe.moe_intermediate_size", 24, "checkpoint plan"),
    Change("mla", "ffn.moe.n_shared_experts", 2, "checkpoint plan"),
    Change("mla", f"{ROUTER}.score", "softmax", "meaning"),
    Change("mla", f"{ROUTER}.n_group", 8, "meaning"),
    Change("mla", f"{ROUTER}.topk_group", 3, "meaning"),
    Change("mla", f"{ROUTER}.group_score", "max", "meaning"),
    Change("mla", f"{ROUTER}.norm_topk_prob", False, "meaning"),
    Change("mixtral", f"{ROUTER}.norm_topk_prob", False, "checkpoint meaning"),
    Change("mla", f"{ROUTER}.routed_scaling_factor", 1.0, "meaning"),
    Change("mla", f"{ROUTER}.compute_dtype", "model", "meaning"),
    Change("mla", f"{ROUTER}.balance.bias_update_rate", 0.01, ""),
    Change("mla", f"{ROUTER}.balance.sequence_aux_loss_alpha", 0.01, ""),
    Change("mla", f"{ROUTER}.balance", None, "python"),
    Change("mixtral", f"{ROUTER}.selection_bias", True, "checkpoint meaning"),
    Change("mla", "layers.1.repeat", 1, "checkpoint plan"),
    Change("mla", "layers.2.ffn", "dense", "checkpoint"),
    Change("cycle", "layers.0.cycle.2.attention", "all", "meaning plan"),
    Change("cycle", "layers.0.cycle.2.ffn", "dense", "checkpoint"),
    Change("cycle", "layers.1.attention", "local", "meaning plan"),
    Change("cycle", "ffn.wide.intermediate_size", 56, "checkpoint plan"),
    Change("cycle", "attention.local.rope.theta", 50.0, "meaning"),
    Change("cycle", "layers.0.repeat", 1, "checkpoint plan"),
    Change("mla", "mtp", None, "checkpoint python"),
    Change("gqa", "mtp", {"depth": 1}, "plan"),
    Change("mla", "mtp.depth", 2, "checkpoint plan"),
    Change("mla", "mtp.hidden", "pre_norm", ""),
    Change("mla", "mtp.loss_weight", 0.1, ""),
    Change("mla", "mtp.later", LATER, ""),
    Change("later", "mtp.later.after_tokens", 2000, ""),
    Change("later", "mtp.later.loss_weight", 0.2, ""),
    Change("mla", "precision.parameters", "bf16", "plan"),
    Change("mla", "precision.kv_cache", "bf16", "plan"),
    Change("mla", "precision.linear", FP8, ""),
    Change("mla", "precision.optimizer.gradients", "bf16", "plan"),
    Change("mla", "precision.optimizer.master", "none", "plan"),
    Change("mla", "precision.optimizer.moments", "bf16", "plan"),
    Change("mla", "workload.sequence_length", 32, "plan"),
    Change("mla", "workload.global_batch", 64, "plan"),
    Change("mla", "training.documents", "apart", "python"),
    Change("mla", "training.not_finite", "skip", ""),
    Change("mla", "training.spike", SPIKE, ""),
    Change("grows", "training.batch_ramp", None, "python"),
    *(Change("grows", f"training.batch_ramp.{key}", value, "") for key, value in RAMP_CHANGES.items()),
    *(Change("spike", f"training.spike.{key}", value, breaks) for key, (value, breaks) in SPIKE_CHANGES.items()),
    *(Change("rewards", f"rl.{key}", value, "") for key, value in REWARD_CHANGES.items()),
    Change("rewards", "rl.router_replay", True, "python"),
    Change("mla", "serving", {"ep": 2}, "python plan"),
    Change("served", "serving.ep", 4, "plan"),
    Change("served", "serving.tp", 2, "python plan"),
    Change("served", "serving.redundant_experts", 2, "python plan"),
    Change("mla", "cluster", CLUSTER, "python plan"),
    Change("h800", "cluster.kind", "h100", "plan"),
    Change("h800", "cluster.nodes", 4, "plan"),
    Change("gpus", "cluster.gpus", 12, "plan"),
    *(Change("mine", f"cluster.machine.{key}", value, "plan") for key, value in MACHINE_CHANGES.items()),
    Change("mine", "cluster.machine.architecture", "blackwell", "plan"),
    *(Change("h800", f"placement.{name}", value, breaks) for name, (value, breaks) in PINS.items()),
    Change("sent", "placement.dispatch", "deepep", "plan"),
    *(Change("fp8", f"precision.linear.{key}", value, breaks) for key, (value, breaks) in FP8_CHANGES.items()),
)


def language() -> str:
    """spec/README.md, with what a change of each key breaks."""
    found: dict[str, dict[str, None]] = {}
    for change in CHANGES:
        found.setdefault(change.schema_key, {}).update(dict.fromkeys(change.breaks.split()))
    return language_page({key: " ".join(one for one in CATEGORIES if one in broken) for key, broken in found.items()})
