"""Whether a Hugging Face model type computes what a spec says, and each reason why not."""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from dsc.compiler.hf.reader import NOT_SUPPORTED
from dsc.spec.attention import GroupedQueries, MlaAttention, WindowAttention
from dsc.spec.errors import Finding
from dsc.spec.ffn import MoeFfn
from dsc.spec.model import ModelSpec
from dsc.spec.precision import Fp8BlockLinear
from dsc.spec.rope import YarnScaling

ModelType = Literal[
    "deepseek_v2", "deepseek_v3", "minicpm3", "llama", "mixtral", "qwen3_moe", "qwen3", "qwen2", "mistral"
]

LATENT_NORM_EPS = 1e-6  # transformers builds the latent norms with its class default, whatever rms_norm_eps says

LAYER_TYPES = ("full_attention", "sliding_attention")  # without a window, and with one

_MLA_TYPES = ("deepseek_v2", "deepseek_v3", "minicpm3")
_WINDOW_TYPES = ("qwen3", "qwen2", "mistral")
_MIXED_TYPES = ("qwen3", "qwen2")
_NORMED_TYPES = ("qwen3_moe", "qwen3")
_BIASED_TYPES = ("qwen2",)
_DIVISIBLE_HIDDEN_TYPES = ("deepseek_v2", "minicpm3", "llama")


class Requirement(NamedTuple):
    holds: bool
    key: tuple[str, ...]
    reason: str


def objections(spec: ModelSpec, model_type: ModelType) -> list[Finding]:
    """Empty where the model type fits. That a config has no room for how to train (balance) is no objection."""
    requirements = [*_of_every_type(spec, model_type), *_OF_TYPE[model_type](spec)]
    return [
        Finding(NOT_SUPPORTED, f"as {model_type}: {reason}", key) for holds, key, reason in requirements if not holds
    ]


def moe_of(spec: ModelSpec) -> MoeFfn | None:
    """The mixture of experts where a layer uses it."""
    return spec.moe() if "moe" in spec.ffn_kinds else None


def window_of(spec: ModelSpec) -> int | None:
    """Of the layers that have one."""
    windows = [one.window for one in spec.attentions.values() if isinstance(one, WindowAttention)]
    return windows[0] if windows else None


def first_moe_layer(spec: ModelSpec) -> int:
    """How many dense layers stand before the first mixture of experts; all of them where there is none."""
    dense = 0
    for group in spec.layers:
        kinds = [spec.ffns[kind.ffn].kind for kind in group.kinds]
        if "moe" in kinds:
            return dense + kinds.index("moe") if kinds.index("moe") else dense
        dense += group.repeat * len(kinds)
    return dense


def _of_every_type(spec: ModelSpec, model_type: ModelType) -> Iterator[Requirement]:
    yield from _attentions(spec, model_type)
    yield Requirement(
        _one_of_each(spec), ("ffn",), "there is one dense feed-forward and one mixture of experts at most"
    )
    yield Requirement(spec.ffn.swiglu_limit is None, ("ffn", "swiglu_limit"), "SwiGLU has no limit")
    if model_type != "deepseek_v3":
        yield Requirement(spec.mtp is None, ("mtp",), "there is no multi-token prediction")
    if model_type != "minicpm3":
        yield from _no_multipliers(spec)
    if model_type in _DIVISIBLE_HIDDEN_TYPES:
        divisible = all(spec.hidden_size % one.num_attention_heads == 0 for one in spec.attentions.values())
        yield Requirement(divisible, ("hidden_size",), "hidden_size is a multiple of num_attention_heads")
    linear = spec.precision.linear
    if isinstance(linear, Fp8BlockLinear):
        key = ("precision", "linear", "activation_block")
        same_depth = linear.activation_block == [1, linear.weight_block[1]]
        yield Requirement(same_depth, key, "activations share the weights' block along the reduced dimension")


def _attentions(spec: ModelSpec, model_type: ModelType) -> Iterator[Requirement]:
    kinds = ("mla",) if model_type in _MLA_TYPES else ("gqa", "window") if model_type in _WINDOW_TYPES else ("gqa",)
    for name, attention in spec.attentions.items():
        key = spec.attention_key(name)
        yield Requirement(attention.kind in kinds, (*key, "kind"), f"attention is {' or '.join(kinds)}")
        if isinstance(attention, MlaAttention):
            yield from _latent_attention(attention, key)
        else:
            yield from _grouped_attention(attention, key, spec, model_type)
    several = len(spec.attentions) > 1
    if model_type in _MIXED_TYPES:
        yield Requirement(_differ_by_window(spec), ("attention",), "attentions differ by one window and nothing else")
    else:
        yield Requirement(not several, ("attention",), "all layers have the same attention")


def _differ_by_window(spec: ModelSpec) -> bool:
    sections = spec.attentions.values()
    shared = [section.model_dump(exclude={"kind", "window"}) for section in sections]
    kinds = [section.kind for section in sections]
    return len(set(kinds)) == len(kinds) and all(one == shared[0] for one in shared)


def _one_of_each(spec: ModelSpec) -> bool:
    kinds = [section.kind for section in spec.ffns.values()]
    return len(set(kinds)) == len(kinds)


def _latent_attention(attention: MlaAttention, key: tuple[str, ...]) -> Iterator[Requirement]:
    eps_is_fixed = attention.latent_norm_eps == LATENT_NORM_EPS
    yield Requirement(eps_is_fixed, (*key, "latent_norm_eps"), f"latent norms have eps {LATENT_NORM_EPS}")


def _grouped_attention(
    attention: GroupedQueries, key: tuple[str, ...], spec: ModelSpec, model_type: ModelType
) -> Iterator[Requirement]:
    yield Requirement(attention.rope.layout == "half", (*key, "rope", "layout"), "the rotary layout is half")
    norm = attention.qk_norm
    if model_type in _NORMED_TYPES:
        has_norm = norm is not None and norm.eps == spec.norm.eps
        yield Requirement(has_norm, (*key, "qk_norm"), "queries and keys are normalised with norm.eps")
    else:
        yield Requirement(norm is None, (*key, "qk_norm"), "queries and keys have no norm")
    biased = model_type in _BIASED_TYPES
    has = "have biases" if biased else "have no biases"
    reason = f"projections to queries, keys and values {has}"
    yield Requirement(attention.qkv_bias == biased, (*key, "qkv_bias"), reason)
    scaling = attention.rope.scaling
    if isinstance(scaling, YarnScaling):
        no_scale = scaling.mscale_all_dim == 0
        key = (*key, "rope", "scaling", "mscale_all_dim")
        yield Requirement(no_scale, key, "YaRN leaves the softmax scale alone")


def _no_multipliers(spec: ModelSpec) -> Iterator[Requirement]:
    yield Requirement(spec.embedding_multiplier == 1, ("embedding_multiplier",), "embeddings are not multiplied")
    yield Requirement(spec.logit_multiplier == 1, ("logit_multiplier",), "logits are not multiplied")
    yield Requirement(spec.residual.multiplier == 1, ("residual", "multiplier"), "residuals are not multiplied")


def _layout(spec: ModelSpec, layout: str) -> Iterator[Requirement]:
    for name, attention in spec.attentions.items():
        key = (*spec.attention_key(name), "rope", "layout")
        yield Requirement(attention.rope.layout == layout, key, f"the rotary layout is {layout}")


def _deepseek_v2(spec: ModelSpec) -> Iterator[Requirement]:
    yield from _layout(spec, "interleaved")
    yield from _dense_first(spec)
    if moe := moe_of(spec):
        yield from _scores(moe, "softmax", selection_bias=False)
        yield from _group_score(moe, "max")
        yield from _normalised(moe, False)


def _deepseek_v3(spec: ModelSpec) -> Iterator[Requirement]:
    yield from _dense_first(spec)
    if moe := moe_of(spec):
        yield from _scores(moe, "sigmoid", selection_bias=True)
        yield from _group_score(moe, "top2_sum")
        two_per_group = moe.n_routed_experts >= 2 * moe.router.n_group
        yield Requirement(two_per_group, (*_ROUTER, "n_group"), "a group has two experts or more")
    if spec.mtp is not None:
        yield Requirement(moe_of(spec) is not None, ("mtp",), "the layer of multi-token prediction has experts")
        yield Requirement(spec.mtp.hidden == "post_norm", ("mtp", "hidden"), "multi-token prediction is post_norm")


def _minicpm3(spec: ModelSpec) -> Iterator[Requirement]:
    yield from _all_dense(spec)
    yield from _layout(spec, "half")
    base = spec.logit_multiplier * spec.hidden_size
    is_ratio = 1 <= base < 2**31 and round(base) / spec.hidden_size == spec.logit_multiplier
    yield Requirement(is_ratio, ("logit_multiplier",), "logit_multiplier is an integer / hidden_size")


def _llama(spec: ModelSpec) -> Iterator[Requirement]:
    yield from _all_dense(spec)
    yield Requirement(spec.initializer_range <= 1, ("initializer_range",), "initializer_range is at most 1")


def _mixtral(spec: ModelSpec) -> Iterator[Requirement]:
    moe = moe_of(spec)
    yield Requirement(set(spec.ffn_kinds) == {"moe"}, ("layers",), "every layer has experts")
    if moe is not None:
        yield from _plain_experts(moe)
        yield from _normalised(moe, True)


def _qwen3_moe(spec: ModelSpec) -> Iterator[Requirement]:
    moe = moe_of(spec)
    yield Requirement(moe is not None, ("layers",), "some layer has experts")
    if moe is not None:
        yield from _plain_experts(moe)


def _all_dense(spec: ModelSpec) -> Iterator[Requirement]:
    yield Requirement(moe_of(spec) is None, ("layers",), "every layer is dense")


def _dense_first(spec: ModelSpec) -> Iterator[Requirement]:
    dense_first = spec.ffn_kinds.count("dense") == first_moe_layer(spec)
    yield Requirement(dense_first, ("layers",), "all dense layers stand before the others")


_ROUTER = ("ffn", "moe", "router")


def _scores(moe: MoeFfn, score: str, selection_bias: bool) -> Iterator[Requirement]:
    router = moe.router
    yield Requirement(router.score == score, (*_ROUTER, "score"), f"router scores are {score}")
    bias = "has a" if selection_bias else "has no"
    yield Requirement(
        router.selection_bias == selection_bias, (*_ROUTER, "selection_bias"), f"the router {bias} selection bias"
    )


def _normalised(moe: MoeFfn, normalised: bool) -> Iterator[Requirement]:
    reason = "expert weights are normalised" if normalised else "expert weights are not normalised"
    yield Requirement(moe.router.norm_topk_prob == normalised, (*_ROUTER, "norm_topk_prob"), reason)


def _group_score(moe: MoeFfn, group_score: str) -> Iterator[Requirement]:
    router = moe.router
    fits = router.topk_group == router.n_group or router.group_score == group_score
    yield Requirement(fits, (*_ROUTER, "group_score"), f"a group's score is {group_score}")


def _plain_experts(moe: MoeFfn) -> Iterator[Requirement]:
    router = moe.router
    yield from _scores(moe, "softmax", selection_bias=False)
    yield Requirement(router.topk_group == router.n_group, (*_ROUTER, "topk_group"), "experts are not in groups")
    unscaled = router.routed_scaling_factor == 1
    yield Requirement(unscaled, (*_ROUTER, "routed_scaling_factor"), "expert weights are not scaled")
    yield Requirement(moe.n_shared_experts == 0, ("ffn", "moe", "n_shared_experts"), "there are no shared experts")


_OF_TYPE: dict[ModelType, Callable[[ModelSpec], Iterator[Requirement]]] = {
    "deepseek_v2": _deepseek_v2,
    "deepseek_v3": _deepseek_v3,
    "minicpm3": _minicpm3,
    "llama": _llama,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "qwen3": _all_dense,
    "qwen2": _all_dense,
    "mistral": _all_dense,
}
