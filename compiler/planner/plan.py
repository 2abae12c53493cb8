"""A plan for training: the layout found, what it takes, how long a step is, and why not otherwise."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from dsc.compiler.planner.cost import StepTime
from dsc.compiler.planner.explain import Neighbour, largest_saving, neighbours
from dsc.compiler.planner.layout import Layout
from dsc.compiler.planner.ledger import (
    ACTIVATIONS,
    ALLOCATOR,
    COLLECTIVES,
    CUDA,
    EXPERT_BUFFERS,
    GATHERED,
    GRADIENTS,
    LOGITS,
    MASTER,
    MOMENTS,
    TRANSFERS,
    WEIGHTS,
    WORKING,
    Role,
)
from dsc.compiler.planner.search import Candidate, Found, Problem, search

# The lines of a ledger under the names of the contract.
GROUPS = {
    WEIGHTS: "weights",
    GATHERED: "weights",
    GRADIENTS: "gradients",
    MASTER: "optimizer",
    MOMENTS: "optimizer",
    LOGITS: "logits",
    TRANSFERS: "communication",
    COLLECTIVES: "communication",
    EXPERT_BUFFERS: "communication",
    WORKING: "workspace",
    CUDA: "workspace",
    ALLOCATOR: "reserve",
}
MEMORY = ("weights", "gradients", "optimizer", "activations", "logits", "communication", "workspace", "reserve")


@dataclass(frozen=True)
class Plan:
    problem: Problem
    found: Found
    chosen: Candidate
    """The best; where nothing fits, the layout that needs least."""
    roles: tuple[Role, ...]
    time: StepTime
    around: tuple[Neighbour, ...]
    saving: Neighbour | None
    """The one change that frees most memory."""

    @property
    def fits(self) -> bool:
        return self.found.best is not None

    @property
    def layout(self) -> Layout:
        return self.chosen.layout


def make_plan(problem: Problem) -> Plan:
    """Raises DscError where pins contradict each other, or where nothing is known of the hardware."""
    found = search(problem)
    chosen = found.best or found.smallest
    layout = chosen.layout
    time = problem.step(layout)
    around = neighbours(problem, layout, time.seconds)
    roles = problem.memory.ledger(layout, problem.batch, problem.stages(layout))
    return Plan(problem, found, chosen, roles, time, around, largest_saving(problem, layout, around))


def memory(role: Role, capacity: int) -> dict[str, int]:
    """Bytes of one GPU of a role, by the contract's names."""
    sums = dict.fromkeys(MEMORY, 0)
    for line in role.lines:
        sums["activations" if line.name.startswith(ACTIVATIONS) else GROUPS[line.name]] += line.bytes
    return {**sums, "total": role.bytes, "capacity": capacity}


def record(plan: Plan) -> dict[str, Any]:
    """What `dsc plan --json` prints: the contract's keys, then where every figure comes from."""
    layout, time, spec, hardware = plan.layout, plan.time, plan.problem.spec, plan.problem.hardware
    return {
        "name": spec.name,
        "mode": "train",
        "fits": plan.fits,
        "cluster": plan.problem.hardware.cluster.name,
        "world_size": plan.problem.world,
        "mesh": {name: getattr(layout, name) for name in ("pp", "vpp", "dp", "cp", "tp", "ep", "etp")},
        "schedule": layout.schedule,
        "micro_batch": layout.micro_batch,
        "global_batch": plan.problem.batch,
        "micro_batches": layout.micro_batches(plan.problem.batch),
        "zero": layout.zero,
        "recompute": list(layout.recompute),
        "activations": layout.activations,
        "stages": [[plan.problem.memory.parts[part].name for part in stage] for stage in plan.problem.stages(layout)],
        "memory": [
            {
                "ranks": list(role.ranks),
                **memory(role, plan.problem.capacity),
                "lines": [line_record(line.name, line.bytes, line.provenance, line.source) for line in role.lines],
            }
            for role in plan.roles
        ],
        "time": {
            "step_seconds": time.seconds,
            "bubble_fraction": time.bubble_fraction,
            "mfu": time.mfu,
            "gpu_hours_per_trillion_tokens": time.gpu_hours_per_trillion_tokens,
            "uncertainty": time.uncertainty,
            "lines": [line_record(line.name, line.seconds, line.provenance, line.source) for line in time.lines],
        },
        "rejected": [_neighbour(one) for one in plan.around],
        "largest_saving": None if plan.saving is None else plan.saving.change,
        "sensitivity": _sensitivity(plan),
        "searched": {"legal": plan.found.legal, "simulated": plan.found.simulated},
        "spec_sha256": sha256(spec.model_dump(mode="json")),
        "hardware_sha256": sha256([hardware.cluster.model_dump(mode="json"), asdict(hardware.calibration)]),
    }


def line_record(name: str, amount: float, provenance: str, source: str) -> dict[str, Any]:
    key = "bytes" if isinstance(amount, int) else "seconds"
    return {"name": name, key: amount, "provenance": provenance, "source": source}


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
    faster = plan.found.faster
    if faster is None:
        return None
    return {
        "missing_bytes": faster.bytes - plan.problem.capacity,
        "step_seconds": faster.seconds,
        "placement": placement(faster.layout),
    }


def placement(layout: Layout) -> dict[str, Any]:
    """A layout as the spec's `placement` section has it."""
    return {**asdict(layout), "recompute": list(layout.recompute)}


def sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
