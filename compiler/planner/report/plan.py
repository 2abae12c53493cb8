"""A plan for training: the layout found, what it takes, how long a step is, and why not otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

from dsc.compiler.planner.layout.layout import Layout
from dsc.compiler.planner.machine.hardware import Hardware
from dsc.compiler.planner.memory.lines import (
    ACTIVATIONS,
    ALLOCATOR,
    CODES,
    COLLECTIVES,
    CUDA,
    EXPERT_BUFFERS,
    GATHERED,
    GRADIENTS,
    LOGITS,
    MASTER,
    MOMENTS,
    PUT_OFF,
    TRANSFERS,
    WEIGHTS,
    WORKING,
    Role,
)
from dsc.compiler.planner.pipeline.simulate import Timeline
from dsc.compiler.planner.report.applies import worth_a_line
from dsc.compiler.planner.report.cited import cited
from dsc.compiler.planner.search.emitted import choose, missing, not_emitted
from dsc.compiler.planner.search.explain import Neighbour, largest_saving, neighbours
from dsc.compiler.planner.search.problem import Problem
from dsc.compiler.planner.search.search import Candidate, Found, fastest
from dsc.compiler.planner.time.lines import TimeLine
from dsc.compiler.planner.time.step import StepTime

# The lines of a ledger under the names of the contract.
GROUPS = {
    WEIGHTS: "weights",
    GATHERED: "weights",
    GRADIENTS: "gradients",
    MASTER: "optimizer",
    MOMENTS: "optimizer",
    PUT_OFF: "activations",
    LOGITS: "logits",
    TRANSFERS: "communication",
    COLLECTIVES: "communication",
    EXPERT_BUFFERS: "communication",
    CODES: "workspace",
    WORKING: "workspace",
    CUDA: "workspace",
    ALLOCATOR: "reserve",
}
NOTHING = 1e-12
"""Seconds, of what a sum leaves of a difference of equals."""
WORTH = 0.995
"""Of a step: what takes more than this share of it is as fast, as far as anybody can tell."""
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
    compared: bool = True
    """With what other engines would reach, which takes a search of its own."""

    @property
    def fits(self) -> bool:
        return self.found.best is not None

    @property
    def layout(self) -> Layout:
        return self.chosen.layout

    @property
    def not_emitted(self) -> tuple[str, ...]:
        """What of it the package does not do, a line each."""
        return not_emitted(self.problem, self.layout)

    @cached_property
    def elsewhere(self) -> Candidate | None:
        """The fastest layout in other engines that is not emitted, for comparison; None where none is faster."""
        if not self.compared or self.problem.others is not None:
            return None
        best = fastest(self.problem.elsewhere(), below=self.time.seconds if self.fits else math.inf)
        return None if best is None or next(missing(best.layout, self.problem.graph), None) is None else best

    @property
    def shown(self) -> tuple[Neighbour, ...]:
        """Of what stands around, what is worth a line."""
        return worth_a_line(self.around, self.layout, self.problem.spec)

    @property
    def lines(self) -> tuple[TimeLine, ...]:
        """Of the step, less those that take no time: one rank waits for nobody."""
        return tuple(line for line in self.time.lines if abs(line.seconds) > NOTHING)

    @property
    def faster(self) -> Candidate | None:
        """What lacks memory and would be worth some: faster by more than one can tell."""
        faster = self.found.faster
        return faster if faster is not None and faster.seconds <= WORTH * self.time.seconds else None

    @cached_property
    def timeline(self) -> Timeline:
        """The whole step, action by action."""
        problem = self.problem
        count = self.layout.micro_batches(problem.batch)
        return problem.of(self.layout).cost.timeline(self.layout, problem.stages(self.layout), count)


def make_plan(problem: Problem) -> Plan:
    """Raises DscError where pins contradict each other, or where nothing is known of the hardware."""
    found = choose(problem)
    return plan_of(problem, found, found.best or found.smallest)


def given_plan(problem: Problem, layout: Layout) -> Plan:
    """Of a layout that somebody chose, without a search."""
    chosen = Candidate(layout, problem.bytes(layout), problem.step(layout).seconds)
    fits = chosen.bytes <= problem.capacity
    return plan_of(problem, Found(chosen if fits else None, chosen, faster=None, legal=0, simulated=1), chosen)


def plan_of(problem: Problem, found: Found, chosen: Candidate) -> Plan:
    """What a layout takes, and what stands around it."""
    layout = chosen.layout
    time = problem.step(layout)
    around = neighbours(problem, layout, time.seconds, found.lacks)
    roles = alike(problem.of(layout).memory.ledger(layout, problem.batch, problem.stages(layout)))
    roles = tuple(cited(role, problem.memory.parts) for role in roles)
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


def choices(plan: Plan) -> list[str]:
    """Where the faster layout that lacks memory differs, if there is one."""
    if plan.faster is None:
        return []
    ours, theirs = vars(plan.layout), vars(plan.faster.layout)
    return [f"{name} {_choice(ours[name])} -> {_choice(theirs[name])}" for name in ours if ours[name] != theirs[name]]


def _choice(value: object) -> str:
    return " + ".join(value) or "nothing" if isinstance(value, tuple) else str(value)


def said_groups(roles: Sequence[Role]) -> tuple[str, ...]:
    """Of MEMORY, what some rank has any of."""
    sums = [memory(role, 0) for role in roles]
    return tuple(name for name in MEMORY if any(of_role[name] for of_role in sums))


def searched_text(found: Found) -> str:
    """66,999 ways to share the model are legal, 12 of them were simulated."""
    legal = "1 way to share the model is" if found.legal == 1 else f"{found.legal:,} ways to share the model are"
    return f"{legal} legal, {found.simulated} of them {'was' if found.simulated == 1 else 'were'} simulated"


def where(machines: Hardware) -> str:
    """256 nodes of h800, 2,048 GPUs."""
    nodes = f"{machines.nodes:,} node{'' if machines.nodes == 1 else 's'}"
    return f"{nodes} of {machines.cluster.name}, {machines.devices(machines.gpus)}"


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
