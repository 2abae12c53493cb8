"""What a deployment's plan says, as plain values: for --json, and for plan.yaml."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from dsc.compiler.planner.memory.lines import MemoryLine
from dsc.compiler.planner.report.record import memory_line, sha256
from dsc.compiler.planner.serving.deployment import Alternative, ServingFound
from dsc.compiler.planner.serving.expert_loads import PlacedLayer

GROUPS = {
    "cache": "cache",
    "arena": "activations",
    "block tables": "workspace",
    "CUDA graphs": "workspace",
    "CUDA context": "workspace",
    "collective buffers": "communication",
    "expert buffers": "communication",
}
MEMORY = ("weights", "cache", "activations", "communication", "workspace")


def serving_memory(lines: Iterable[MemoryLine], capacity: int) -> dict[str, int]:
    """Bytes of one GPU, by the names of a training plan and with the cache."""
    sums = dict.fromkeys(MEMORY, 0)
    for line in lines:
        sums["weights" if line.name.endswith(" weights") else GROUPS[line.name]] += line.bytes
    return {**sums, "total": sum(sums.values()), "capacity": capacity}


def serving_record(found: ServingFound) -> dict[str, Any]:
    problem, chosen = found.problem, found.chosen
    serving, hardware = chosen.serving, problem.hardware
    mesh = {"pp": 1, "vpp": 1, "dp": serving.dp, "cp": 1, "tp": serving.tp, "ep": serving.ep, "etp": 1}
    return {
        "name": problem.spec.name,
        "mode": problem.phase,
        "fits": found.fits,
        "cluster": hardware.cluster.name,
        "world_size": problem.world,
        "mesh": mesh,
        "context_length": problem.context,
        "sequences": _sequences(found),
        "experts": _experts(found) if problem.experts else None,
        "expert_placement": [_placed(one) for one in found.placed] or None,
        "weights": "fp8_block" if chosen.storing.fp8_weights else problem.spec.precision.parameters,
        "cache": _cache(found),
        "arena": _arena(found),
        "memory": [
            {
                "ranks": [0],
                **serving_memory(chosen.lines, problem.capacity),
                "lines": [memory_line(line) for line in chosen.lines],
            }
        ],
        "rejected": [_alternative(one, problem.capacity) for one in found.around],
        "spec_sha256": sha256(problem.spec.model_dump(mode="json")),
        "hardware_sha256": sha256([hardware.cluster.model_dump(mode="json"), asdict(hardware.calibration)]),
    }


def _sequences(found: ServingFound) -> dict[str, int]:
    """At once, at the context length."""
    plan, serving = found.chosen.plan, found.chosen.serving
    group = plan.sequences if plan else 0
    return {"of_a_group": group, "of_all": group * serving.dp}


def _experts(found: ServingFound) -> dict[str, Any]:
    """Of each layer; which experts are doubled is decided by their load."""
    serving, experts = found.chosen.serving, found.problem.experts
    return {
        "routed": experts,
        "redundant": serving.redundant(experts),
        "slots_per_gpu": serving.slots,
        "shared_on_every_gpu": serving.shared and found.problem.spec.moe().n_shared_experts > 0,
    }


def _placed(one: PlacedLayer) -> dict[str, Any]:
    """The experts on each GPU of the group that shares them out."""
    return {
        "layer": one.layer,
        "imbalance": one.imbalance,
        "imbalance_of_blocks": one.of_blocks,
        "gpus": [list(held) for held in one.placement.on_gpu],
    }


def _cache(found: ServingFound) -> dict[str, Any]:
    """Of one GPU; a sequence's pages lie on every GPU of its group."""
    plan, problem = found.chosen.plan, found.problem
    storing, memory = found.chosen.storing, problem.memory
    token_bytes = memory.token_bytes(found.chosen.serving, storing)
    return {
        "rows": storing.rows,
        "bytes_per_token": token_bytes,
        "page_tokens": storing.page,
        "page_bytes": storing.page * token_bytes,
        "pages": plan.pages if plan else 0,
        "pages_per_sequence": -(-problem.context // storing.page),
    }


def _arena(found: ServingFound) -> dict[str, int] | None:
    """Of one step: bytes taken, and those that no arena can do without."""
    plan = found.chosen.plan
    if plan is None:
        return None
    return {"bytes": plan.arena.bytes, "least_bytes": plan.arena.least, "values": len(plan.arena.intervals)}


def _alternative(one: Alternative, capacity: int) -> dict[str, Any]:
    option = one.option
    return {
        "change": one.change,
        "binds": one.binds,
        "reason": one.reason,
        "sequences": option.sequences,
        "missing_bytes": None if option.plan else option.bytes - capacity,
    }
