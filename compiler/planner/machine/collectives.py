"""Seconds of collectives: alpha * steps + bytes / beta, on a topology of two levels.

GPUs within a scale-up domain (NVLink) reach each other at one bandwidth, domains at another, where every GPU has a NIC
of its own. Ranks are numbered so that tensor parallelism varies fastest, then context, then data and expert
parallelism, and the pipeline last; a group is so many ranks, each `stride` after the one before.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import comb
from typing import NamedTuple

from dsc.compiler.planner.machine.hardware import Hardware

BF16 = 2
FP8 = 1 + 4 / 128
"""Bytes per element with a float32 scale for each 128 (DeepSeek-V3 report, section 3.3.2)."""


class Group(NamedTuple):
    """So many ranks."""

    size: int
    stride: int = 1


@dataclass(frozen=True)
class Experts:
    """Of a router: how many there are, how many a token takes, and from how many of how many groups."""

    count: int
    top_k: int
    groups: int = 1
    chosen_groups: int = 1


def members(group: Group, hardware: Hardware) -> int:
    """Ranks of a group that share one scale-up domain."""
    return max(1, min(group.size, hardware.cluster.scale_up_domain // group.stride))


def hops(parts: int, slices: int, hardware: Hardware) -> int:
    """Scale-up domains of several ranks that one copy of the experts fills; 1 where each token goes there directly.

    Of parts * slices ranks those that share the width of the same experts are in one domain.
    """
    local, ranks = hardware.cluster.scale_up_domain, parts * slices
    return ranks // local if local > 1 and ranks % local == 0 and local % slices == 0 else 1


def all_gather(total: float, group: Group, hardware: Hardware) -> float:
    """Seconds until each rank has all `total` bytes, of which it had one part in group.size. Rings on both levels.

    A domain takes in what it lacks through the NICs of all its members; within, everything goes around once.
    """
    cluster = hardware.cluster
    local = members(group, hardware)
    domains = -(-group.size // local)
    if group.size == 1:
        return 0.0
    inside = total * (group.size - 1) / group.size / cluster.scale_up_achieved if local > 1 else 0.0
    across = total * (domains - 1) / domains / (local * cluster.nic_achieved)
    latency = (domains - 1) * cluster.nic_latency + (local - 1) * cluster.scale_up_latency
    return latency + max(inside, across)


def reduce_scatter(total: float, group: Group, hardware: Hardware) -> float:
    """The same traffic, the other way round."""
    return all_gather(total, group, hardware)


def all_reduce(total: float, group: Group, hardware: Hardware) -> float:
    """A reduce-scatter and an all-gather: 2 (n - 1) / n."""
    return reduce_scatter(total, group, hardware) + all_gather(total, group, hardware)


def send(bytes: float, stride: int, hardware: Hardware) -> float:
    """To the rank `stride` further on, such as the next pipeline stage."""
    cluster = hardware.cluster
    if stride < cluster.scale_up_domain:
        return cluster.scale_up_latency + bytes / cluster.scale_up_achieved
    return cluster.nic_latency + bytes / cluster.nic_achieved


@lru_cache(maxsize=1024)
def distinct_domains(experts: Experts, domains: int) -> float:
    """Expected number of domains that the experts of one token live in, when groups and experts are drawn uniformly.

    With as many domains as groups, M chosen groups of g experts and k experts a token, it is
    M (1 - C(Mg - g, k) / C(Mg, k)) (V3: 3.63 of 8; without groups 5.30).
    """
    if domains == 1:
        return 1.0
    chosen, groups, size = experts.chosen_groups, experts.groups, experts.count // experts.groups
    pool = chosen * size

    def hit(local: int) -> float:
        """Chance that at least one of the k comes from `local` of the pool."""
        return 1 - comb(pool - local, experts.top_k) / comb(pool, experts.top_k)

    if domains >= groups:  # a domain has a part of one group, which is open with chance M / G
        return domains * chosen / groups * hit(experts.count // domains)
    each = groups // domains
    ways = comb(groups, chosen)
    opened = range(max(0, chosen - (groups - each)), min(each, chosen) + 1)
    return domains * sum(comb(each, n) * comb(groups - each, chosen - n) / ways * hit(n * size) for n in opened)


@dataclass(frozen=True)
class ExpertTraffic:
    """Bytes that one rank sends in one expert all-to-all, by network and within its domain."""

    network: float
    scale_up: float
    domains: int
    local: int

    def seconds(self, hardware: Hardware, network_share: float | None = None) -> float:
        """Both legs at once, the slower counts. `network_share` of the nominal bandwidth instead of the achieved."""
        cluster = hardware.cluster
        nic = cluster.nic_achieved if network_share is None else cluster.nic_bandwidth * network_share
        latency = (cluster.nic_latency if self.domains > 1 else 0.0) + (
            cluster.scale_up_latency if self.local > 1 else 0.0
        )
        return latency + max(self.network / nic, self.scale_up / cluster.scale_up_achieved)


def expert_all_to_all(
    tokens: float, hidden: int, element: float, experts: Experts, group: Group, hardware: Hardware, slices: int = 1
) -> ExpertTraffic:
    """`tokens` of `hidden` elements, `element` bytes each, to the ranks of their experts, or back.

    Each expert is on so many ranks of one domain, by slices of its width.

    A token crosses the network once for each other domain that it goes to, and is copied within it (DeepSeek-V3
    report, section 3.2.2): tokens * D * (N - 1) / N, and tokens * k less those that stay. Where a domain is one rank,
    it goes to each of its experts by itself.
    """
    local = members(group, hardware)
    domains = -(-group.size // local)
    if group.size == 1:
        return ExpertTraffic(0.0, 0.0, 1, 1)
    copies = distinct_domains(experts, domains) if local > 1 else experts.top_k
    remote = copies * (domains - 1) / domains
    row = tokens * hidden * element
    return ExpertTraffic(row * remote, row * experts.top_k * slices * (local - 1) / local, domains, local)


def deduplicated_all_to_all(
    tokens: float, hidden: int, element: float, experts: Experts, group: Group, hardware: Hardware
) -> ExpertTraffic:
    """The same as DeepEP sends them: once to each other domain, and there once to each rank that has experts of theirs,
    however many of these it has."""
    local = members(group, hardware)
    domains = -(-group.size // local)
    row = tokens * hidden * element
    across, within = distinct_domains(experts, domains), distinct_domains(experts, group.size)
    return ExpertTraffic(row * across * (domains - 1) / domains, row * within * (local - 1) / local, domains, local)


def direct_all_to_all(
    tokens: float, hidden: int, element: float, experts: Experts, group: Group, hardware: Hardware
) -> ExpertTraffic:
    """The same with every token sent to each of its experts by itself, as few tokens are in decode: nothing is copied
    on the way, so that the network has all that leaves the domain (DeepSeek-V3 report, section 3.4.2)."""
    return rows_all_to_all(tokens * experts.top_k * hidden * element, group, hardware)


def rows_all_to_all(bytes: float, group: Group, hardware: Hardware) -> ExpertTraffic:
    """`bytes` of each rank to all of them alike, those that stay among them."""
    local = members(group, hardware)
    row = bytes / group.size
    return ExpertTraffic(row * (group.size - local), row * (local - 1), -(-group.size // local), local)
