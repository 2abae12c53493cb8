"""Collectives: limits of latency and bandwidth, ring factors, and the volumes of expert all-to-alls."""

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsc.compiler.planner.machine.collectives import (
    BF16,
    FP8,
    Experts,
    Group,
    all_gather,
    all_reduce,
    deduplicated_all_to_all,
    distinct_domains,
    expert_all_to_all,
    members,
    reduce_scatter,
    send,
)
from dsc.compiler.planner.machine.hardware import Hardware
from planner.machines import machine

H800 = machine("h800", 256)
V3 = Experts(256, 8, groups=8, chosen_groups=4)
sizes = st.sampled_from([1, 2, 4, 8, 16, 32, 64])


def faster(hardware: Hardware, factor: float) -> Hardware:
    """All links of a machine so many times faster."""
    keys = ("scale_up_bandwidth", "scale_up_achieved", "nic_bandwidth", "nic_achieved")
    change = {key: factor * getattr(hardware.cluster, key) for key in keys}
    return replace(hardware, cluster=hardware.cluster.model_copy(update=change))


def test_a_group_of_one_waits_for_nobody() -> None:
    assert all_gather(1e9, Group(1), H800) == all_reduce(1e9, Group(1), H800) == 0


def test_small_messages_cost_latency_and_large_ones_bandwidth() -> None:
    assert all_gather(0, Group(8), H800) == pytest.approx(7 * 3.33e-6)
    assert all_gather(1e12, Group(8), H800) == pytest.approx(7 / 8 * 1e12 / 160e9, rel=1e-4)
    assert all_gather(1e12, Group(64, stride=8), H800) == pytest.approx(63 / 64 * 1e12 / 40e9, rel=1e-4)


def test_a_domain_takes_in_data_through_all_its_nics() -> None:
    """64 ranks in 8 full nodes: 7/8 of the data through 8 NICs; one rank a node has only its own."""
    full, alone = all_gather(1e12, Group(64), H800), all_gather(1e12, Group(8, stride=8), H800)
    assert full == pytest.approx(max(7 / 8 * 1e12 / (8 * 40e9), 63 / 64 * 1e12 / 160e9), rel=1e-4)
    assert alone == pytest.approx(7 / 8 * 1e12 / 40e9, rel=1e-4)


def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather() -> None:
    group = Group(16, stride=2)
    assert all_reduce(1e9, group, H800) == reduce_scatter(1e9, group, H800) + all_gather(1e9, group, H800)


def test_neighbours_within_a_node_use_nvlink() -> None:
    assert send(1e9, 1, H800) == pytest.approx(1e9 / 160e9, rel=1e-2)
    assert send(1e9, 8, H800) == pytest.approx(1e9 / 40e9, rel=1e-2)


def test_a_rack_is_one_domain_whatever_its_nodes() -> None:
    gb200 = machine("gb200", 18)
    assert gb200.cluster.gpus_per_node == 4
    assert members(Group(64), gb200) == 64
    assert expert_all_to_all(4096, 7168, FP8, V3, Group(64), gb200).network == 0


@given(st.floats(1, 1e12), st.floats(1, 1e12), sizes, sizes, st.floats(1, 16))
def test_more_bytes_are_never_faster_and_more_bandwidth_never_slower(
    one: float, other: float, size: int, stride: int, factor: float
) -> None:
    less, more = sorted((one, other))
    group = Group(size, stride)
    assert all_gather(less, group, H800) <= all_gather(more, group, H800)
    assert all_gather(more, group, faster(H800, factor)) <= all_gather(more, group, H800)
    assert send(less, stride, H800) <= send(more, stride, H800)
    few, many = (expert_all_to_all(bytes, 7168, BF16, V3, group, H800) for bytes in (less, more))
    assert few.seconds(H800) <= many.seconds(H800)
    assert many.seconds(faster(H800, factor)) <= many.seconds(H800)


# DeepSeek-V3 report, section 3.2.2: a token goes to 3.2 experts a node at no cost, to at most 4 nodes.


def test_v3_reaches_363_of_8_nodes() -> None:
    assert distinct_domains(V3, 8) == pytest.approx(3.63, abs=0.005)
    assert distinct_domains(V3, 8) * 7 / 8 == pytest.approx(3.18, abs=0.005)
    assert distinct_domains(Experts(256, 8), 8) == pytest.approx(5.30, rel=0.002)


def test_distinct_domains_by_counting_every_choice() -> None:
    """12 experts in 4 groups of 3, of which 2 are open, 2 experts a token; on 2, 4 and 12 domains."""
    experts = Experts(12, 2, groups=4, chosen_groups=2)
    for domains in (2, 4, 12):
        reached = []
        for groups in combinations(range(4), 2):
            pool = [expert for expert in range(12) if expert // 3 in groups]
            for chosen in combinations(pool, 2):
                reached.append(len({expert * domains // 12 for expert in chosen}))
        assert distinct_domains(experts, domains) == pytest.approx(sum(reached) / len(reached))


def test_v3_dispatches_96_and_combines_187_megabytes() -> None:
    dispatch = expert_all_to_all(4096, 7168, FP8, V3, Group(64), H800)
    combine = expert_all_to_all(4096, 7168, BF16, V3, Group(64), H800)
    assert dispatch.network / 1e6 == pytest.approx(96, abs=0.5)
    assert combine.network / 1e6 == pytest.approx(187, abs=0.6)
    assert dispatch.scale_up == pytest.approx(4096 * 8 * 7 / 8 * 7168 * (1 + 1 / 32))


def test_v3_overlapped_takes_as_long_as_in_the_trace() -> None:
    """dispatch 3.88 ms, combine 6.18 ms (profile-data, train.json)."""
    calibration = H800.calibration
    dispatch = expert_all_to_all(4096, 7168, FP8, V3, Group(64), H800)
    combine = expert_all_to_all(4096, 7168, BF16, V3, Group(64), H800)
    assert dispatch.seconds(H800, calibration.overlapped_dispatch.value) == pytest.approx(3.88e-3, rel=0.01)
    assert combine.seconds(H800, calibration.overlapped_combine.value) == pytest.approx(6.18e-3, rel=0.01)


@given(st.integers(1, 10**6))
def test_without_expert_parallelism_nothing_is_exchanged(tokens: int) -> None:
    volume = expert_all_to_all(tokens, 7168, BF16, V3, Group(1), H800)
    assert volume.network == volume.scale_up == volume.seconds(H800) == 0


@given(sizes)
def test_limiting_the_groups_never_adds_nodes(domains: int) -> None:
    limited = [distinct_domains(Experts(256, 8, 8, chosen), domains) for chosen in range(1, 9)]
    assert limited == sorted(limited)
    assert limited[-1] == pytest.approx(distinct_domains(Experts(256, 8), domains))
    assert limited[-1] <= min(domains, 8)


def test_deepep_sends_a_token_once_to_each_rank() -> None:
    """Across nodes as often as two hops do; within, once where several of its experts are on one rank."""
    hops, once = (
        exchange(4096, 7168, BF16, V3, Group(64), H800) for exchange in (expert_all_to_all, deduplicated_all_to_all)
    )
    assert once.network == pytest.approx(hops.network)
    row = 4096 * 7168 * BF16
    assert once.scale_up == pytest.approx(row * distinct_domains(V3, 64) * 7 / 8)
    assert distinct_domains(V3, 64) < V3.top_k and once.scale_up < hops.scale_up
    alone = deduplicated_all_to_all(4096, 7168, BF16, Experts(8, 8), Group(8), H800)
    assert (alone.network, alone.scale_up) == (0, row * 8 * 7 / 8)
