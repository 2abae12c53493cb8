"""Pins of the spec's `placement` section: what legal layouts keep to them, and what is wrong where none does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod

from dsc.compiler.planner.layout.layout import TRIVIAL, Layout, global_batch
from dsc.compiler.planner.layout.legal import are_ranks, choice_problems, model_problems, problems
from dsc.compiler.planner.layout.space import LayoutFamily, families
from dsc.compiler.planner.machine.hardware import hardware
from dsc.spec.errors import DscError, Finding
from dsc.spec.model import ModelSpec
from dsc.spec.placement import Placement

SERVING = ("tp", "dp", "ep")
"""Pins that a deployment has a use for too."""


def check_pins(spec: ModelSpec, world: int, batch: int, largest_tp: int) -> tuple[LayoutFamily, ...]:
    """All legal sharings. Raises what is wrong with pins that none keeps to: their own arithmetic, all else at one."""
    found = families(spec, world, batch, largest_tp)
    if found and not _pinned_choices(spec):
        return found
    reasons = [*_pinned_product(spec, world), *_pinned_choices(spec)] or _pinned_layout(spec, world, batch)
    raise DscError([Finding("DSC070", reason, ("placement",)) for reason in reasons])


def refused_pins(spec: ModelSpec) -> str | None:
    """Why no layout on the spec's own cluster keeps to its pins; None where one does, or where there is no cluster."""
    wrong = _wrong_pins(spec)
    return f"no layout keeps to the pins: {wrong[0].message}" if wrong else None


def impossible_pins(spec: ModelSpec) -> tuple[Finding, ...]:
    """What is wrong with pins that nothing on the spec's own cluster keeps to: neither training nor a deployment."""
    wrong = _wrong_pins(spec)
    return () if wrong and _of_a_deployment(spec) else wrong


def _wrong_pins(spec: ModelSpec) -> tuple[Finding, ...]:
    if spec.cluster is None or spec.placement is None:
        return ()
    machines = hardware(spec.cluster)
    try:
        check_pins(spec, machines.gpus, global_batch(spec, machines.gpus), machines.cluster.scale_up_domain)
    except DscError as error:
        return error.findings
    return ()


def _of_a_deployment(spec: ModelSpec) -> bool:
    """Whether pins may be meant for serving: nothing but sizes of groups that serve, where no section says those."""
    assert spec.cluster is not None and spec.placement is not None
    others = {name: value for name, value in spec.placement if value is not None and name not in SERVING}
    if spec.serving is not None or any(value != 1 or name not in ("pp", "cp", "etp") for name, value in others.items()):
        return False
    world = hardware(spec.cluster).gpus
    tensor = replace(TRIVIAL, tp=spec.placement.tp or 1)
    return not any(group_problems(spec.placement, world)) and not any(model_problems(tensor, spec))


def group_problems(pins: Placement, world: int) -> Iterator[str]:
    """Why so many GPUs cannot serve in groups of these sizes."""
    if pins.tp and pins.dp and pins.tp * pins.dp != world:
        yield f"tp x dp = {pins.tp} x {pins.dp} = {pins.tp * pins.dp}, but there {are_ranks(world)}"
    for name in SERVING:
        size = getattr(pins, name)
        if size and world % size:
            yield f"{name} = {size} does not divide {world} ranks: {world} = {world // size} x {size} + {world % size}"


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
    activations, dispatch = pins.activations or TRIVIAL.activations, pins.dispatch or TRIVIAL.dispatch
    layout = replace(TRIVIAL, recompute=recompute, activations=activations, dispatch=dispatch)
    return list(choice_problems(layout, spec))


def _pinned_layout(spec: ModelSpec, world: int, batch: int) -> list[str]:
    pins = spec.placement or Placement()
    pp, tp, cp = pins.pp or 1, pins.tp or 1, pins.cp or 1
    vpp = pins.vpp or (2 if pins.schedule in ("interleaved", "zbv", "dualpipe-v") else 1)
    schedule = pins.schedule or ("interleaved" if vpp > 1 else "1f1b")
    dp, micro_batch = pins.dp or max(1, world // (pp * tp * cp)), pins.micro_batch or 1
    sizes = pp, vpp, schedule, tp, cp, pins.ep or 1, pins.etp or 1, dp, pins.zero or 0, micro_batch
    layout = Layout(*sizes, (), "bf16", pins.dispatch or TRIVIAL.dispatch)
    return list(problems(layout, spec, world, batch)) or ["no legal layout keeps to all of these pins"]
