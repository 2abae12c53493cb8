"""Whether a Hugging Face model type computes what a spec says, and each reason why not."""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from dsc.compiler.hf.reader import NOT_SUPPORTED
from dsc.spec.attention import GqaAttention, MlaAttention
from dsc.spec.errors import Finding
from dsc.spec.ffn import MoeFfn
from dsc.spec.model import ModelSpec
from dsc.spec.precision import Fp8BlockLinear
from dsc.spec.rope import YarnScaling

ModelType = Literal["deepseek_v2", "deepseek_v3", "minicpm3", "llama", "mixtral", "qwen3_moe"]

LATENT_NORM_EPS = 1e-6  # transformers builds the latent norms with its class default, whatever rms_norm_eps says

_MLA_TYPES = ("deepseek_v2", "deepseek_v3", "minicpm3")
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
    return spec.ffn.moe if any(group.ffn == "moe" for group in spec.layers) else None


def first_moe_layer(spec: ModelSpec) -> int:
    """How many dense layers stand before the first mixture of experts; all of them where there is none."""
    dense = 0
    for group in spec.layers:
        if group.ffn == "moe":
            break
        dense += group.repeat
    return dense


def _of_every_type(spec: ModelSpec, model_type: ModelType) -> Iterator[Requirement]:
    kind = "mla" if model_type in _MLA_TYPES else "gqa"
    yield Requirement(spec.attention.kind == kind, ("attention", "kind"), f"attention is {kind}")
    if isinstance(spec.attention, MlaAttention):
        yield from _latent_attention(spec.attention)
    else:
        yield from _grouped_attention(spec.attention, model_type)
    yield Requirement(spec.ffn.swiglu_limit is None, ("ffn", "swiglu_limit"), "SwiGLU has no limit")
    if model_type != "deepseek_v3":
        yield Requirement(spec.mtp is None, ("mtp",), "there is no multi-token prediction")
    if model_type != "minicpm3":
        yield from _no_multipliers(spec)
    if model_type in _DIVISIBLE_HIDDEN_TYPES:
        divisible = spec.hidden_size % spec.attention.num_attention_heads == 0
        yield Requirement(divisible, ("hidden_size",), "hidden_size is a multiple of num_attention_heads")
    linear = spec.precision.linear
    if isinstance(linear, Fp8BlockLinear):
        key = ("precision", "linear", "activation_block")
        same_depth = linear.activation_block == [1, linear.weight_block[1]]
        yield Requirement(same_depth, key, "activations share the weights' block along the reduced dimension")


def _latent_attention(attention: MlaAttention) -> Iterator[Requirement]:
    eps_is_fixed = attention.latent_norm_eps == LATENT_NORM_EPS
    yield Requirement(eps_is_fixed, ("attention", "latent_norm_eps"), f"latent norms have eps {LATENT_NORM_EPS}")


def _grouped_attention(attention: GqaAttention, model_type: ModelType) -> Iterator[Requirement]:
    yield Requirement(attention.rope.layout == "half", ("attention", "rope", "layout"), "the rotary layout is half")
    if model_type != "qwen3_moe":
        yield Requirement(attention.qk_norm is None, ("attention", "qk_norm"), "queries and keys have no norm")
    scaling = attention.rope.scaling
    if isinstance(scaling, YarnScaling):
        key = ("attention", "rope", "scaling", "mscale_all_dim")
        yield Requirement(scaling.mscale_all_dim == 0, key, "YaRN leaves the softmax scale alone")


def _no_multipliers(spec: ModelSpec) -> Iterator[Requirement]:
    yield Requirement(spec.embedding_multiplier == 1, ("embedding_multiplier",), "embeddings are not multiplied")
    yield Requirement(spec.logit_multiplier == 1, ("logit_multiplier",), "logits are not multiplied")
    yield Requirement(spec.residual.multiplier == 1, ("residual", "multiplier"), "residuals are not multiplied")


def _deepseek_v2(spec: ModelSpec) -> Iterator[Requirement]:
    layout = spec.attention.rope.layout
    yield Requirement(layout == "interleaved", ("attention", "rope", "layout"), "the rotary layout is interleaved")
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
    yield Requirement(moe_of(spec) is None, ("layers",), "every layer is dense")
    yield Requirement(
        spec.attention.rope.layout == "half", ("attention", "rope", "layout"), "the rotary layout is half"
    )
    base = spec.logit_multiplier * spec.hidden_size
    is_ratio = 1 <= base < 2**31 and round(base) / spec.hidden_size == spec.logit_multiplier
    yield Requirement(is_ratio, ("logit_multiplier",), "logit_multiplier is an integer / hidden_size")


def _llama(spec: ModelSpec) -> Iterator[Requirement]:
    yield Requirement(moe_of(spec) is None, ("layers",), "every layer is dense")
    yield Requirement(spec.initializer_range <= 1, ("initializer_range",), "initializer_range is at most 1")


def _mixtral(spec: ModelSpec) -> Iterator[Requirement]:
    moe = moe_of(spec)
    yield Requirement(all(group.ffn == "moe" for group in spec.layers), ("layers",), "every layer has experts")
    if moe is not None:
        yield from _plain_experts(moe)
        yield from _normalised(moe, True)


def _qwen3_moe(spec: ModelSpec) -> Iterator[Requirement]:
    moe = moe_of(spec)
    yield Requirement(moe is not None, ("layers",), "some layer has experts")
    if isinstance(spec.attention, GqaAttention):
        norm = spec.attention.qk_norm
        has_norm = norm is not None and norm.eps == spec.norm.eps
        yield Requirement(has_norm, ("attention", "qk_norm"), "queries and keys are normalised with norm.eps")
    if moe is not None:
        yield from _plain_experts(moe)


def _dense_first(spec: ModelSpec) -> Iterator[Requirement]:
    dense_layers = sum(group.repeat for group in spec.layers if group.ffn == "dense")
    yield Requirement(dense_layers == first_moe_layer(spec), ("layers",), "all dense layers stand before the others")


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
}
