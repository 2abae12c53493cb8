"""The plan where no cluster is named: the whole model on one device, of which nothing is known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dsc.compiler.graph.graph import Graph
from dsc.compiler.planner.layout.layout import TRIVIAL, global_batch
from dsc.compiler.planner.memory.ledger import MemoryModel
from dsc.compiler.planner.memory.lines import ALLOCATOR, CUDA, Role
from dsc.compiler.planner.report.hashes import spec_hash
from dsc.compiler.planner.report.plan import memory
from dsc.compiler.planner.report.record import memory_line, placement
from dsc.spec.model import ModelSpec

OF_GPUS = (ALLOCATOR, CUDA)
"""Lines that only a known device has."""


@dataclass(frozen=True)
class TrivialPlan:
    spec: ModelSpec
    batch: int
    """Sequences of one step, one after the other."""
    role: Role


def trivial_plan(spec: ModelSpec, graph: Graph) -> TrivialPlan:
    """Bytes without a capacity to hold them against, and no time: neither is known of a device that has no name."""
    ledger, batch = MemoryModel(spec, graph), global_batch(spec, 1)
    (role,) = ledger.ledger(TRIVIAL, batch, ledger.split(TRIVIAL))
    lines = tuple(line for line in role.lines if line.name not in OF_GPUS)
    return TrivialPlan(spec, batch, replace(role, lines=lines))


def trivial_record(plan: TrivialPlan) -> dict[str, Any]:
    """The keys of other plans; what is not known is null."""
    sizes = placement(TRIVIAL)
    return {
        "name": plan.spec.name,
        "mode": "train",
        "fits": None,
        "cluster": None,
        "world_size": TRIVIAL.world,
        "nodes": None,
        "mesh": {name: sizes.pop(name) for name in ("pp", "vpp", "dp", "cp", "tp", "ep", "etp")},
        **sizes,
        "global_batch": plan.batch,
        "micro_batches": TRIVIAL.micro_batches(plan.batch),
        "memory": [
            {
                "ranks": list(plan.role.ranks),
                **memory(plan.role, 0),
                "capacity": None,
                "lines": [memory_line(line) for line in plan.role.lines],
            }
        ],
        "time": None,
        "spec_sha256": spec_hash(plan.spec),
    }
