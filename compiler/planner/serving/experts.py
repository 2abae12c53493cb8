"""Which GPU holds which expert: contiguous blocks for training, replicas balanced by load for inference.

The balancer is EPLB (github.com/deepseek-ai/EPLB): experts that are asked for most get replicas, and what results is
packed so that nodes and then GPUs carry the same. Groups of experts stay on one node, because node-limited routing
sends each token to the groups of a few nodes. Ties go to the lower index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Load = int | float
"""How much an expert is asked for: tokens, or a moving average of them."""


class PlacementError(ValueError):
    """The experts cannot be placed so; the message has the arithmetic."""


@dataclass(frozen=True)
class ExpertPlacement:
    """The experts of one layer on GPUs. Each has as many slots, its own next to each other."""

    experts: int
    gpus: int
    slots: tuple[int, ...]
    """The expert in each slot (EPLB's phy2log)."""

    @property
    def slots_per_gpu(self) -> int:
        return len(self.slots) // self.gpus

    @property
    def on_gpu(self) -> tuple[tuple[int, ...], ...]:
        """The experts of each GPU, in the order of its slots."""
        size = self.slots_per_gpu
        return tuple(self.slots[first : first + size] for first in range(0, len(self.slots), size))

    @property
    def copies(self) -> tuple[int, ...]:
        """How many replicas each expert has (EPLB's logcnt)."""
        counts = [0] * self.experts
        for expert in self.slots:
            counts[expert] += 1
        return tuple(counts)

    def replicas(self, expert: int) -> tuple[int, ...]:
        """The slots of an expert, ascending."""
        return tuple(slot for slot, held in enumerate(self.slots) if held == expert)

    def gpu_loads(self, loads: Sequence[Load]) -> tuple[float, ...]:
        """What each GPU carries when an expert's load spreads evenly over its replicas."""
        copies = self.copies
        return tuple(sum(loads[expert] / copies[expert] for expert in held) for held in self.on_gpu)

    def imbalance(self, loads: Sequence[Load]) -> float:
        """The busiest GPU's load over the mean."""
        carried = self.gpu_loads(loads)
        return max(carried) * self.gpus / sum(carried)


def contiguous(experts: int, gpus: int) -> ExpertPlacement:
    """Training: GPU g of an expert-parallel group holds the g-th block, so groups of experts stay together."""
    _divides(gpus, "GPUs", experts, "experts")
    return ExpertPlacement(experts, gpus, tuple(range(experts)))


def balanced(loads: Sequence[Load], slots: int, groups: int, nodes: int, gpus: int) -> ExpertPlacement:
    """Inference: one layer's experts on `slots` slots, by the load of each.

    Hierarchical where nodes divide the groups: groups to nodes, replicas within nodes, those to the node's GPUs.
    Otherwise groups are disregarded, and all GPUs are one node.
    """
    experts = len(loads)
    _divides(gpus, "GPUs", slots, "slots")
    _divides(nodes, "nodes", gpus, "GPUs")
    _divides(groups, "groups", experts, "experts")
    if slots < experts:
        raise PlacementError(f"{slots} slots do not hold {experts} experts")
    if groups % nodes:
        groups, nodes = 1, 1
    size = experts // groups
    group_loads = [sum(loads[first : first + size]) for first in range(0, experts, size)]
    placed: list[int] = []
    for own_groups in pack(group_loads, nodes):
        own = [group * size + index for group in own_groups for index in range(size)]
        placed += _on_node(own, loads, slots // nodes, gpus // nodes)
    return ExpertPlacement(experts, gpus, tuple(placed))


def _on_node(own: Sequence[int], loads: Sequence[Load], slots: int, gpus: int) -> list[int]:
    """The experts of one node in the slots of its GPUs."""
    replicas = replicate([loads[expert] for expert in own], slots)
    copies = [replicas.count(index) for index in range(len(own))]
    packs = pack([loads[own[index]] / copies[index] for index in replicas], gpus)
    return [own[replicas[item]] for held in packs for item in held]


def replicate(loads: Sequence[Load], slots: int) -> tuple[int, ...]:
    """The expert in each slot: every one once, then again and again the one whose replicas carry most."""
    copies = [1] * len(loads)
    replicas = list(range(len(loads)))
    for _ in range(slots - len(loads)):
        heaviest = max(range(len(loads)), key=lambda expert: loads[expert] / copies[expert])
        copies[heaviest] += 1
        replicas.append(heaviest)
    return tuple(replicas)


def pack(loads: Sequence[Load], packs: int) -> tuple[tuple[int, ...], ...]:
    """The items of each pack: as many in each, the heaviest first and always into the lightest that has room."""
    _divides(packs, "packs", len(loads), "items")
    room = len(loads) // packs
    if room == 1:  # nothing to balance: EPLB leaves the items in their order
        return tuple((item,) for item in range(packs))
    held: list[list[int]] = [[] for _ in range(packs)]
    weights: list[Load] = [0] * packs
    for item in sorted(range(len(loads)), key=lambda item: -loads[item]):
        lightest = min((index for index in range(packs) if len(held[index]) < room), key=weights.__getitem__)
        held[lightest].append(item)
        weights[lightest] += loads[item]
    return tuple(map(tuple, held))


def _divides(divisor: int, divisors: str, count: int, counted: str) -> None:
    if count % divisor:
        raise PlacementError(
            f"{divisor} {divisors} do not divide {count} {counted}: "
            f"{count} = {count // divisor} x {divisor} + {count % divisor}"
        )
