"""A spec -> the config.json of the Hugging Face model type that computes the same."""

import math
from collections.abc import Callable
from functools import reduce
from operator import add

from dsc.compiler.hf.families import Family, family, nearest_family
from dsc.compiler.hf.fits import LAYER_TYPES, ModelType, first_moe_layer, moe_of, objections, window_of
from dsc.compiler.hf.quantization import write_linear
from dsc.compiler.hf.rope import write_rope
from dsc.compiler.hf.tokens import write_tokens
from dsc.spec.attention import Attention, MlaAttention, WindowAttention
from dsc.spec.errors import DscError
from dsc.spec.ffn import MoeFfn
from dsc.spec.model import ModelSpec

Config = dict[str, object]


def export_config(spec: ModelSpec) -> Config:
    """Sorted by key. Raises a DscError with every reason where no model type computes what the spec says.

    A config has no room for router.balance.bias_update_rate, mtp.loss_weight, z_loss, workload and cluster, nor for
    what transformers decides: router.compute_dtype (the model's, or float32 in DeepSeek's types), precision.kv_cache.
    """
    found = family(spec)
    if found is None:
        raise DscError(objections(spec, nearest_family(spec).model_type))
    config = _of_every_type(spec, found) | _OF_TYPE[found.model_type](spec)
    return dict(sorted(config.items()))


def _of_every_type(spec: ModelSpec, found: Family) -> Config:
    attention = _shared(spec)
    return {
        "architectures": [found.architecture],
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": spec.hidden_size,
        "initializer_range": spec.initializer_range,
        "max_position_embeddings": spec.max_position_embeddings,
        "model_type": found.model_type,
        "num_attention_heads": attention.num_attention_heads,
        "num_hidden_layers": spec.num_layers,
        "rms_norm_eps": spec.norm.eps,
        "tie_word_embeddings": spec.tie_word_embeddings,
        "torch_dtype": "bfloat16" if spec.precision.parameters == "bf16" else "float32",
        "use_cache": True,
        "vocab_size": spec.vocab_size,
        **write_tokens(spec.tokens),
        **write_rope(attention.rope),
        **write_linear(spec.precision.linear),
        **_attention(attention),
    }


def _shared(spec: ModelSpec) -> Attention:
    """The attention of all layers; where they differ by a window, any of the two."""
    return next(iter(spec.attentions.values()))


def _attention(attention: Attention) -> Config:
    if isinstance(attention, MlaAttention):
        dims: Config = attention.model_dump(exclude={"kind", "num_attention_heads", "latent_norm_eps", "rope"})
        return {"attention_bias": False, "num_key_value_heads": attention.num_attention_heads, **dims}
    return {"head_dim": attention.head_dim, "num_key_value_heads": attention.num_key_value_heads}


def _dense(spec: ModelSpec) -> Config:
    """Nothing where no layer is dense."""
    return {"intermediate_size": spec.dense().intermediate_size} if "dense" in spec.ffn_kinds else {}


def _deepseek(spec: ModelSpec) -> Config:
    """The part that the two types share."""
    config: Config = {"first_k_dense_replace": first_moe_layer(spec), **_dense(spec)}
    moe = moe_of(spec)
    return config if moe is None else config | _deepseek_experts(moe)


def _deepseek_experts(moe: MoeFfn) -> Config:
    router = moe.router
    config: Config = {
        "moe_intermediate_size": moe.moe_intermediate_size,
        "moe_layer_freq": 1,
        "n_group": router.n_group,
        "n_routed_experts": moe.n_routed_experts,
        "n_shared_experts": moe.n_shared_experts,
        "norm_topk_prob": router.norm_topk_prob,
        "num_experts_per_tok": moe.num_experts_per_tok,
        "routed_scaling_factor": router.routed_scaling_factor,
        "scoring_func": router.score,
        "topk_group": router.topk_group,
    }
    if router.balance.sequence_aux_loss_alpha is not None:
        config |= {"aux_loss_alpha": router.balance.sequence_aux_loss_alpha, "seq_aux": True}
    return config


def _deepseek_v2(spec: ModelSpec) -> Config:
    moe = moe_of(spec)
    topk_method = "group_limited_greedy" if moe is not None and moe.router.n_group > 1 else "greedy"
    return {"mlp_bias": False, "topk_method": topk_method, **_deepseek(spec)}


def _deepseek_v3(spec: ModelSpec) -> Config:
    return {
        "num_nextn_predict_layers": 0 if spec.mtp is None else spec.mtp.depth,
        "rope_interleave": _shared(spec).rope.layout == "interleaved",
        "topk_method": "noaux_tc",
        **_deepseek(spec),
    }


def _minicpm3(spec: ModelSpec) -> Config:
    return {
        "dim_model_base": round(spec.logit_multiplier * spec.hidden_size),
        "mlp_bias": False,
        "scale_depth": _scale_depth(spec.residual.multiplier, spec.num_layers),
        "scale_emb": spec.embedding_multiplier,
        **_dense(spec),
    }


def _scale_depth(multiplier: float, layers: int) -> float:
    """Rounded where that gives the multiplier back: 1.4, not 1.4000000000000001."""
    exact: float = multiplier * layers**0.5
    rounded = round(exact, 15)
    return rounded if rounded / math.sqrt(layers) == multiplier else exact


def _llama(spec: ModelSpec) -> Config:
    return {"attention_bias": False, "mlp_bias": False, **_dense(spec)}


def _mixtral(spec: ModelSpec) -> Config:
    moe = spec.moe()
    return {
        "intermediate_size": moe.moe_intermediate_size,
        "num_experts_per_tok": moe.num_experts_per_tok,
        "num_local_experts": moe.n_routed_experts,
        "sliding_window": None,
    }


def _qwen3_moe(spec: ModelSpec) -> Config:
    moe = spec.moe()
    return {
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [index for index, kind in enumerate(spec.ffn_kinds) if kind == "dense"],
        "moe_intermediate_size": moe.moe_intermediate_size,
        "norm_topk_prob": moe.router.norm_topk_prob,
        "num_experts": moe.n_routed_experts,
        "num_experts_per_tok": moe.num_experts_per_tok,
        "sliding_window": None,
        "use_sliding_window": False,
        **_dense(spec),
    }


def _qwen2(spec: ModelSpec) -> Config:
    return {key: value for key, value in _qwen3(spec).items() if key != "attention_bias"}


def _qwen3(spec: ModelSpec) -> Config:
    """layer_types stands for max_window_layers too, which says the same of a model whose last layers have windows."""
    window = window_of(spec)
    config: Config = {"attention_bias": False, "sliding_window": window, "use_sliding_window": window is not None}
    if window is not None:
        windows = {name: isinstance(section, WindowAttention) for name, section in spec.attentions.items()}
        of_groups = [
            [LAYER_TYPES[windows[spec.layer(kind).attention]] for kind in group.kinds] * group.repeat
            for group in spec.layers
        ]
        config["layer_types"] = reduce(add, of_groups)
    return config | _dense(spec)


def _mistral(spec: ModelSpec) -> Config:
    return {"sliding_window": window_of(spec), **_dense(spec)}


_OF_TYPE: dict[ModelType, Callable[[ModelSpec], Config]] = {
    "deepseek_v2": _deepseek_v2,
    "deepseek_v3": _deepseek_v3,
    "minicpm3": _minicpm3,
    "llama": _llama,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "qwen3": _qwen3,
    "qwen2": _qwen2,
    "mistral": _mistral,
}
