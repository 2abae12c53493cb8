"""How the ranks share a model: one point of the planner's search space, when it is legal, and all that are.

Ranks form a grid of pipeline x data x context x tensor parallelism; experts fold the last three anew as
expert parallelism x expert tensor parallelism x expert data parallelism (MoE Parallel Folding, arXiv 2504.14960).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from math import prod
from typing import Literal, NamedTuple, TypeVar

from dsc.compiler.planner.pipeline.schedule import SCHEDULES, Schedule, stage_count, stages_of_rank, why_not
from dsc.spec.attention import GroupedQueries, MlaAttention
from dsc.spec.errors import DscError, Finding
from dsc.spec.ffn import MoeFfn
from dsc.spec.model import ModelSpec
from dsc.spec.placement import Placement
from dsc.spec.precision import Fp8BlockLinear

Activations = Literal["bf16", "fp8"]
Pin = TypeVar("Pin")
RECOMPUTE = ("experts", "full", "mla_up_proj", "norms", "swiglu")

# Sequences that a GPU sees in a step where the spec does not say: DeepSeek-V3's 15360 on 2048 GPUs, 7.5, rounded up.
SEQUENCES_PER_GPU = 8

# Where enumeration ends; pins may go further. Products over fewer tokens, or stages of fewer layers than these leave
# room for, are too small to keep a GPU busy, and a micro-batch of more sequences only costs memory.
LEAST_TOKENS = 1024
LARGEST_MICRO_BATCH = 8
LARGEST_VPP = 10


@dataclass(frozen=True, order=True)
class Layout:
    """How the ranks of one replica group share the model.

    World = pp * dp * cp * tp; experts fold over dp * cp * tp as ep * etp * edp.
    """

    pp: int
    vpp: int
    schedule: Schedule
    tp: int
    cp: int
    ep: int
    etp: int
    dp: int
    zero: int
    """What is sharded over data parallelism: 0 nothing, 1 optimizer, 2 + gradients, 3 + parameters (FSDP)."""
    micro_batch: int
    """Sequences."""
    recompute: tuple[str, ...]
    """A sorted subset of RECOMPUTE: what backward computes again instead of keeping."""
    activations: Activations
    """What dispatched tokens and SwiGLU's inputs are cached as; attention's results then take 12 bits (E5M6)."""

    @property
    def world(self) -> int:
        return self.pp * self.dp * self.cp * self.tp

    @property
    def edp(self) -> int:
        """Copies of each expert: expert data parallelism."""
        return self.dp * self.cp * self.tp // (self.ep * self.etp)

    @property
    def chunks(self) -> int:
        """Stages of the model."""
        return stage_count(self.schedule, self.pp, self.vpp)

    @property
    def duplicates(self) -> int:
        """Copies of a stage within one pipeline."""
        return 2 if self.schedule == "dualpipe" else 1

    def micro_batches(self, global_batch: int) -> int:
        """Of one pipeline in one step; exact for legal layouts."""
        return global_batch // (self.dp * self.micro_batch)

    def stages(self, rank: int) -> tuple[int, ...]:
        """The stages that pipeline rank `rank` holds, in the order of the model."""
        return stages_of_rank(self.schedule, self.pp, self.vpp, rank)


def global_batch(spec: ModelSpec, world: int) -> int:
    """Sequences of one optimizer step: the spec's, or SEQUENCES_PER_GPU on each GPU."""
    return spec.workload.global_batch or SEQUENCES_PER_GPU * world


def problems(layout: Layout, spec: ModelSpec, world: int, batch: int) -> tuple[str, ...]:
    """Why this layout cannot be, each with its arithmetic; empty if it can. `batch` is the global batch."""
    return (*_grid(layout, world), *_model(layout, spec), *_pipeline(layout, spec, batch), *_choices(layout, spec))


def _grid(layout: Layout, world: int) -> Iterator[str]:
    pp, dp, cp, tp, ep, etp = layout.pp, layout.dp, layout.cp, layout.tp, layout.ep, layout.etp
    if layout.world != world:
        yield f"pp x dp x cp x tp = {pp} x {dp} x {cp} x {tp} = {layout.world}, but there are {world} GPUs"
    if dp * cp * tp % (ep * etp):
        yield (
            f"experts fold over dp x cp x tp = {dp} x {cp} x {tp} = {dp * cp * tp}, "
            f"which ep x etp = {ep} x {etp} = {ep * etp} does not divide"
        )


def _model(layout: Layout, spec: ModelSpec) -> Iterator[str]:
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
    if "moe" not in spec.ffn_kinds and ep * etp > 1:
        yield f"ep x etp = {ep} x {etp} = {ep * etp}, but the model has no experts"
    sequence = spec.workload.sequence_length
    if cp > 1:  # causal attention is balanced by giving every rank one chunk from the front and one from the back
        yield from _divides("2 x cp", 2 * cp, "tokens of a sequence", sequence)
    if tp > 1:  # sequence parallelism: between the products each tensor rank holds its part of the tokens
        yield from _divides("cp x tp", cp * tp, "tokens of a sequence", sequence)
    yield from _divides("tp", tp, "vocab_size", spec.vocab_size)


def _divides(name: str, divisor: int, what: str, count: int) -> Iterator[str]:
    if count % divisor:
        division = f"{count} = {count // divisor} x {divisor} + {count % divisor}"
        yield f"{name} = {divisor} does not divide {count} {what}: {division}"


def _pipeline(layout: Layout, spec: ModelSpec, batch: int) -> Iterator[str]:
    if layout.chunks > spec.num_layers:
        stages = f"pp x vpp = {layout.pp} x {layout.vpp} = {layout.chunks} stages"
        yield f"{stages}, but the model has {spec.num_layers} layers"
    together = layout.dp * layout.micro_batch
    if batch % together:
        product = f"dp x micro_batch = {layout.dp} x {layout.micro_batch} = {together}"
        yield f"{product} does not divide the global batch of {batch}"
        return
    reason = why_not(layout.schedule, layout.pp, layout.vpp, layout.micro_batches(batch))
    if reason is not None:
        yield f"schedule: {reason}"


def _choices(layout: Layout, spec: ModelSpec) -> Iterator[str]:
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
    if layout.activations == "fp8" and not isinstance(spec.precision.linear, Fp8BlockLinear):
        yield "activations are kept in fp8 where products read fp8: precision.linear is bf16"


def recompute_choices(spec: ModelSpec) -> tuple[str, ...]:
    """Those of RECOMPUTE that the model has."""
    absent = set()
    if not any(isinstance(attention, MlaAttention) for attention in spec.attentions.values()):
        absent.add("mla_up_proj")
    if "moe" not in spec.ffn_kinds:
        absent.add("experts")
    return tuple(name for name in RECOMPUTE if name not in absent)


def layouts(spec: ModelSpec, world: int, batch: int, largest_tp: int) -> Iterator[Layout]:
    """Every legal layout that keeps to the spec's pins, always in the same order."""
    for grid in grids(spec, world, batch, largest_tp):
        yield from variants(grid, spec)


class Pipeline(NamedTuple):
    """How a model is cut along its layers."""

    pp: int
    vpp: int
    schedule: Schedule
    dp: int


class Family(NamedTuple):
    """Legal sharings of the GPUs that divide every layer alike; data parallelism makes up for the pipeline."""

    micro_batch: int
    tp: int
    cp: int
    ep: int
    etp: int
    pipelines: tuple[Pipeline, ...]

    def grids(self) -> Iterator[Layout]:
        """One layout each, what `variants` varies left at nothing."""
        return map(self.grid, self.pipelines)

    def grid(self, pipeline: Pipeline) -> Layout:
        pp, vpp, schedule, dp = pipeline
        return Layout(pp, vpp, schedule, self.tp, self.cp, self.ep, self.etp, dp, 0, self.micro_batch, (), "bf16")


def grids(spec: ModelSpec, world: int, batch: int, largest_tp: int) -> Iterator[Layout]:
    """Legal sharings of the GPUs, family by family."""
    for family in families(spec, world, batch, largest_tp):
        yield from family.grids()


def families(spec: ModelSpec, world: int, batch: int, largest_tp: int) -> tuple[Family, ...]:
    """All legal sharings, always in the same order.

    Tensor parallelism talks inside every layer, so `largest_tp` is the number of GPUs that NVLink joins.
    """
    pins = spec.placement or Placement()
    found: dict[tuple[int, int, int, int, int], list[Pipeline]] = {}
    for tp in _options(pins.tp, _divisors(world, largest_tp)):
        for cp in _options(pins.cp, _divisors(world, max(1, spec.workload.sequence_length // LEAST_TOKENS))):
            if any(_model(replace(TRIVIAL, tp=tp, cp=cp), spec)):
                continue
            experts = tuple(_expert_grids(tp, cp, world, spec, pins))
            for pp in _options(pins.pp, _divisors(world, spec.num_layers)):
                dp, rest = divmod(world, pp * tp * cp)
                if rest or pins.dp not in (None, dp):
                    continue
                pipelines = _pipelines(pp, dp, spec, batch, pins)
                for ep, etp in experts if pipelines else ():
                    if dp * cp * tp % (ep * etp) == 0:
                        for micro_batch, some in pipelines.items():
                            found.setdefault((micro_batch, tp, cp, ep, etp), []).extend(some)
    return tuple(Family(*sizes, tuple(pipelines)) for sizes, pipelines in sorted(found.items()))


def _pipelines(pp: int, dp: int, spec: ModelSpec, batch: int, pins: Placement) -> dict[int, list[Pipeline]]:
    """Legal schedules and stages for each rank, by micro-batch."""
    found: dict[int, list[Pipeline]] = {}
    per_rank = spec.num_layers // pp
    for micro_batch in _options(pins.micro_batch, _divisors(batch, LARGEST_MICRO_BATCH)):
        count, rest = divmod(batch, dp * micro_batch)
        if rest:
            continue
        for schedule in _options(pins.schedule, SCHEDULES):
            for vpp in _options(pins.vpp, tuple(range(1, min(per_rank, LARGEST_VPP) + 1))):
                fits = stage_count(schedule, pp, vpp) <= spec.num_layers
                if fits and why_not(schedule, pp, vpp, count) is None:
                    found.setdefault(micro_batch, []).append(Pipeline(pp, vpp, schedule, dp))
    return found


def _expert_grids(tp: int, cp: int, world: int, spec: ModelSpec, pins: Placement) -> Iterator[tuple[int, int]]:
    """Pairs of expert parallelism and expert tensor parallelism that the model allows."""
    most = max(1, spec.ffn.moe.n_routed_experts if spec.ffn.moe else 1)
    for ep in _options(pins.ep, _divisors(world, most)):
        for etp in _options(pins.etp, _divisors(tp, tp)):
            if not any(_model(replace(TRIVIAL, tp=tp, cp=cp, ep=ep, etp=etp), spec)):
                yield ep, etp


def variants(grid: Layout, spec: ModelSpec) -> Iterator[Layout]:
    """The same sharing with every ZeRO stage, recompute set and activation type that the pins leave open."""
    pins = spec.placement or Placement()
    types: tuple[Activations, ...] = ("bf16", "fp8") if isinstance(spec.precision.linear, Fp8BlockLinear) else ("bf16",)
    sets = recompute_sets(spec) if pins.recompute is None else (tuple(sorted(pins.recompute)),)
    for zero in _options(pins.zero, (0, 1, 2, 3)):
        for recompute in sets:
            for activations in _options(pins.activations, types):
                yield replace(grid, zero=zero, recompute=recompute, activations=activations)


def recompute_sets(spec: ModelSpec) -> tuple[tuple[str, ...], ...]:
    """Every choice of what is recomputed, the smallest first; everything comes last."""
    parts = [name for name in recompute_choices(spec) if name != "full"]
    return (*(chosen for size in range(len(parts) + 1) for chosen in combinations(parts, size)), ("full",))


def _options(pin: Pin | None, free: Sequence[Pin]) -> Sequence[Pin]:
    return free if pin is None else (pin,)


@lru_cache
def _divisors(number: int, largest: int) -> tuple[int, ...]:
    return tuple(divisor for divisor in range(1, min(number, largest) + 1) if number % divisor == 0)


def check_pins(spec: ModelSpec, world: int, batch: int, largest_tp: int) -> tuple[Family, ...]:
    """All legal sharings. Raises what is wrong with pins that none keeps to: their own arithmetic, all else at one."""
    found = families(spec, world, batch, largest_tp)
    if found and not _pinned_choices(spec):
        return found
    reasons = [*_pinned_product(spec, world), *_pinned_choices(spec)] or _pinned_layout(spec, world, batch)
    raise DscError([Finding("DSC070", reason, ("placement",)) for reason in reasons])


def _pinned_product(spec: ModelSpec, world: int) -> Iterator[str]:
    """Pins that multiply up to what does not divide the number of GPUs."""
    pins = spec.placement or Placement()
    fixed = {name: getattr(pins, name) for name in ("pp", "dp", "cp", "tp") if getattr(pins, name) is not None}
    product = prod(fixed.values())
    names, sizes = " x ".join(fixed), " x ".join(str(size) for size in fixed.values())
    arithmetic = f"{names} = {sizes} = {product}" if len(fixed) > 1 else f"{names} = {sizes}"
    if len(fixed) == 4 and product != world:
        yield f"{arithmetic}, but there are {world} GPUs"
    elif world % product:
        yield f"{arithmetic} does not divide {world} GPUs"


def _pinned_choices(spec: ModelSpec) -> list[str]:
    pins = spec.placement or Placement()
    recompute = tuple(sorted(pins.recompute or ()))
    return list(_choices(replace(TRIVIAL, recompute=recompute, activations=pins.activations or "bf16"), spec))


def _pinned_layout(spec: ModelSpec, world: int, batch: int) -> list[str]:
    pins = spec.placement or Placement()
    pp, tp, cp = pins.pp or 1, pins.tp or 1, pins.cp or 1
    vpp = pins.vpp or (2 if pins.schedule in ("interleaved", "zbv", "dualpipe-v") else 1)
    schedule = pins.schedule or ("interleaved" if vpp > 1 else "1f1b")
    dp, micro_batch = pins.dp or max(1, world // (pp * tp * cp)), pins.micro_batch or 1
    layout = Layout(pp, vpp, schedule, tp, cp, pins.ep or 1, pins.etp or 1, dp, pins.zero or 0, micro_batch, (), "bf16")
    return list(problems(layout, spec, world, batch)) or ["no legal layout keeps to all of these pins"]


TRIVIAL = Layout(1, 1, "1f1b", 1, 1, 1, 1, 1, 0, 1, (), "bf16")
"""One GPU."""
