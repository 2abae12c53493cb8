"""Rules across the keys of serving and the model's, for spec/checks.py."""

from collections.abc import Iterator

from dsc.spec.attention import MlaAttention
from dsc.spec.divisors import divisor_near
from dsc.spec.errors import Finding
from dsc.spec.ffn import MoeFfn
from dsc.spec.model import ModelSpec


def experts_to_share(spec: ModelSpec) -> Iterator[Finding]:
    if spec.serving is None:
        return
    ranks, key = spec.serving.ep, ("serving", "ep")
    mixtures = _mixtures(spec)
    if ranks > 1 and not mixtures:
        message = f"{ranks} ranks share out the experts of a model that has none"
        yield Finding("DSC090", message, key, "remove it: each process serves alone")
    more = spec.serving.redundant_experts
    if more and ranks == 1:
        message = f"{more} redundant experts are for several ranks, and serving.ep is 1"
        yield Finding("DSC090", message, ("serving", "redundant_experts"), "remove it, or write serving.ep")
    for moe in mixtures:
        experts = moe.n_routed_experts + more
        if experts % ranks:
            message = f"{ranks} ranks cannot share {experts} experts evenly: {experts} % {ranks} = {experts % ranks}"
            whole = "n_routed_experts + serving.redundant_experts" if more else "n_routed_experts"
            help = f"write a divisor of {whole}, such as {divisor_near(experts, ranks)}"
            yield Finding("DSC090", message, key, help)


def groups_of_ranks(spec: ModelSpec) -> Iterator[Finding]:
    """Every rank has experts of its own and is in one group."""
    if spec.serving is None or spec.serving.tp == 1:
        return
    tp, ep, key = spec.serving.tp, spec.serving.ep, ("serving", "tp")
    if _mixtures(spec) and ep == 1:
        message = f"{tp} ranks divide layers, and nothing says how they share the routed experts"
        yield Finding("DSC092", message, key, f"write serving.ep: {tp} too, or a multiple of it")
    elif ep % tp and ep > 1:
        message = f"{ep} ranks are no groups of {tp}: {ep} % {tp} = {ep % tp}"
        yield Finding("DSC092", message, key, f"write a divisor of serving.ep, such as {divisor_near(ep, tp)}")


def sizes_to_divide(spec: ModelSpec) -> Iterator[Finding]:
    """Each rank of a group has equally much of everything that is divided."""
    tp = spec.tensor_ranks
    for name, size in _divided(spec):
        if size % tp:
            message = f"{tp} ranks cannot divide {name}: {size} % {tp} = {size % tp}"
            help = f"write a divisor of {size}, such as {divisor_near(size, tp)}"
            yield Finding("DSC092", message, ("serving", "tp"), help)


def one_engine(spec: ModelSpec) -> Iterator[Finding]:
    if spec.serving_ranks > 1 and spec.rl is not None:
        message = "reinforcement learning answers with an engine on each rank, and this one is shared by ranks"
        key = "ep" if spec.serving is not None and spec.serving.ep > 1 else "tp"
        yield Finding("DSC091", message, ("serving", key), "leave it to a spec without rl")


def _mixtures(spec: ModelSpec) -> list[MoeFfn]:
    return [ffn for ffn in spec.ffns.values() if isinstance(ffn, MoeFfn)]


def _divided(spec: ModelSpec) -> Iterator[tuple[str, int]]:
    """Sizes by the names that they have in a spec, each once."""
    found = {"vocab_size": spec.vocab_size}
    for name, attention in spec.attentions.items():
        found[f"num_attention_heads of attention.{name}"] = attention.num_attention_heads
        if not isinstance(attention, MlaAttention):
            found[f"num_key_value_heads of attention.{name}"] = attention.num_key_value_heads
    for name, ffn in spec.ffns.items():
        if not isinstance(ffn, MoeFfn):
            found[f"intermediate_size of ffn.{name}"] = ffn.intermediate_size
    yield from found.items()


SERVING_RULES = (experts_to_share, groups_of_ranks, sizes_to_divide, one_engine)
