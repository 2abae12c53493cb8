"""A plan for training: the layout found, what it takes, how long a step is, and why not otherwise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.machine.hardware import Hardware
from dsc.compiler.planner.memory.ledger import (
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
    Line,
    Role,
)
from dsc.compiler.planner.search.explain import Neighbour, largest_saving, neighbours
from dsc.compiler.planner.search.search import Candidate, Found, Problem, search
from dsc.compiler.planner.time.step import StepTime

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
    roles = alike(problem.memory.ledger(layout, problem.batch, problem.stages(layout)))
    return Plan(problem, found, chosen, roles, time, around, largest_saving(problem, layout, around))


def alike(roles: Sequence[Role]) -> tuple[Role, ...]:
    """Roles that need as much, line by line, as one, even if the micro-batches are of other stages."""
    together: dict[tuple[object, ...], list[Role]] = {}
    for role in roles:
        together.setdefault(tuple((line.name, line.bytes) for line in role.lines), []).append(role)
    return tuple(_merged(same) for same in together.values())


def _merged(same: Sequence[Role]) -> Role:
    """With the ranks of all; where sources differ, that of the first, and its rank."""
    first = same[0]
    sources = [tuple(line.source for line in role.lines) for role in same]
    lines = tuple(
        line if len(set(of_line)) == 1 else replace(line, source=f"{line.source}, on rank {first.ranks[0]}")
        for line, of_line in zip(first.lines, zip(*sources, strict=True), strict=True)
    )
    return replace(first, ranks=tuple(sorted(rank for role in same for rank in role.ranks)), lines=lines)


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
                "lines": [memory_line(line) for line in role.lines],
            }
            for role in plan.roles
        ],
        "time": {
            "step_seconds": time.seconds,
            "bubble_fraction": time.bubble_fraction,
            "mfu": time.mfu,
            "gpu_hours_per_trillion_tokens": time.gpu_hours_per_trillion_tokens,
            "uncertainty": time.uncertainty,
            "lines": [
                {"name": line.name, "seconds": line.seconds, "provenance": line.provenance, "source": line.source}
                for line in time.lines
            ],
        },
        "rejected": [_neighbour(one) for one in plan.around],
        "largest_saving": None if plan.saving is None else plan.saving.change,
        "sensitivity": _sensitivity(plan),
        "searched": {"legal": plan.found.legal, "simulated": plan.found.simulated},
        "spec_sha256": sha256(spec.model_dump(mode="json")),
        "hardware_sha256": sha256([hardware.cluster.model_dump(mode="json"), asdict(hardware.calibration)]),
    }


def memory_line(line: Line) -> dict[str, Any]:
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


def choices(plan: Plan) -> list[str]:
    """Where the faster layout that lacks memory differs, if there is one."""
    if plan.found.faster is None:
        return []
    ours, theirs = vars(plan.layout), vars(plan.found.faster.layout)
    return [f"{name} {_choice(ours[name])} -> {_choice(theirs[name])}" for name in ours if ours[name] != theirs[name]]


def _choice(value: object) -> str:
    return " + ".join(value) or "nothing" if isinstance(value, tuple) else str(value)


def where(machines: Hardware) -> str:
    """256 nodes of h800, 2,048 GPUs."""
    nodes = f"{machines.nodes:,} node{'' if machines.nodes == 1 else 's'}"
    return f"{nodes} of {machines.cluster.name}, {machines.gpus:,} GPUs"


def ranks_text(ranks: Sequence[int]) -> str:
    """rank 0, ranks 1-14, ranks 3, 5-7."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][-1] + 1:
            spans[-1].append(rank)
        else:
            spans.append([rank])
    shown = ", ".join(f"{span[0]}-{span[-1]}" if len(span) > 1 else f"{span[0]}" for span in spans)
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {shown}"


def runs(parts: Sequence[str]) -> list[str]:
    """layers.3, layers.4, layers.5 as layers.3-5."""
    runs = []
    for stem, group in groupby(parts, key=lambda part: part.rpartition(".")[0] if part[-1].isdigit() else part):
        members = list(group)
        first, last = members[0], members[-1].rpartition(".")[2]
        runs.append(first if len(members) == 1 else f"{stem}.{first.rpartition('.')[2]}-{last}")
    return runs


def sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
