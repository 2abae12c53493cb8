"""The precision that a package computes in, where its target has no kernels for the one that the spec asks for.

`check` warns of it, `plan` times and counts it, `compile` emits it and says so: one rule, read by all three.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from dsc.compiler.kernels.fp8_quantize import FP8_QUANTIZE
from dsc.compiler.kernels.latent_cache import MLA_DECODE
from dsc.compiler.kernels.target import Target, target_of
from dsc.spec.attention import Attention, GroupedQueries, MlaAttention
from dsc.spec.ffn import MoeFfn
from dsc.spec.model import ModelSpec
from dsc.spec.precision import Bf16Linear, Fp8BlockLinear


class Lowered(NamedTuple):
    spec: ModelSpec
    """With the precision that is emitted."""
    notes: tuple[str, ...]
    """One for each key that was not obeyed."""


def lowered(spec: ModelSpec) -> Lowered:
    """For the target of the spec's own cluster."""
    return lowered_for(spec, target_of(spec))


def lowered_for(spec: ModelSpec, target: Target | None) -> Lowered:
    """The spec itself, and no notes, where the target has kernels for all of it."""
    changes: dict[str, object] = {}
    pins: dict[str, object] = {}
    notes = []
    linear = spec.precision.linear
    if isinstance(linear, Fp8BlockLinear) and linear.products.in_fp8():
        if reason := _without_products(spec, target):
            changes["linear"] = Bf16Linear()
            notes.append(f"precision.linear: products run in {spec.precision.parameters}, not in FP8: {reason}")
            if spec.placement is not None and spec.placement.activations == "fp8":
                pins["activations"] = "bf16"
                notes.append("placement.activations: kept in bf16, as products read them")
        elif linear.products.attention == "fp8" and any(_biased(one) for one in spec.attentions.values()):
            notes.append("attention.qkv_bias: products to q, k and v run in bf16, not in FP8: kernels add no bias")
        if not changes and mixtures(spec) > 1 and linear.products.experts == "fp8":
            products = linear.products.model_copy(update={"experts": "bf16"})
            changes["linear"] = linear.model_copy(update={"products": products})
    if spec.precision.kv_cache == "fp8" and not _has_rows(spec, target):
        changes["kv_cache"] = "bf16"
        notes.append("precision.kv_cache: rows are kept in bf16, for lack of kernels for FP8 rows there")
    return Lowered(_with(_with(spec, "precision", changes), "placement", pins), tuple(notes))


def mixtures(spec: ModelSpec) -> int:
    """Kinds of mixtures of experts; the kernels have the sizes of one."""
    return sum(isinstance(ffn, MoeFfn) for ffn in spec.ffns.values())


def _biased(attention: Attention) -> bool:
    return isinstance(attention, GroupedQueries) and attention.qkv_bias


def _without_products(spec: ModelSpec, target: Target | None) -> str | None:
    if target is None:
        lacking = "a cluster" if spec.cluster is None else f"kernels for {spec.cluster.kind}"
        return f"plain PyTorch, for lack of {lacking}"
    machine = spec.cluster.machine if spec.cluster else None
    if machine and machine.fp8_flops is None:
        return f"{machine.name} has no fp8_flops"
    return FP8_QUANTIZE.refusal(spec, target)


def _has_rows(spec: ModelSpec, target: Target | None) -> bool:
    if target is None or not isinstance(spec.attention, MlaAttention):
        return False
    return target.fp8 and MLA_DECODE.refusal(spec, target) is None


def _with(spec: ModelSpec, section: str, changes: Mapping[str, object]) -> ModelSpec:
    if not changes:
        return spec
    return spec.model_copy(update={section: getattr(spec, section).model_copy(update=changes)})
