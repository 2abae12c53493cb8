"""From the keys of a config to attention, ffn, layers and mtp of a spec, for each model type."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

from dsc.compiler.hf.fits import LATENT_NORM_EPS, LAYER_TYPES
from dsc.compiler.hf.reader import ConfigReader
from dsc.compiler.hf.rope import read_rope
from dsc.spec.words import one_of

Sections = dict[str, object]

_MOST_LAYERS = 10_000
_WHOLE_CONTEXT = "attention is over the whole context"


def read_deepseek_v2(config: ConfigReader) -> Sections:
    kinds = _dense_first(config, 0)
    return {
        "attention": _mla(config, "interleaved", kv_heads=None, q_lora_rank=1536, v_head_dim=128),
        **_ffn_of(config, kinds, n_shared_experts=2, read_router=_v2_router),
    }


def read_deepseek_v3(config: ConfigReader) -> Sections:
    kinds = _dense_first(config, 3)
    router = partial(_v3_router, n_group=8, topk_group=4, scale=2.5)
    return {
        "attention": _v3_attention(config, kv_heads=128, q_lora_rank=1536, v_head_dim=128),
        **_ffn_of(config, kinds, n_shared_experts=1, read_router=router),
        **_mtp(config, kinds, 1 if "moe" in kinds else 0),
    }


def read_glm4_moe_lite(config: ConfigReader) -> Sections:
    """DeepSeek-V3's model with other defaults, and the kind of each layer in a list."""
    config.refuse_null("num_key_value_heads", "rope_interleave", "n_group", "topk_group", "norm_topk_prob")
    kinds = _mlp_layer_types(config)
    router = partial(_v3_router, n_group=1, topk_group=1, scale=1.8)
    return {
        "attention": _v3_attention(config, kv_heads=20, q_lora_rank=768, v_head_dim=256),
        **_ffn_of(config, kinds, n_shared_experts=1, read_router=router),
        **_mtp(config, kinds, 0),
    }


def read_youtu(config: ConfigReader) -> Sections:
    """DeepSeek-V3's model with dense layers alone."""
    config.refuse_null("num_key_value_heads")
    config.ignore("embedding_initializer_range")  # how it was drawn; the language draws all alike
    config.only("num_nextn_predict_layers", (0, None), "youtu has no multi-token prediction")
    return {
        "attention": _v3_attention(config, kv_heads=16, q_lora_rank=1536, v_head_dim=128),
        **_all_dense(config, _layer_count(config)),
    }


def read_minicpm3(config: ConfigReader) -> Sections:
    layers, heads = _layer_count(config), config.integer("num_attention_heads")
    hidden_size = config.integer("hidden_size")
    root, own_values = math.sqrt(layers), hidden_size // max(heads, 1)
    depth = config.number("scale_depth", 1.4, null=root)
    base = config.integer("dim_model_base", 256, null=hidden_size)
    return {
        "embedding_multiplier": config.number("scale_emb", 12.0),
        "logit_multiplier": base / max(hidden_size, 1),
        "residual": {"kind": "add", "multiplier": depth / root},
        "attention": _mla(
            config, "half", kv_heads=40, q_lora_rank=768, v_head_dim=own_values, null_v_head_dim=own_values
        ),
        **_all_dense(config, layers),
    }


def read_llama(config: ConfigReader) -> Sections:
    heads = config.integer("num_attention_heads")
    config.only("sliding_window", (None,), _WHOLE_CONTEXT)
    config.only("is_llama_config", (True, None), "SmolLM2 says so of itself")
    config.only("rope_interleaved", (False, None), "the rotary layout of llama is half")
    return {"attention": _gqa(config, kv_heads=heads, theta=10000.0), **_all_dense(config, _layer_count(config))}


def read_mixtral(config: ConfigReader) -> Sections:
    config.only("sliding_window", (None,), _WHOLE_CONTEXT)
    config.refuse_null("num_key_value_heads")
    config.only("router_jitter_noise", (0,), "the router has no noise")
    _no_batch_loss(config)
    moe: dict[str, object] = {
        "n_routed_experts": config.integer("num_local_experts"),
        "num_experts_per_tok": config.integer("num_experts_per_tok"),
        "moe_intermediate_size": config.integer("intermediate_size"),
        "router": {"score": "softmax", "norm_topk_prob": True, "compute_dtype": "model"},
    }
    return {
        "attention": _gqa(config, kv_heads=8, theta=1000000.0),
        "ffn": {"moe": moe},
        "layers": [{"repeat": _layer_count(config), "ffn": "moe"}],
    }


def read_qwen3_moe(config: ConfigReader) -> Sections:
    config.ignore("sliding_window", "max_window_layers")
    config.refuse_null("num_key_value_heads", "head_dim")
    config.only("qkv_bias", (False, None), "qwen3_moe has no biases")
    config.only("use_qk_norm", (True, None), "queries and keys are normalized in qwen3_moe")
    config.only("shared_expert_intermediate_size", (0, None), "qwen3_moe has no shared experts")
    if config.flag("use_sliding_window", False) and config.has("sliding_window"):
        config.refuse("sliding_window", "sliding_window is in use", _WHOLE_CONTEXT)
    _no_batch_loss(config)
    attention = _gqa(config, kv_heads=4, theta=10000.0)
    attention["qk_norm"] = {"eps": config.number("rms_norm_eps", 1e-6)}
    kinds = _qwen3_kinds(config)
    ffn: Sections = {}
    config.ignore("intermediate_size", "num_local_experts", "num_experts_per_tok")
    config.ignore("moe_intermediate_size", "norm_topk_prob")
    config.refuse_null("intermediate_size", "num_local_experts", "num_experts_per_tok")
    config.refuse_null("moe_intermediate_size", "norm_topk_prob")
    if "dense" in kinds:
        ffn["dense"] = {"intermediate_size": config.integer("intermediate_size")}
    if "moe" in kinds:
        norm_topk_prob = config.flag("norm_topk_prob", False)
        ffn["moe"] = {
            "n_routed_experts": config.integer("num_local_experts"),
            "num_experts_per_tok": config.integer("num_experts_per_tok"),
            "moe_intermediate_size": config.integer("moe_intermediate_size"),
            "router": {"score": "softmax", "norm_topk_prob": norm_topk_prob, "compute_dtype": "model"},
        }
    return {"attention": attention, "ffn": ffn, "layers": _schedule(kinds)}


def read_qwen3(config: ConfigReader) -> Sections:
    config.refuse_null("head_dim")
    full = _gqa(config, kv_heads=32, theta=10000.0, head_dim=128)
    full["qk_norm"] = {"eps": config.number("rms_norm_eps", 1e-6)}
    return _some_in_windows(config, full)


def read_qwen2(config: ConfigReader) -> Sections:
    config.only("qkv_bias", (True, None), "projections to queries, keys and values have biases in qwen2")
    config.only("use_mrope", (False, None), "positions have one axis")
    config.refuse_null("head_dim")  # transformers reads it where it is there
    full = _gqa(config, kv_heads=32, theta=10000.0)
    return _some_in_windows(config, {**full, "qkv_bias": True})


def _some_in_windows(config: ConfigReader, full: Sections) -> Sections:
    """Dense layers with this attention, some of them or all in a sliding window."""
    config.refuse_null("max_window_layers")
    config.ignore("sliding_window", "max_window_layers", "layer_types")
    layers, window = _layer_count(config), 0
    if config.is_null("sliding_window") and "sliding_attention" in config.texts("layer_types"):
        config.refuse(
            "sliding_window", "sliding_window is null, and layer_types has layers with a window", "say how long"
        )
    kinds = ["full"] * layers
    if config.flag("use_sliding_window", False) and not config.is_null("sliding_window"):
        window = config.integer("sliding_window", 4096)
        kinds = _layer_types(config, layers)
    if "sliding" not in kinds:
        return {"attention": full, **_all_dense(config, layers)}
    sliding = {"kind": "window", "window": window} | {key: value for key, value in full.items() if key != "kind"}
    if "full" not in kinds:
        return {"attention": sliding, **_all_dense(config, layers)}
    schedule = _cycles([{"attention": kind, "ffn": "dense"} for kind in kinds])
    return {"attention": {"sliding": sliding, "full": full}, **_all_dense(config, layers), "layers": schedule}


def read_mistral(config: ConfigReader) -> Sections:
    config.refuse_null("num_key_value_heads")
    attention = _gqa(config, kv_heads=8, theta=10000.0)
    if not config.is_null("sliding_window"):
        attention = {**attention, "kind": "window", "window": config.integer("sliding_window", 4096)}
    config.ignore("sliding_window")
    return {"attention": attention, **_all_dense(config, _layer_count(config))}


def _layer_types(config: ConfigReader, layers: int) -> list[str]:
    """full or sliding, of each layer; without layer_types the first max_window_layers are full."""
    if not config.has("layer_types"):
        full = min(config.integer("max_window_layers", 28), layers)
        return ["full"] * full + ["sliding"] * (layers - full)
    types = config.texts("layer_types")
    if len(types) != layers or not set(types) <= set(LAYER_TYPES):
        message = f"layer_types does not say {one_of(LAYER_TYPES)} of each of {layers} layers"
        config.refuse("layer_types", message, "give every layer one of the two")
        return ["full"] * layers
    return [kind.removesuffix("_attention") for kind in types]


def _v3_attention(config: ConfigReader, kv_heads: int, q_lora_rank: int, v_head_dim: int) -> Sections:
    config.only("head_dim", (config.integer("qk_rope_head_dim"),), "head_dim is the rotary part, qk_rope_head_dim")
    layout = "interleaved" if config.flag("rope_interleave", True, null=False) else "half"
    return _mla(config, layout, kv_heads, q_lora_rank, v_head_dim)


def _mla(
    config: ConfigReader,
    layout: str,
    kv_heads: int | None,
    q_lora_rank: int,
    v_head_dim: int,
    null_v_head_dim: int | None = None,
) -> Sections:
    """The dims are the type's defaults; as many key heads as query heads are there where `kv_heads` is None."""
    config.ignore("head_dim", "qk_head_dim")  # follow from the other dims
    heads = config.integer("num_attention_heads")
    if config.integer("num_key_value_heads", kv_heads or heads, null=heads) != heads:
        message = "latent attention has as many key heads as query heads"
        config.refuse("num_key_value_heads", message, "set num_key_value_heads to num_attention_heads")
    has_query_latent = not config.is_null("q_lora_rank")
    config.ignore("q_lora_rank")
    return {
        "kind": "mla",
        "num_attention_heads": heads,
        "q_lora_rank": config.integer("q_lora_rank", q_lora_rank) if has_query_latent else None,
        "kv_lora_rank": config.integer("kv_lora_rank"),
        "qk_nope_head_dim": config.integer("qk_nope_head_dim"),
        "qk_rope_head_dim": config.integer("qk_rope_head_dim"),
        "v_head_dim": config.integer("v_head_dim", v_head_dim, null=null_v_head_dim),
        "latent_norm_eps": LATENT_NORM_EPS,
        "rope": read_rope(config, layout, 10000.0, config.integer("max_position_embeddings"), mla=True),
    }


def _gqa(config: ConfigReader, kv_heads: int, theta: float, head_dim: int | None = None) -> Sections:
    """`head_dim` is the type's default; None: what hidden_size leaves for each head, also where it is null."""
    heads = config.integer("num_attention_heads")
    left = config.integer("hidden_size") // max(heads, 1)
    return {
        "kind": "gqa",
        "num_attention_heads": heads,
        "num_key_value_heads": config.integer("num_key_value_heads", kv_heads, null=heads),
        "head_dim": config.integer("head_dim", head_dim or left, null=left),
        "rope": read_rope(config, "half", theta, config.integer("max_position_embeddings"), mla=False),
    }


def _all_dense(config: ConfigReader, layers: int) -> Sections:
    return {
        "ffn": {"dense": {"intermediate_size": config.integer("intermediate_size")}},
        "layers": [{"repeat": layers, "ffn": "dense"}],
    }


def _dense_first(config: ConfigReader, default: int) -> list[str]:
    """DeepSeek's schedule: the first layers dense, mixtures of experts from there on. The kind of each layer."""
    config.only("moe_layer_freq", (1, None), "every layer after the dense ones has experts")
    layers = _layer_count(config)
    dense = min(config.integer("first_k_dense_replace", default), layers)
    return ["dense"] * dense + ["moe"] * (layers - dense)


def _mlp_layer_types(config: ConfigReader) -> list[str]:
    """The kind of each layer from mlp_layer_types; without it, all but the first have experts."""
    layers = _layer_count(config)
    kinds = {"dense": "dense", "sparse": "moe"}
    types = config.texts("mlp_layer_types") or ["dense"] + ["sparse"] * (layers - 1)
    if len(types) != layers or not set(types) <= kinds.keys():
        message = f"mlp_layer_types does not say {one_of(kinds)} of each of {layers} layers"
        config.refuse("mlp_layer_types", message, "give every layer one of the two")
        config.ignore("first_k_dense_replace")
        return ["dense"] + ["moe"] * (layers - 1)
    config.only(
        "first_k_dense_replace", (types.index("sparse") if "sparse" in types else layers, None), "see the layers"
    )
    return [kinds[kind] for kind in types]


def _mtp(config: ConfigReader, kinds: Sequence[str], default: int) -> Sections:
    """Nothing where there is no multi-token prediction."""
    depth = config.integer("num_nextn_predict_layers", default, null=0)
    if depth and "moe" not in kinds:
        message = "multi-token prediction has experts, the layers have none"
        config.refuse("num_nextn_predict_layers", message, "set it to 0")
    return {"mtp": {"depth": depth, "hidden": "post_norm"}} if depth else {}


def _ffn_of(
    config: ConfigReader,
    kinds: Sequence[str],
    n_shared_experts: int,
    read_router: Callable[[ConfigReader], Sections],
) -> Sections:
    """Feed-forwards and schedule of DeepSeek's types."""
    config.flag("output_router_logits", False)  # there is no loss on them in these types
    ffn: Sections = {}
    config.ignore("intermediate_size", *_MOE_KEYS)
    config.refuse_null("intermediate_size", "moe_intermediate_size", "n_routed_experts", "n_shared_experts")
    if "dense" in kinds:
        ffn["dense"] = {"intermediate_size": config.integer("intermediate_size")}
    if "moe" in kinds:
        ffn["moe"] = {
            "n_routed_experts": config.integer("n_routed_experts"),
            "num_experts_per_tok": config.integer("num_experts_per_tok"),
            "moe_intermediate_size": config.integer("moe_intermediate_size"),
            "n_shared_experts": config.integer("n_shared_experts", n_shared_experts),
            "router": read_router(config),
        }
    return {"ffn": ffn, "layers": _schedule(kinds)}


_MOE_KEYS = (
    *("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "n_shared_experts", "scoring_func"),
    *("topk_method", "n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor", "seq_aux", "aux_loss_alpha"),
)


def _v2_router(config: ConfigReader) -> Sections:
    config.only("scoring_func", ("softmax", None), "deepseek_v2 scores by softmax")
    config.only("topk_method", ("greedy", "group_limited_greedy"), "known are greedy and group_limited_greedy")
    # DeepSeek's own code normalises instead of scaling, transformers ignores the key: no telling what is meant.
    config.only("norm_topk_prob", (False, None), "transformers never normalises in deepseek_v2: set it to false")
    groups: Sections = {}
    if config.text("topk_method", "greedy") == "group_limited_greedy":
        groups = _groups(config.integer("n_group"), config.integer("topk_group"), "max")
    return {
        "score": "softmax",
        **groups,
        "norm_topk_prob": False,
        "routed_scaling_factor": config.number("routed_scaling_factor", 1.0),
        **_balance(config),
    }


def _v3_router(config: ConfigReader, n_group: int, topk_group: int, scale: float) -> Sections:
    """The values are the type's defaults."""
    config.only("scoring_func", ("sigmoid", None), "deepseek_v3 scores by sigmoid")
    config.only("topk_method", ("noaux_tc", None), "deepseek_v3 chooses by score and bias in the best groups")
    return {
        "score": "sigmoid",
        "selection_bias": True,
        **_groups(config.integer("n_group", n_group), config.integer("topk_group", topk_group), "top2_sum"),
        "norm_topk_prob": config.flag("norm_topk_prob", True, null=False),
        "routed_scaling_factor": config.number("routed_scaling_factor", scale),
        **_balance(config),
    }


def _groups(n_group: int, topk_group: int, group_score: str) -> Sections:
    if n_group == topk_group == 1:
        return {}
    groups: Sections = {"n_group": n_group, "topk_group": topk_group}
    return groups | ({"group_score": group_score} if topk_group < n_group else {})


def _balance(config: ConfigReader) -> Sections:
    """What DeepSeek's training code reads; transformers has no such loss."""
    alpha = config.number("aux_loss_alpha", 0.0, null=0.0)
    if not alpha:
        return {}
    config.only("seq_aux", (True,), "the auxiliary loss is over sequences")
    return {"balance": {"sequence_aux_loss_alpha": alpha}}


def _no_batch_loss(config: ConfigReader) -> None:
    """transformers adds an auxiliary loss over the whole batch where it also returns the router's logits."""
    coefficient = config.number("router_aux_loss_coef", 0.001)
    if config.flag("output_router_logits", False) and coefficient:
        message = "an auxiliary loss over the batch (router_aux_loss_coef) is not supported"
        config.refuse("output_router_logits", message, "set it to false; see ffn.moe.router.balance")


def _qwen3_kinds(config: ConfigReader) -> list[str]:
    """The kind of each layer."""
    dense, step = set(config.integers("mlp_only_layers")), config.integer("decoder_sparse_step", 1)
    if step < 1:
        config.refuse("decoder_sparse_step", f"decoder_sparse_step is {step}", "every step-th layer has experts")
        step = 1
    return ["moe" if i not in dense and (i + 1) % step == 0 else "dense" for i in range(_layer_count(config))]


def _cycles(layers: Sequence[Sections]) -> list[Sections]:
    """The shortest schedule of layers in turn: a cycle, and what is left of one; runs where nothing takes turns."""
    for length in range(2, len(layers) // 2 + 1):
        times, rest = divmod(len(layers), length)
        cycle = list(layers[:length])
        if list(layers) == cycle * times + cycle[:rest]:
            left = [{"repeat": 1, **layer} for layer in cycle[:rest]]
            return [{"repeat": times, "cycle": cycle}, *left]
    return [{"repeat": len(list(run)), **layer} for layer, run in itertools.groupby(layers)]


def _schedule(kinds: Sequence[str]) -> list[Sections]:
    return [{"repeat": len(list(run)), "ffn": kind} for kind, run in itertools.groupby(kinds)]


def _layer_count(config: ConfigReader) -> int:
    """Where the count is wrong, layers enough for any schedule: nothing else is wrong because of it."""
    layers = config.integer("num_hidden_layers", stand_in=_MOST_LAYERS)
    if 1 <= layers <= _MOST_LAYERS:
        return layers
    config.refuse("num_hidden_layers", f"{layers} layers are not supported", f"1 to {_MOST_LAYERS} are")
    return _MOST_LAYERS
