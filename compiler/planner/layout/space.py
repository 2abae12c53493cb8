"""The search space: every legal layout of a model on so many GPUs, always in the same order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple, TypeVar

from dsc.compiler.planner.layout.layout import TRIVIAL, Activations, Layout, step_sizes
from dsc.compiler.planner.layout.legal import dispatch_problems, model_problems
from dsc.compiler.planner.pipeline.schedule import SCHEDULES, Schedule, stage_count, why_not
from dsc.spec.model import ModelSpec
from dsc.spec.placement import Dispatch, Placement
from dsc.spec.placement_checks import recompute_choices
from dsc.spec.precision import Fp8BlockLinear

Pin = TypeVar("Pin")

# Where enumeration ends; pins may go further. Products over fewer tokens, or stages of fewer layers than these leave
# room for, are too small to keep a GPU busy, and a micro-batch of more sequences only costs memory.
LEAST_TOKENS = 1024
LARGEST_MICRO_BATCH = 8
LARGEST_VPP = 10


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


class LayoutFamily(NamedTuple):
    """Legal sharings of the GPUs that divide every layer alike; data parallelism makes up for the pipeline."""

    micro_batch: int
    tp: int
    cp: int
    ep: int
    etp: int
    pipelines: tuple[Pipeline, ...]
    dispatch: Dispatch = "all_to_all"

    def grids(self) -> Iterator[Layout]:
        """One layout each, what `variants` varies left at nothing."""
        return map(self.grid, self.pipelines)

    def grid(self, pipeline: Pipeline) -> Layout:
        pp, vpp, schedule, dp = pipeline
        sizes = pp, vpp, schedule, self.tp, self.cp, self.ep, self.etp, dp, 0, self.micro_batch
        return Layout(*sizes, (), "bf16", self.dispatch)


def grids(spec: ModelSpec, world: int, batch: int, largest_tp: int) -> Iterator[Layout]:
    """Legal sharings of the GPUs, family by family."""
    for family in families(spec, world, batch, largest_tp):
        yield from family.grids()


def families(spec: ModelSpec, world: int, batch: int, largest_tp: int) -> tuple[LayoutFamily, ...]:
    """All legal sharings, always in the same order.

    Tensor parallelism talks inside every layer, so `largest_tp` is the number of GPUs that NVLink joins.
    """
    pins = spec.placement or Placement()
    found: dict[tuple[int, int, int, int, int], list[Pipeline]] = {}
    for tp in _options(pins.tp, _divisors(world, largest_tp)):
        for cp in _options(pins.cp, _divisors(world, max(1, spec.workload.sequence_length // LEAST_TOKENS))):
            if any(model_problems(replace(TRIVIAL, tp=tp, cp=cp), spec)):
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
    dispatch = pins.dispatch or TRIVIAL.dispatch
    return tuple(LayoutFamily(*sizes, tuple(pipelines), dispatch) for sizes, pipelines in sorted(found.items()))


def _pipelines(pp: int, dp: int, spec: ModelSpec, batch: int, pins: Placement) -> dict[int, list[Pipeline]]:
    """Legal schedules and stages for each rank, by micro-batch."""
    found: dict[int, list[Pipeline]] = {}
    layers = spec.num_layers
    each = _options(pins.vpp, tuple(range(1, min(layers // pp, LARGEST_VPP) + 1)))
    schedules = _options(pins.schedule, SCHEDULES)
    cuts = [(one, vpp) for one in schedules for vpp in each if stage_count(one, pp, vpp) <= layers]
    for micro_batch in _options(pins.micro_batch, _divisors(batch, LARGEST_MICRO_BATCH)):
        counts, rests = zip(*(divmod(size, dp * micro_batch) for size in step_sizes(spec, batch)), strict=True)
        if any(rests):
            continue
        some = [
            Pipeline(pp, vpp, one, dp)
            for one, vpp in cuts
            if all(why_not(one, pp, vpp, count) is None for count in counts)
        ]
        if some:
            found[micro_batch] = some
    return found


def _expert_grids(tp: int, cp: int, world: int, spec: ModelSpec, pins: Placement) -> Iterator[tuple[int, int]]:
    """Pairs of expert parallelism and expert tensor parallelism that the model allows."""
    most = max(1, spec.moe().n_routed_experts if "moe" in spec.ffn_kinds else 1)
    for ep in _options(pins.ep, _divisors(world, most)):
        for etp in _options(pins.etp, _divisors(tp, tp)):
            layout = replace(TRIVIAL, tp=tp, cp=cp, ep=ep, etp=etp, dispatch=pins.dispatch or TRIVIAL.dispatch)
            if not any((*model_problems(layout, spec), *dispatch_problems(layout))):
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
