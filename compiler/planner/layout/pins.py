"""Pins of the spec's `placement` section: what legal layouts keep to them, and what is wrong where none does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod

from dsc.compiler.planner.layout.layout import TRIVIAL, Layout, global_batch
from dsc.compiler.planner.layout.legal import are_ranks, choice_problems, problems
from dsc.compiler.planner.layout.space import LayoutFamily, families
from dsc.compiler.planner.machine.hardware import hardware
from dsc.spec.errors import DscError, Finding
from dsc.spec.model import ModelSpec
from dsc.spec.placement import Placement


def check_pins(spec: ModelSpec, world: int, batch: int, largest_tp: int) -> tuple[LayoutFamily, ...]:
    """All legal sharings. Raises what is wrong with pins that none keeps to: their own arithmetic, all else at one."""
    found = families(spec, world, batch, largest_tp)
    if found and not _pinned_choices(spec):
        return found
    reasons = [*_pinned_product(spec, world), *_pinned_choices(spec)] or _pinned_layout(spec, world, batch)
    raise DscError([Finding("DSC070", reason, ("placement",)) for reason in reasons])


def refused_pins(spec: ModelSpec) -> str | None:
    """Why no layout on the spec's own cluster keeps to its pins; None where one does, or where there is no cluster."""
    if spec.cluster is None or spec.placement is None:
        return None
    machines = hardware(spec.cluster)
    try:
        check_pins(spec, machines.gpus, global_batch(spec, machines.gpus), machines.cluster.scale_up_domain)
    except DscError as error:
        return f"no layout keeps to the pins: {error.findings[0].message}"
    return None


def _pinned_product(spec: ModelSpec, world: int) -> Iterator[str]:
    """Pins that multiply up to what does not divide the number of GPUs."""
    pins = spec.placement or Placement()
    fixed = {name: getattr(pins, name) for name in ("pp", "dp", "cp", "tp") if getattr(pins, name) is not None}
    product = prod(fixed.values())
    names, sizes = " x ".join(fixed), " x ".join(str(size) for size in fixed.values())
    arithmetic = f"{names} = {sizes} = {product}" if len(fixed) > 1 else f"{names} = {sizes}"
    if len(fixed) == 4 and product != world:
        yield f"{arithmetic}, but there {are_ranks(world)}"
    elif world % product:
        yield f"{arithmetic} does not divide {world} ranks"


def _pinned_choices(spec: ModelSpec) -> list[str]:
    pins = spec.placement or Placement()
    recompute = tuple(sorted(pins.recompute or ()))
    return list(choice_problems(replace(TRIVIAL, recompute=recompute, activations=pins.activations or "bf16"), spec))


def _pinned_layout(spec: ModelSpec, world: int, batch: int) -> list[str]:
    pins = spec.placement or Placement()
    pp, tp, cp = pins.pp or 1, pins.tp or 1, pins.cp or 1
    vpp = pins.vpp or (2 if pins.schedule in ("interleaved", "zbv", "dualpipe-v") else 1)
    schedule = pins.schedule or ("interleaved" if vpp > 1 else "1f1b")
    dp, micro_batch = pins.dp or max(1, world // (pp * tp * cp)), pins.micro_batch or 1
    layout = Layout(pp, vpp, schedule, tp, cp, pins.ep or 1, pins.etp or 1, dp, pins.zero or 0, micro_batch, (), "bf16")
    return list(problems(layout, spec, world, batch)) or ["no legal layout keeps to all of these pins"]
