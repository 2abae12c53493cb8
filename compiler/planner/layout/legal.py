"""When a layout can be: every reason against it, with its arithmetic."""

from __future__ import annotations

from collections.abc import Iterator

from dsc.compiler.planner.layout.layout import Layout, step_sizes
from dsc.compiler.planner.machine.hardware import hardware
from dsc.compiler.planner.pipeline.schedule import why_not
from dsc.spec.attention import GroupedQueries
from dsc.spec.ffn import MoeFfn
from dsc.spec.model import ModelSpec
from dsc.spec.placement import RECOMPUTE
from dsc.spec.placement_checks import recompute_choices
from dsc.spec.precision import Fp8BlockLinear

DEEPEP_RUNS_ON = ("hopper", "blackwell")
"""Families of GPUs."""
DEEPEP_COMPONENTS = 256
"""Of a row, which 32 threads add up 16 bytes each."""
DEEPEP_TOP_K = 32


def problems(layout: Layout, spec: ModelSpec, world: int, batch: int) -> tuple[str, ...]:
    """Why this layout cannot be, each with its arithmetic; empty if it can. `batch` is the global batch."""
    return (
        *_grid(layout, world),
        *model_problems(layout, spec),
        *dispatch_problems(layout),
        *_pipeline(layout, spec, batch),
        *choice_problems(layout, spec),
    )


def are_ranks(count: int) -> str:
    """With the verb. A rank is a GPU, or a process of a computer without one."""
    return "is 1 rank" if count == 1 else f"are {count} ranks"


def _grid(layout: Layout, world: int) -> Iterator[str]:
    pp, dp, cp, tp, ep, etp = layout.pp, layout.dp, layout.cp, layout.tp, layout.ep, layout.etp
    if layout.world != world:
        yield f"pp x dp x cp x tp = {pp} x {dp} x {cp} x {tp} = {layout.world}, but there {are_ranks(world)}"
    if dp * cp * tp % (ep * etp):
        yield (
            f"experts fold over dp x cp x tp = {dp} x {cp} x {tp} = {dp * cp * tp}, "
            f"which ep x etp = {ep} x {etp} = {ep * etp} does not divide"
        )


def model_problems(layout: Layout, spec: ModelSpec) -> Iterator[str]:
    """Sizes of the model that tensor, context or expert parallelism does not divide."""
    tp, cp, ep, etp = layout.tp, layout.cp, layout.ep, layout.etp
    for attention in spec.attentions.values():
        yield from _divides("tp", tp, "attention heads", attention.num_attention_heads)
        if isinstance(attention, GroupedQueries):
            yield from _divides("tp", tp, "key-value heads", attention.num_key_value_heads)
    for name, ffn in spec.ffns.items():
        if isinstance(ffn, MoeFfn):
            yield from _divides("ep", ep, "experts", ffn.n_routed_experts)
            yield from _divides("etp", etp, f"ffn.{name}.moe_intermediate_size", ffn.moe_intermediate_size)
            yield from _divides("tp", tp, "shared experts' width", ffn.n_shared_experts * ffn.moe_intermediate_size)
        else:
            yield from _divides("tp", tp, f"ffn.{name}.intermediate_size", ffn.intermediate_size)
    mixtures = [name for name, ffn in spec.ffns.items() if isinstance(ffn, MoeFfn)]
    if len(mixtures) != 1 and ep * etp > 1:
        has = f"has several mixtures of experts, {', '.join(mixtures)}" if mixtures else "has no experts"
        yield f"ep x etp = {ep} x {etp} = {ep * etp}, but the model {has}"
    sequence = spec.workload.sequence_length
    if cp > 1:  # causal attention is balanced by giving every rank one chunk from the front and one from the back
        yield from _divides("2 x cp", 2 * cp, "tokens of a sequence", sequence)
    if tp > 1:  # sequence parallelism: between the products each tensor rank holds its part of the tokens
        yield from _divides("cp x tp", cp * tp, "tokens of a sequence", sequence)
    yield from _divides("tp", tp, "vocab_size", spec.vocab_size)


def dispatch_problems(layout: Layout) -> Iterator[str]:
    """Sizes for which DeepEP's kernels have nothing to send, or nothing like it."""
    if layout.dispatch == "deepep" and layout.ep == 1:
        yield "dispatch deepep sends tokens to other ranks' experts, and with ep = 1 a rank has all: write all_to_all"
    if layout.dispatch == "deepep" and layout.etp > 1:
        yield f"dispatch deepep sends tokens to whole experts, and etp = {layout.etp} cuts them: etp 1, or all_to_all"


def _divides(name: str, divisor: int, what: str, count: int) -> Iterator[str]:
    if count % divisor:
        division = f"{count} = {count // divisor} x {divisor} + {count % divisor}"
        yield f"{name} = {divisor} does not divide {count} {what}: {division}"


def _pipeline(layout: Layout, spec: ModelSpec, batch: int) -> Iterator[str]:
    if layout.chunks > spec.num_layers:
        stages = f"pp x vpp = {layout.pp} x {layout.vpp} = {layout.chunks} stages"
        yield f"{stages}, but the model has {spec.num_layers} layers"
    together = layout.dp * layout.micro_batch
    for size in step_sizes(spec, batch):
        if size % together:
            product = f"dp x micro_batch = {layout.dp} x {layout.micro_batch} = {together}"
            yield f"{product} does not divide {'the global' if size == batch else 'a'} batch of {size}"
            return
        reason = why_not(layout.schedule, layout.pp, layout.vpp, layout.micro_batches(size))
        if reason is not None:
            yield f"schedule: {reason}"
            return


def choice_problems(layout: Layout, spec: ModelSpec) -> Iterator[str]:
    """Recompute, ZeRO and activation types that are not to be had."""
    unknown = [name for name in layout.recompute if name not in RECOMPUTE]
    if unknown or list(layout.recompute) != sorted(set(layout.recompute)):
        yield f"recompute is a sorted choice of {', '.join(RECOMPUTE)}, not {list(layout.recompute)}"
    elif "full" in layout.recompute and len(layout.recompute) > 1:
        yield f"recompute: full leaves nothing to {', '.join(name for name in layout.recompute if name != 'full')}"
    else:
        for name in layout.recompute:
            if name not in recompute_choices(spec):
                yield f"recompute: {spec.name} has no {name}"
    if layout.zero not in range(4):
        yield f"zero is 0, 1, 2 or 3, not {layout.zero}"
    if layout.dispatch == "deepep":
        yield from _without_deepep(spec)
    if layout.activations == "fp8" and not isinstance(spec.precision.linear, Fp8BlockLinear):
        yield "activations are kept in fp8 where products read fp8: precision.linear is bf16"


def _without_deepep(spec: ModelSpec) -> Iterator[str]:
    """What of the spec DeepEP's kernels do not take: their README of version 2.1, and what its sources assert."""
    machine = None if spec.cluster is None else hardware(spec.cluster).cluster
    if machine is not None and machine.architecture not in DEEPEP_RUNS_ON:
        families = " or ".join(one.capitalize() for one in DEEPEP_RUNS_ON)
        yield f"dispatch deepep needs GPUs of {families}, and {machine.name} has {machine.gpu}: write all_to_all"
    if spec.precision.parameters != "bf16":
        text = f"dispatch deepep sends bfloat16, and precision.parameters is {spec.precision.parameters}"
        yield f"{text}: write bf16, or all_to_all"
    if spec.hidden_size % DEEPEP_COMPONENTS:
        rest = f"{spec.hidden_size} = {spec.hidden_size // DEEPEP_COMPONENTS} x {DEEPEP_COMPONENTS} + "
        yield (
            f"dispatch deepep adds rows up {DEEPEP_COMPONENTS} components at a time, which do not divide hidden_size: "
            + (f"{rest}{spec.hidden_size % DEEPEP_COMPONENTS}")
        )
    if "moe" in spec.ffn_kinds and spec.moe().num_experts_per_tok > DEEPEP_TOP_K:
        chosen = spec.moe().num_experts_per_tok
        yield f"dispatch deepep sends a token to at most {DEEPEP_TOP_K} experts, and num_experts_per_tok is {chosen}"
