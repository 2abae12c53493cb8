"""Where a model's parameters and FLOPs are: the graph's own sums, split by the part of the model that a node is in."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

from dsc.compiler.facts.stats import MTP, active_elements
from dsc.compiler.graph.graph import Call, Graph
from dsc.compiler.graph.op import Parameter
from dsc.spec.model import ModelSpec

ATTENTION, PRODUCTS = "attention projections", "attention products"
ROUTED, SHARED, ROUTER, DENSE = "routed experts", "shared experts", "router", "dense feed-forward"
EMBEDDING, HEAD, NORMS, OTHER = "embedding", "head", "norms", "other"

# The order in which a table shows them.
PARTS = (EMBEDDING, ATTENTION, PRODUCTS, DENSE, ROUTED, SHARED, ROUTER, NORMS, HEAD, OTHER)

# Attributes of a layer, and of the modules in it, that say which part they are; the innermost one counts.
MODULES = {"self_attn": ATTENTION, "mlp": DENSE, "gate": ROUTER, "shared_experts": SHARED}
# The same for the model's own attributes.
OF_MODEL = {"embed_tokens": EMBEDDING, "lm_head": HEAD}


@dataclass(frozen=True)
class Breakdown:
    """Of the main model, without multi-token prediction, by part. Each column sums up to the figure of `Stats`."""

    parameters: dict[str, int]
    active: dict[str, int]
    training_flops_per_token: dict[str, int]


def break_down(spec: ModelSpec, graph: Graph) -> Breakdown:
    total: Counter[str] = Counter()
    active: Counter[str] = Counter()
    for name, parameter in graph.parameters().items():
        if not name.startswith(MTP):
            part = _part_of_parameter(name, parameter)
            total[part] += parameter.type.numel.value()
            active[part] += active_elements(parameter)
    flops = _forward_flops(graph, spec.workload.sequence_length)
    return Breakdown(_sorted(total), _sorted(active), _sorted({part: round(n * 3) for part, n in flops.items()}))


def _forward_flops(graph: Graph, length: int) -> dict[str, Fraction]:
    """Per token of a sequence of this length."""
    flops: dict[str, Fraction] = {}
    sizes = {"B": 1, "S": length}
    for path, node, bound in graph.walk("Model.forward"):
        if isinstance(node.op, Call):
            continue
        count = node.flops().substitute(bound).value(sizes)
        if count:
            names = [(f"{path}{parameter.name}", parameter) for parameter in node.op.parameters()]
            part = _part_of_parameter(*names[0]) if names else _part_without_weight(path)
            flops[part] = flops.get(part, Fraction(0)) + Fraction(count, length)
    return flops


def _part_of_parameter(name: str, parameter: Parameter) -> str:
    """Norms are the vectors, routed experts what a token chooses among; the name's modules tell the rest."""
    _, choices = parameter.active
    if len(parameter.type.shape) == 1:
        return NORMS
    if choices.value() > 1:
        return ROUTED
    inside = [MODULES[module] for module in name.split(".") if module in MODULES]
    return inside[-1] if inside else OF_MODEL.get(name.split(".")[0], OTHER)


def _part_without_weight(path: str) -> str:
    """Attention multiplies activations; a tied head has a weight that is the embedding's."""
    return PRODUCTS if "self_attn" in path.split(".") else HEAD


def _sorted(parts: dict[str, int]) -> dict[str, int]:
    """In the order of PARTS, those that are zero left out."""
    return {part: parts[part] for part in PARTS if parts.get(part)}
