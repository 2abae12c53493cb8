"""Random specs, valid by construction: sizes that must divide are drawn as factors, the rest follows from them."""

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from dsc.spec.model import ModelSpec

sys.path.append(str(Path(__file__).parents[1]))  # tests import their helpers by their names

Section = dict[str, Any]
Draw = st.DrawFn


def pick(draw: Draw, *choices: Any) -> Any:
    return draw(st.sampled_from(choices))


def number(draw: Draw, low: int, high: int) -> int:
    return draw(st.integers(low, high))


def scaling(draw: Draw) -> Section:
    kind = pick(draw, "none", "yarn", "llama3")
    if kind == "none":
        return {"kind": kind}
    stretch = {"kind": kind, "factor": pick(draw, 1.0, 4.0, 32.5)}
    stretch["original_max_position_embeddings"] = pick(draw, 8, 64)
    if kind == "llama3":
        return stretch | {"low_freq_factor": 1.0, "high_freq_factor": pick(draw, 1.5, 4.0)}
    mscale, all_dim = pick(draw, (1.0, 0.0), (1.0, 1.0), (0.707, 0.707), (0.0, 1.0), (0.5, 2.0))
    return stretch | {"beta_fast": pick(draw, 1.0, 32.0), "beta_slow": 1.0, "mscale": mscale, "mscale_all_dim": all_dim}


def attention(draw: Draw) -> Section:
    theta = pick(draw, 2.0, 1e4, 5e5)
    rope = {"layout": pick(draw, "interleaved", "half"), "theta": theta, "scaling": scaling(draw)}
    kind = pick(draw, "mla", "gqa", "window")
    if kind != "mla":
        kv_heads = number(draw, 1, 3)
        section = {"kind": kind, "num_key_value_heads": kv_heads, "num_attention_heads": kv_heads * number(draw, 1, 3)}
        section |= {"window": number(draw, 1, 70)} if kind == "window" else {}
        section |= {"qkv_bias": pick(draw, False, True), "qk_norm": pick(draw, None, {"eps": 1e-5})}
        return section | {"head_dim": 2 * number(draw, 1, 9), "rope": rope}
    return {
        "kind": "mla",
        "num_attention_heads": number(draw, 1, 4),
        "q_lora_rank": pick(draw, None, 1, 12),
        "kv_lora_rank": number(draw, 1, 24),
        "qk_nope_head_dim": number(draw, 1, 12),
        "qk_rope_head_dim": 2 * number(draw, 1, 5),
        "v_head_dim": number(draw, 1, 24),
        "latent_norm_eps": pick(draw, 1e-6, 1e-4),
        "rope": rope,
    }


def moe(draw: Draw) -> Section:
    """Groups and experts in each, then a choice that the open groups can satisfy."""
    groups, per_group = number(draw, 1, 4), number(draw, 1, 4)
    open_groups = number(draw, 1, groups)
    top_k = number(draw, 1, min(open_groups * per_group, 4))
    scores = ["max", "top2_sum"] if per_group > 1 else ["max"]
    bias = draw(st.booleans())
    alpha, rate = pick(draw, None, 1e-3), pick(draw, None, 1e-2) if bias else None
    router = {
        "score": pick(draw, "softmax", "sigmoid"),
        "selection_bias": bias,
        "n_group": groups,
        "topk_group": open_groups,
        "group_score": pick(draw, *scores) if open_groups < groups else None,
        "norm_topk_prob": top_k > 1 and draw(st.booleans()),
        "routed_scaling_factor": pick(draw, 1.0, 2.5, 16.0),
        "compute_dtype": pick(draw, "float32", "model"),
        "balance": {"bias_update_rate": rate, "sequence_aux_loss_alpha": alpha},
    }
    return {
        "n_routed_experts": groups * per_group,
        "num_experts_per_tok": top_k,
        "moe_intermediate_size": number(draw, 1, 20),
        "n_shared_experts": number(draw, 0, 2),
        "router": router,
    }


def precision(draw: Draw) -> Section:
    block = pick(draw, 16, 128)
    fp8 = {"kind": "fp8_block", "weight_block": [pick(draw, 16, 128), block], "activation_block": [1, block]}
    dtypes = {"parameters": pick(draw, "bf16", "fp32"), "kv_cache": pick(draw, "bf16", "fp32")}
    return dtypes | {"linear": pick(draw, {"kind": "bf16"}, fp8)}


def body(draw: Draw) -> Section:
    """The layers, and the attentions and feed-forwards that they name."""
    several = draw(st.booleans())
    kind = {"ffn": st.sampled_from(["dense", "moe", "wide", "small"])}
    if several:
        kind["attention"] = st.sampled_from(["here", "there"])
    repeat = {"repeat": st.integers(1, 2)}
    cycle = st.lists(st.fixed_dictionaries(kind), min_size=2, max_size=3)
    groups = st.fixed_dictionaries(repeat | kind) | st.fixed_dictionaries(repeat | {"cycle": cycle})
    layers = draw(st.lists(groups, min_size=1, max_size=3))
    kinds = [kind for group in layers for kind in group.get("cycle", [group])]
    ffn = {name: feed_forward(draw, name) for name in sorted({kind["ffn"] for kind in kinds})}
    named = sorted({kind["attention"] for kind in kinds}) if several else []
    return {
        "layers": layers,
        "attention": {name: attention(draw) for name in named} if several else attention(draw),
        "ffn": ffn | {"swiglu_limit": pick(draw, None, 0.5)},
    }


def feed_forward(draw: Draw, name: str) -> Section:
    if name in ("dense", "wide"):
        return {"kind": "dense", "intermediate_size": number(draw, 1, 40)}
    return {"kind": "moe", **moe(draw)}


@st.composite
def specs(draw: Draw) -> ModelSpec:
    hidden = pick(draw, "post_norm", "pre_norm")
    mtp = {"depth": number(draw, 1, 2), "hidden": hidden, "loss_weight": pick(draw, 0.3, 0.0)}
    data = {
        "name": draw(st.from_regex(r"m[a-z0-9]{2,8}([._-][a-z0-9]{1,6}){0,2}", fullmatch=True)),
        "vocab_size": number(draw, 2, 40),
        "hidden_size": number(draw, 1, 40),
        "max_position_embeddings": pick(draw, 64, 4096),
        "tie_word_embeddings": draw(st.booleans()),
        "initializer_range": pick(draw, 0.02, 0.2),
        "embedding_multiplier": pick(draw, 1.0, 12.0),
        "logit_multiplier": pick(draw, 1.0, 0.25),
        "z_loss": pick(draw, None, 0.001),
        "norm": {"eps": pick(draw, 1e-6, 1e-5)},
        "residual": {"kind": "add", "multiplier": pick(draw, 1.0, 0.3)},
        "mtp": pick(draw, None, mtp),
        "precision": precision(draw),
        "workload": {"sequence_length": number(draw, 8, 64)},
        "cluster": pick(draw, None, {"kind": "h800", "nodes": 2}),
        **body(draw),
    }
    return ModelSpec.model_validate(data)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The tests that take `random_specs` get the strategy itself."""
    if "random_specs" in metafunc.fixturenames:
        metafunc.parametrize("random_specs", [specs()], ids=[""])
