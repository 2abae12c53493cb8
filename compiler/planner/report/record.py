"""What a training plan says, as plain values: for --json, and for plan.yaml."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dsc.compiler.planner.layout.layout import TRIVIAL, Layout
from dsc.compiler.planner.memory.lines import MemoryLine, Role
from dsc.compiler.planner.report.hashes import hardware_hash, spec_hash
from dsc.compiler.planner.report.plan import Plan, memory
from dsc.compiler.planner.search.emitted import missing
from dsc.compiler.planner.search.explain import Neighbour
from dsc.compiler.planner.time.step import StepTime


def record(plan: Plan) -> dict[str, Any]:
    """What `dsc plan --json` prints: the contract's keys, then where every figure comes from."""
    layout, spec, hardware = plan.layout, plan.problem.spec, plan.problem.hardware
    return {
        "name": spec.name,
        "mode": "train",
        "fits": plan.fits,
        "cluster": plan.problem.hardware.cluster.name,
        "world_size": plan.problem.world,
        "nodes": hardware.nodes,
        "mesh": {name: getattr(layout, name) for name in ("pp", "vpp", "dp", "cp", "tp", "ep", "etp")},
        "schedule": layout.schedule,
        "micro_batch": layout.micro_batch,
        "global_batch": plan.problem.batch,
        "micro_batches": layout.micro_batches(plan.problem.batch),
        "zero": layout.zero,
        "recompute": list(layout.recompute),
        "activations": layout.activations,
        "not_emitted": list(plan.not_emitted),
        "other_engines": _elsewhere(plan),
        "stages": [[plan.problem.memory.parts[part].name for part in stage] for stage in plan.problem.stages(layout)],
        "memory": [_of_role(role, plan.problem.capacity) for role in plan.roles],
        "time": _time(plan.time),
        "rejected": [_neighbour(one) for one in plan.shown],
        "largest_saving": None if plan.saving is None else plan.saving.change,
        "sensitivity": _sensitivity(plan),
        "searched": {"legal": plan.found.legal, "simulated": plan.found.simulated},
        "spec_sha256": spec_hash(plan.problem.written),
        "hardware_sha256": hardware_hash(hardware.cluster),
    }


def _of_role(role: Role, capacity: int) -> dict[str, Any]:
    lines = [memory_line(line) for line in role.lines]
    return {"ranks": list(role.ranks), **memory(role, capacity), "lines": lines}


def _time(time: StepTime) -> dict[str, Any]:
    return {
        "step_seconds": time.seconds,
        "bubble_fraction": time.bubble_fraction,
        "mfu": time.mfu,
        "gpu_hours_per_trillion_tokens": time.gpu_hours_per_trillion_tokens,
        "uncertainty": time.uncertainty,
        "lines": [
            {"name": line.name, "seconds": line.seconds, "provenance": line.provenance, "source": line.source}
            for line in time.lines
        ],
    }


def memory_line(line: MemoryLine) -> dict[str, Any]:
    return {
        "name": line.name,
        "bytes": line.bytes,
        "provenance": line.provenance,
        "source": line.source,
        "tensors": list(line.tensors),
    }


def _neighbour(one: Neighbour) -> dict[str, Any]:
    return {
        "change": one.change,
        "binds": one.binds,
        "reason": one.reason,
        "bytes": one.bytes,
        "missing_bytes": one.missing_bytes,
        "step_seconds": one.seconds,
    }


def _sensitivity(plan: Plan) -> dict[str, Any] | None:
    """The next better plan, and how much more memory a GPU would need for it."""
    faster = plan.faster
    if faster is None:
        return None
    return {
        "missing_bytes": faster.bytes - plan.problem.capacity,
        "step_seconds": faster.seconds,
        "placement": placement(faster.layout),
    }


def _elsewhere(plan: Plan) -> dict[str, Any] | None:
    """What they would reach, and what of it the package lacks."""
    there = plan.elsewhere
    if there is None:
        return None
    return {
        "step_seconds": there.seconds,
        "bytes": there.bytes,
        "not_emitted": list(missing(there.layout, plan.problem.graph)),
        "placement": placement(there.layout),
    }


def placement(layout: Layout) -> dict[str, Any]:
    """A layout as the spec's `placement` section has it; what dispatches only where it is not what does by itself."""
    written = {**asdict(layout), "recompute": list(layout.recompute)}
    return written if layout.dispatch != TRIVIAL.dispatch else {k: v for k, v in written.items() if k != "dispatch"}
