"""Rules across the keys of serving and the model's, for spec/checks.py."""

from collections.abc import Iterator

from dsc.spec.divisors import divisor_near
from dsc.spec.errors import Finding
from dsc.spec.ffn import MoeFfn
from dsc.spec.model import ModelSpec


def experts_to_share(spec: ModelSpec) -> Iterator[Finding]:
    ranks, key = spec.serving_ranks, ("serving", "ep")
    mixtures = [ffn for ffn in spec.ffns.values() if isinstance(ffn, MoeFfn)]
    if ranks > 1 and not mixtures:
        message = f"{ranks} ranks share out the experts of a model that has none"
        yield Finding("DSC090", message, key, "remove it: each process serves alone")
    for moe in mixtures:
        experts = moe.n_routed_experts
        if experts % ranks:
            message = f"{ranks} ranks cannot share {experts} experts evenly: {experts} % {ranks} = {experts % ranks}"
            help = f"write a divisor of n_routed_experts, such as {divisor_near(experts, ranks)}"
            yield Finding("DSC090", message, key, help)


def one_engine(spec: ModelSpec) -> Iterator[Finding]:
    if spec.serving_ranks > 1 and spec.rl is not None:
        message = "reinforcement learning answers with an engine on each rank, and this one is shared by ranks"
        yield Finding("DSC091", message, ("serving", "ep"), "leave it to a spec without rl")


SERVING_RULES = (experts_to_share, one_engine)
