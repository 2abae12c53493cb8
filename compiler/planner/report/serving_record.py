"""What a deployment's plan says, as plain values: for --json, and for plan.yaml."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from dsc.compiler.planner.memory.lines import MemoryLine
from dsc.compiler.planner.report.hashes import hardware_hash, spec_hash
from dsc.compiler.planner.report.record import memory_line
from dsc.compiler.planner.serving.deployment import WAITED, Alternative, ServingFound
from dsc.compiler.planner.serving.expert_loads import PlacedLayer

WAITED_KEY = {"prefill": "seconds_to_the_first_token", "decode": "seconds_per_output_token"}
GROUPS = {
    "cache": "cache",
    "arena": "activations",
    "block tables": "workspace",
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
        "nodes": hardware.nodes,
        "mesh": mesh,
        "context_length": problem.context,
        "sequences": _sequences(found),
        "experts": _experts(found) if problem.experts else None,
        "expert_placement": [_placed(one) for one in found.placed] or None,
        "weights": "fp8_block" if problem.spec.precision.fp8_products() else problem.spec.precision.parameters,
        "cache": _cache(found),
        "arena": _arena(found),
        "time": _time(found),
        "acceptance": problem.acceptance,
        "not_emitted": list(not_emitted(found)),
        "other_engines": elsewhere(found) or None,
        "memory": [
            {
                "ranks": [0],
                **serving_memory(chosen.lines, problem.capacity),
                "lines": [memory_line(line) for line in chosen.lines],
            }
        ],
        "rejected": [_alternative(one, problem.capacity) for one in found.around],
        "spec_sha256": spec_hash(problem.spec),
        "hardware_sha256": hardware_hash(hardware.cluster),
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


def _time(found: ServingFound) -> dict[str, Any] | None:
    """Of a step, and what follows for who asks and for who pays."""
    problem, chosen, speed = found.problem, found.chosen, found.chosen.speed
    if speed is None:
        return None
    target = None if problem.target is None else {"seconds": problem.target, "met": found.meets}
    return {
        "step_seconds": speed.seconds,
        "sequences_of_a_step": chosen.batch,
        "tokens_of_a_sequence": speed.tokens,
        WAITED_KEY[problem.phase]: speed.waited,
        "target": target,
        "tokens_per_second_of_a_gpu": speed.per_gpu,
        "tokens_per_second": speed.of_all,
        "dollars_per_gpu_hour": problem.price,
        "dollars_per_million_tokens": None if problem.price is None else speed.dollars(problem.price),
        "uncertainty": speed.uncertainty,
        "lines": [asdict(line) for line in speed.lines],
    }


def speed_text(found: ServingFound) -> str:
    """42.0 ms for each token, 1,742 tokens/s a GPU, 557,440 in all, 0.319 dollars for a million of them."""
    speed, problem = found.chosen.speed, found.problem
    if speed is None:
        return "does not fit"
    parts = [
        f"{1e3 * speed.waited:,.1f} ms {WAITED[problem.phase]}",
        f"{speed.per_gpu:,.0f} tokens/s a {problem.hardware.device}",
        f"{speed.of_all:,.0f} in all",
    ]
    if problem.price is not None:
        parts.append(f"{speed.dollars(problem.price):,.3f} dollars for a million of them")
    return ", ".join(parts)


def not_emitted(found: ServingFound) -> Iterator[str]:
    """What of the deployment the package has no code for yet."""
    serving, problem = found.chosen.serving, found.problem
    if serving.gpus > 1 and problem.spec.serving is None:
        shared = [f"{name} {size}" for name, size in (("tp", serving.tp), ("ep", serving.ep or 1)) if size > 1]
        if serving.slots == 0:
            shared = shared[: serving.tp > 1]
        if shared:
            keys = ", ".join(size.replace(" ", ": ") for size in shared)
            whole = f"the package's engine has its whole model on one {problem.hardware.device}"
            yield f"{' and '.join(shared)}: {whole} where the spec does not say serving: {{{keys}}}"
    more = serving.redundant(problem.experts) if problem.experts else 0
    if more and (problem.spec.serving is None or problem.spec.serving.redundant_experts != more):
        told = f"where the spec does not say serving.redundant_experts: {more}"
        yield f"redundant experts: the package's engine has each expert once {told}"


def elsewhere(found: ServingFound) -> str:
    """What engines other than the package would reach; empty where it is no more."""
    option = found.elsewhere
    if option is None or option.speed is None:
        return ""
    serving, speed = option.serving, option.speed
    redundant = serving.redundant(found.problem.experts)
    return (
        f"other engines, which exchange rows as DeepEP does: {speed.per_gpu:,.0f} tokens/s a "
        f"{found.problem.hardware.device} with tp {serving.tp}, ep {serving.ep} and {redundant} redundant experts"
    )


def _alternative(one: Alternative, capacity: int) -> dict[str, Any]:
    option = one.option
    return {
        "change": one.change,
        "binds": one.binds,
        "reason": one.reason,
        "sequences": option.sequences,
        "tokens_per_second_of_a_gpu": option.speed.per_gpu if option.speed else None,
        "missing_bytes": None if option.plan else option.bytes - capacity,
    }
