"""Rules of the pins that hold for any cluster, for spec/checks.py. The arithmetic of GPUs is the planner's."""

from collections.abc import Iterator

from dsc.spec.attention import MlaAttention
from dsc.spec.errors import Finding
from dsc.spec.ffn import MoeFfn
from dsc.spec.model import ModelSpec
from dsc.spec.placement import RECOMPUTE
from dsc.spec.words import one_of

RECOMPUTED = ("placement", "recompute")


def recompute_choices(spec: ModelSpec) -> tuple[str, ...]:
    """What a model has of what can be recomputed."""
    absent = set()
    if not any(isinstance(attention, MlaAttention) for attention in spec.attentions.values()):
        absent.add("mla_up_proj")
    if not any(isinstance(ffn, MoeFfn) for ffn in spec.ffns.values()):
        absent.add("experts")
    return tuple(name for name in RECOMPUTE if name not in absent)


def recompute_all_or_parts(spec: ModelSpec) -> Iterator[Finding]:
    chosen = (spec.placement and spec.placement.recompute) or []
    others = [name for name in dict.fromkeys(chosen) if name != "full"]
    if "full" in chosen and others:
        message = f"recompute: full leaves nothing to {', '.join(others)}"
        yield Finding("DSC070", message, RECOMPUTED, "write [full], or the parts without it")


def recompute_each_once(spec: ModelSpec) -> Iterator[Finding]:
    chosen = (spec.placement and spec.placement.recompute) or []
    for index, name in enumerate(chosen):
        if name in chosen[:index]:
            yield Finding("DSC070", f"recompute: {name} stands there twice", (*RECOMPUTED, index), "write it once")


def recompute_what_there_is(spec: ModelSpec) -> Iterator[Finding]:
    for index, name in enumerate((spec.placement and spec.placement.recompute) or []):
        if name not in (known := recompute_choices(spec)):
            yield Finding("DSC070", f"recompute: {spec.name} has no {name}", (*RECOMPUTED, index), one_of(known))


def fp8_activations(spec: ModelSpec) -> Iterator[Finding]:
    if spec.placement is not None and spec.placement.activations == "fp8" and spec.precision.linear.kind == "bf16":
        message = "activations are kept in fp8 where products read fp8, and precision.linear is bf16"
        help = "write bf16, or `precision: {linear: {kind: fp8_block}}`"
        yield Finding("DSC070", message, ("placement", "activations"), help)


PLACEMENT_RULES = (recompute_all_or_parts, recompute_each_once, recompute_what_there_is, fp8_activations)
