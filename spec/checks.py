"""What the schema cannot say: rules across keys. One small function per rule, with the arithmetic in its message.

Each refuses a model that could not run or would not be the one that was meant; other implementations accept several of
them silently.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from keyword import iskeyword

from dsc.spec.attention import Attention, GroupedQueries, MlaAttention
from dsc.spec.cluster import is_file
from dsc.spec.divisors import divisor_near
from dsc.spec.errors import Finding
from dsc.spec.ffn import MoeFfn
from dsc.spec.model import LayerCycle, LayerKind, ModelSpec, package_of
from dsc.spec.partial import until_unread
from dsc.spec.placement_checks import PLACEMENT_RULES
from dsc.spec.precision import CACHE_GROUP, Fp8BlockLinear
from dsc.spec.rl_checks import RL_RULES
from dsc.spec.rope import Llama3Scaling, Rope, YarnScaling
from dsc.spec.serving_checks import SERVING_RULES
from dsc.spec.words import nearest, one_of, shown
from dsc.spec.zoo import CLUSTERS, names

MAX_LAYERS = 10_000  # far more than any model has; bounds what is built for each layer

# What emitted packages import, and what that imports in turn, so that no package may hide it.
IMPORTED = frozenset(
    (
        *("dsc", "numpy", "pyarrow", "rich", "safetensors", "tokenizers", "torch", "triton"),
        *("cuda", "einops", "expecttest", "filelock", "fsspec", "functorch", "hypothesis", "jinja2", "markupsafe"),
        *("mpmath", "networkx", "nvidia", "onnx", "opt_einsum", "optree", "packaging", "pandas", "psutil", "pybind11"),
        *("pynvml", "scipy", "setuptools", "sympy", "tensorboard", "torchgen", "tqdm", "typing_extensions", "yaml"),
        *("cython_runtime", "huggingface_hub", "markdown_it", "mdurl", "ml_dtypes", "pkg_resources", "pygments"),
    )
)


def check(spec: ModelSpec) -> list[Finding]:
    """Every rule that a spec breaks, of those whose keys could be read.

    Findings name keys, not positions: a spec may come from elsewhere than a file.
    """
    parts = (_of_model, _of_attentions, _of_ffns)
    rules = (rule for part in parts for rule in until_unread(part(spec)))
    return [finding for rule in rules for finding in until_unread(rule)]


def _of_model(spec: ModelSpec) -> Iterator[Iterator[Finding]]:
    return (rule(spec) for rule in MODEL_RULES)


def _of_attentions(spec: ModelSpec) -> Iterator[Iterator[Finding]]:
    for name, attention in spec.attentions.items():
        yield from until_unread(_of_attention(spec, spec.attention_key(name), attention))


def _of_attention(spec: ModelSpec, key: tuple[str, ...], attention: Attention) -> Iterator[Iterator[Finding]]:
    for rule in ATTENTION_RULES:
        yield _below(key, rule(attention, spec))
    for rope_rule in ROPE_RULES:
        yield _below((*key, "rope"), rope_rule(attention.rope))


def _of_ffns(spec: ModelSpec) -> Iterator[Iterator[Finding]]:
    for name, ffn in spec.ffns.items():
        if isinstance(ffn, MoeFfn):
            for rule in MOE_RULES:
                yield _below(("ffn", name), rule(ffn))


def _below(key: tuple[str, ...], findings: Iterator[Finding]) -> Iterator[Finding]:
    """The findings of a section, which name keys from it on, in terms of the whole spec."""
    return (replace(finding, key=(*key, *finding.key)) for finding in findings)


def cautions(spec: ModelSpec) -> list[str]:
    """What is valid and worth a word."""
    return [
        f"ffn.{name}.router: the one chosen weight is divided by itself, so no gradient of the model's loss reaches it"
        for name, ffn in spec.ffns.items()
        if isinstance(ffn, MoeFfn) and ffn.router.norm_topk_prob and ffn.num_experts_per_tok == 1
    ]


def refused_name(name: str) -> str | None:
    """Why a model cannot have a name; None where it can."""
    package = package_of(name)
    if iskeyword(package):
        return f"the package of {name!r} would be named {package!r}, a keyword of Python"
    if package in IMPORTED:
        return f"the package of {name!r} would hide the library {package!r}, which emitted code imports"
    if package in sys.stdlib_module_names:
        return f"the package of {name!r} would hide {package!r} of Python's standard library"
    return None


def _name(spec: ModelSpec) -> Iterator[Finding]:
    if (message := refused_name(spec.name)) is not None:
        yield Finding("DSC016", message, ("name",), f"write a longer name, such as '{spec.name}-1b'")


def _known_tokens(spec: ModelSpec) -> Iterator[Finding]:
    for name, token in spec.tokens.ids().items():
        if token >= spec.vocab_size:
            message = f"tokens.{name} is {token}, and the vocabulary has {spec.vocab_size} tokens"
            yield Finding("DSC017", message, ("tokens", name.split("[")[0]), f"write at most {spec.vocab_size - 1}")


def _grouped_heads(attention: Attention, spec: ModelSpec) -> Iterator[Finding]:
    if not isinstance(attention, GroupedQueries):
        return
    heads, kv_heads = attention.num_attention_heads, attention.num_key_value_heads
    if heads % kv_heads:
        message = f"{heads} heads cannot share {kv_heads} key-value heads: {heads} % {kv_heads} = {heads % kv_heads}"
        help = f"write a divisor of num_attention_heads, such as {divisor_near(heads, kv_heads)}"
        yield Finding("DSC050", message, ("num_key_value_heads",), help)


def _even_rope_dim(attention: Attention, spec: ModelSpec) -> Iterator[Finding]:
    if isinstance(attention, MlaAttention):
        name, dim = "qk_rope_head_dim", attention.qk_rope_head_dim
    else:
        name, dim = "head_dim", attention.head_dim
    if dim % 2:
        message = f"{name} is {dim}: a rotary embedding rotates pairs of components, and {dim} is odd"
        yield Finding("DSC051", message, (name,), f"write an even number, such as {dim + 1}")


def _original_positions(attention: Attention, spec: ModelSpec) -> Iterator[Finding]:
    scaling = attention.rope.scaling
    if not isinstance(scaling, YarnScaling | Llama3Scaling):
        return
    original, positions = scaling.original_max_position_embeddings, spec.max_position_embeddings
    if original > positions:
        message = f"the original context, {original}, is longer than max_position_embeddings, {positions}"
        # Not a shorter original context: the frequencies follow from it.
        help = f"write max_position_embeddings: {original}, and a shorter workload.sequence_length if that is enough"
        yield Finding("DSC053", message, ("rope", "scaling", "original_max_position_embeddings"), help)


def _fp8_blocks(spec: ModelSpec) -> Iterator[Finding]:
    linear = spec.precision.linear
    if isinstance(linear, Fp8BlockLinear) and linear.activation_block[1] != linear.weight_block[1]:
        activation, weight = linear.activation_block[1], linear.weight_block[1]
        message = f"activations have one scale per {activation} inputs, weights one per {weight}"
        help = f"write [{linear.activation_block[0]}, {weight}]"
        yield Finding("DSC055", message, ("precision", "linear", "activation_block"), help)


def _fp8_cache(spec: ModelSpec) -> Iterator[Finding]:
    if spec.precision.kv_cache != "fp8":
        return
    for attention in spec.attentions.values():
        if not isinstance(attention, MlaAttention):
            message = f"rows of an FP8 cache are latents, which attention of kind {attention.kind!r} does not have"
        elif attention.kv_lora_rank % CACHE_GROUP:
            latent = attention.kv_lora_rank
            rest = f"{latent} % {CACHE_GROUP} = {latent % CACHE_GROUP}"
            message = f"an FP8 cache has one scale for {CACHE_GROUP} numbers of a latent: {rest}"
        else:
            continue
        yield Finding("DSC056", message, ("precision", "kv_cache"), "write bf16")


def _described_ffn(spec: ModelSpec) -> Iterator[Finding]:
    for key, kind in _kinds(spec):
        if kind.ffn not in spec.ffns:
            message = f"these layers have the feed-forward {kind.ffn!r}, which the spec does not describe"
            close = nearest(kind.ffn, spec.ffns)
            help = f"describe it under `ffn: {kind.ffn}:`" if close is None else f"did you mean {close!r}?"
            yield Finding("DSC060", message, (*key, "ffn"), help)


def _used_ffn(spec: ModelSpec) -> Iterator[Finding]:
    used = {kind.ffn for _, kind in _kinds(spec)}
    for name in spec.ffns:
        if name not in used:
            message = f"the feed-forward {name!r} is described and no layer has it"
            yield Finding("DSC061", message, ("ffn", name), f"remove it, or add a layer with `ffn: {name}`")


def _described_attention(spec: ModelSpec) -> Iterator[Finding]:
    several = isinstance(spec.attention, dict)
    for key, kind in _kinds(spec):
        name = kind.attention
        if name is None and len(spec.attentions) > 1:
            message = f"these layers have one of {len(spec.attentions)} attentions, and do not say which"
            yield Finding("DSC068", message, key, f"add `attention: ...`, one of {one_of(spec.attentions)}")
        elif name is not None and not (several and name in spec.attentions):
            message = f"these layers have the attention {name!r}, which the spec does not describe"
            close = nearest(name, spec.attentions) if several else None
            help = f"describe it under `attention: {name}:`" if close is None else f"did you mean {close!r}?"
            yield Finding("DSC066", message, (*key, "attention"), help if several else _ONLY_ATTENTION)


_ONLY_ATTENTION = "leave it out: there is one attention, for all layers"


def _used_attention(spec: ModelSpec) -> Iterator[Finding]:
    used = {kind.attention for _, kind in _kinds(spec)}
    for name in spec.attentions:
        if len(spec.attentions) > 1 and name not in used:
            message = f"the attention {name!r} is described and no layer has it"
            help = f"remove it, or add a layer with `attention: {name}`"
            yield Finding("DSC067", message, ("attention", name), help)


def _kinds(spec: ModelSpec) -> Iterator[tuple[tuple[str | int, ...], LayerKind]]:
    """Each place of the schedule that says what layers are made of, with its key."""
    for index, group in enumerate(spec.layers):
        if isinstance(group, LayerCycle):
            yield from ((("layers", index, "cycle", place), kind) for place, kind in enumerate(group.cycle))
        else:
            yield ("layers", index), group


def _number_of_layers(spec: ModelSpec) -> Iterator[Finding]:
    if spec.num_layers > MAX_LAYERS:
        message = f"the {len(spec.layers)} groups of layers have {spec.num_layers} layers together"
        yield Finding("DSC062", message, ("layers",), f"write at most {MAX_LAYERS}")


def _workload_length(spec: ModelSpec) -> Iterator[Finding]:
    length, positions = spec.workload.sequence_length, spec.max_position_embeddings
    if length <= positions:
        return
    message = f"workload.sequence_length is {length}, beyond max_position_embeddings, {positions}"
    if "sequence_length" in spec.workload.model_fields_set:
        yield Finding("DSC063", message, ("workload", "sequence_length"), f"write at most {positions}")
    else:
        help = f"add `workload: {{sequence_length: {positions}}}`"
        yield Finding("DSC063", f"{message} ({length} is the default)", ("max_position_embeddings",), help)


def _mtp_depth(spec: ModelSpec) -> Iterator[Finding]:
    length = spec.workload.sequence_length
    if spec.mtp is not None and spec.mtp.depth >= length:
        depth = spec.mtp.depth
        message = f"multi-token prediction looks {depth} tokens further ahead, in sequences of {length}"
        yield Finding("DSC064", message, ("mtp", "depth"), "lower depth, or raise workload.sequence_length")


def _ramp_to_the_batch(spec: ModelSpec) -> Iterator[Finding]:
    ramp, batch = spec.training.batch_ramp, spec.workload.global_batch
    if ramp is None:
        return
    key = ("training", "batch_ramp")
    if batch is None:
        message = "a batch grows to workload.global_batch, which is not given"
        yield Finding("DSC069", message, key, "write workload.global_batch")
    elif batch <= ramp.start:
        message = f"a step has {ramp.start} sequences from the start, and workload.global_batch is {batch}"
        yield Finding("DSC069", message, (*key, "start"), "write less")
    elif rest := (batch - ramp.start) % ramp.increment:
        message = f"({batch} - {ramp.start}) % {ramp.increment} = {rest}: steps grow past workload.global_batch"
        help = f"write a divisor of {batch - ramp.start}, such as {divisor_near(batch - ramp.start, ramp.increment)}"
        yield Finding("DSC069", message, (*key, "increment"), help)


def _known_cluster(spec: ModelSpec) -> Iterator[Finding]:
    if spec.cluster is None or spec.cluster.machine is not None or is_file(spec.cluster.kind):
        return
    known = names(CLUSTERS)
    if spec.cluster.kind not in known:
        close = nearest(spec.cluster.kind, known)
        help = f"one of {one_of(known)}" if close is None else f"did you mean {close!r}?"
        yield Finding("DSC065", f"no cluster is named {shown(spec.cluster.kind)}", ("cluster", "kind"), help)


def _nodes_or_gpus(spec: ModelSpec) -> Iterator[Finding]:
    if spec.cluster is not None and spec.cluster.nodes is not None and spec.cluster.gpus is not None:
        message = f"cluster has both nodes, {spec.cluster.nodes}, and gpus, {spec.cluster.gpus}"
        yield Finding("DSC065", message, ("cluster", "gpus"), "write one of the two")


def _theta(rope: Rope) -> Iterator[Finding]:
    if rope.theta <= 1:
        message = f"rope.theta is {rope.theta:g}: frequencies would not fall from pair to pair"
        yield Finding("DSC054", message, ("theta",), "write a number above 1, such as 10000.0")


def _yarn_bounds(rope: Rope) -> Iterator[Finding]:
    scaling = rope.scaling
    if isinstance(scaling, YarnScaling) and scaling.beta_fast < scaling.beta_slow:
        message = f"beta_fast is {scaling.beta_fast:g}, below beta_slow, {scaling.beta_slow:g}: the ramp is reversed"
        key = "beta_fast" if "beta_fast" in scaling.model_fields_set else "beta_slow"
        yield Finding("DSC052", message, ("scaling", key), "write beta_fast >= beta_slow, such as 32.0 and 1.0")


def _llama3_bounds(rope: Rope) -> Iterator[Finding]:
    scaling = rope.scaling
    if isinstance(scaling, Llama3Scaling) and scaling.high_freq_factor <= scaling.low_freq_factor:
        high, low = scaling.high_freq_factor, scaling.low_freq_factor
        message = f"high_freq_factor is {high:g}, not above low_freq_factor, {low:g}: no band is left between them"
        help = "write high_freq_factor > low_freq_factor, such as 4.0 and 1.0"
        yield Finding("DSC052", message, ("scaling", "high_freq_factor"), help)


def _even_groups(moe: MoeFfn) -> Iterator[Finding]:
    experts, groups = moe.n_routed_experts, moe.router.n_group
    if experts % groups:
        message = f"{experts} experts do not form {groups} equal groups: {experts} % {groups} = {experts % groups}"
        help = f"write a divisor of n_routed_experts, such as {divisor_near(experts, groups)}"
        yield Finding("DSC020", message, ("router", "n_group"), help)


def _allowed_groups(moe: MoeFfn) -> Iterator[Finding]:
    router = moe.router
    if router.topk_group > router.n_group:
        message = f"the best {router.topk_group} of {router.n_group} groups cannot be chosen"
        yield Finding("DSC021", message, ("router", "topk_group"), f"write at most n_group, {router.n_group}")


def _enough_experts(moe: MoeFfn) -> Iterator[Finding]:
    router, chosen = moe.router, moe.num_experts_per_tok
    if moe.n_routed_experts % router.n_group or router.topk_group > router.n_group:
        return  # reported by the two rules above
    per_group = moe.n_routed_experts // router.n_group
    allowed = per_group * router.topk_group
    if chosen > allowed:
        message = f"each token chooses {chosen} of {allowed} experts"
        if router.n_group > 1:
            message += f": {router.topk_group} of {router.n_group} groups are selected, with {per_group} experts each"
        yield Finding("DSC022", message, ("num_experts_per_tok",), f"write at most {allowed}")


def _needed_group_score(moe: MoeFfn) -> Iterator[Finding]:
    router = moe.router
    if router.topk_group < router.n_group and router.group_score is None:
        message = f"no group_score says which {router.topk_group} of {router.n_group} groups are the best"
        help = "add `group_score: top2_sum` (DeepSeek-V3) or `group_score: max` (DeepSeek-V2)"
        yield Finding("DSC023", message, ("router", "group_score"), help)


def _two_experts_per_group(moe: MoeFfn) -> Iterator[Finding]:
    experts, router = moe.n_routed_experts, moe.router
    limited = router.topk_group < router.n_group
    if limited and router.group_score == "top2_sum" and experts < 2 * router.n_group:
        message = f"top2_sum adds the two best experts of a group, and {router.n_group} groups share {experts} experts"
        yield Finding("DSC024", message, ("router", "group_score"), "write max, or fewer groups")


def _idle_group_score(moe: MoeFfn) -> Iterator[Finding]:
    router = moe.router
    if router.group_score is not None and router.topk_group == router.n_group:
        message = f"group_score has no effect: {router.topk_group} of {router.n_group} groups are chosen"
        yield Finding("DSC025", message, ("router", "group_score"), "remove it, or write topk_group < n_group")


def _bias_to_update(moe: MoeFfn) -> Iterator[Finding]:
    router = moe.router
    if router.balance.bias_update_rate is not None and not router.selection_bias:
        message = "bias_update_rate moves a bias that the router does not have"
        key = ("router", "balance", "bias_update_rate")
        yield Finding("DSC026", message, key, "add `selection_bias: true` to the router, or remove bias_update_rate")


def _weight_of_one(moe: MoeFfn) -> Iterator[Finding]:
    """A caution where scores are softmax: a model that always divides, as Mixtral does, has no other way to say it."""
    if moe.router.norm_topk_prob and moe.num_experts_per_tok == 1 and moe.router.score != "softmax":
        message = "norm_topk_prob divides the one chosen weight by itself: it is always 1, and the router cannot learn"
        help = "write false, or choose two experts per token or more"
        yield Finding("DSC027", message, ("router", "norm_topk_prob"), help)


MODEL_RULES: tuple[Callable[[ModelSpec], Iterator[Finding]], ...] = (
    _name,
    _known_tokens,
    _fp8_blocks,
    _fp8_cache,
    _described_ffn,
    _used_ffn,
    _described_attention,
    _used_attention,
    _number_of_layers,
    _workload_length,
    _mtp_depth,
    _ramp_to_the_batch,
    _known_cluster,
    _nodes_or_gpus,
    *PLACEMENT_RULES,
    *RL_RULES,
    *SERVING_RULES,
)
ATTENTION_RULES = (_grouped_heads, _even_rope_dim, _original_positions)
ROPE_RULES = (_theta, _yarn_bounds, _llama3_bounds)
MOE_RULES = (
    _even_groups,
    _allowed_groups,
    _enough_experts,
    _needed_group_score,
    _two_experts_per_group,
    _idle_group_score,
    _bias_to_update,
    _weight_of_one,
)
