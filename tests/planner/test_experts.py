"""Placement of experts: EPLB's published example exactly, and its promises for any loads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsc.compiler.planner.serving.experts import PlacementError, balanced, contiguous, pack, replicate

# The example of EPLB's README: 2 layers of 12 experts in 4 groups, 16 replicas, 2 nodes of 4 GPUs.
EXAMPLE = (
    (90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86),
    (20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27),
)
PHY2LOG = (
    (5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1),
    (7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1),
)


def test_the_published_example_exactly():
    assert tuple(balanced(layer, slots=16, groups=4, nodes=2, gpus=8).slots for layer in EXAMPLE) == PHY2LOG


def test_the_example_balances():
    """The busiest of 4 GPUs, over the mean: with contiguous blocks, and with four redundant experts placed by load."""
    for layer, before, after in zip(EXAMPLE, (1.278, 1.785), (1.160, 1.194), strict=True):
        assert contiguous(12, 4).imbalance(layer) == pytest.approx(before, abs=0.001)
        assert balanced(layer, slots=16, groups=4, nodes=2, gpus=4).imbalance(layer) == pytest.approx(after, abs=0.001)


loads = st.one_of(st.integers(0, 1000), st.floats(0, 1e6))


@st.composite
def problems(draw):
    """(loads, slots, groups, nodes, gpus), all legal; the groups need not divide by the nodes."""
    nodes, gpus_per_node = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    groups, size = draw(st.integers(1, 8)), draw(st.integers(1, 6))
    gpus = nodes * gpus_per_node
    least = -(-groups * size // gpus)
    slots = gpus * (least + draw(st.integers(0, 3)))
    weights = draw(st.lists(loads, min_size=groups * size, max_size=groups * size))
    return weights, slots, groups, nodes, gpus


@given(problems())
def test_every_expert_has_a_slot_and_every_slot_an_expert(problem):
    weights, slots, _, _, gpus = problem
    placement = balanced(*problem)
    assert len(placement.slots) == slots == sum(placement.copies)
    assert min(placement.copies) >= 1
    assert [len(held) for held in placement.on_gpu] == [slots // gpus] * gpus
    for expert in range(len(weights)):
        assert len(placement.replicas(expert)) == placement.copies[expert]
    assert sum(placement.gpu_loads(weights)) == pytest.approx(sum(weights))


@given(problems())
def test_groups_stay_on_a_node(problem):
    weights, slots, groups, nodes, _ = problem
    if groups % nodes:
        return
    placement = balanced(*problem)
    size = len(weights) // groups
    homes = {}
    for slot, expert in enumerate(placement.slots):
        homes.setdefault(expert // size, set()).add(slot * nodes // slots)
    assert all(len(home) == 1 for home in homes.values())
    held = [list(homes.values()).count({node}) for node in range(nodes)]
    assert held == [groups // nodes] * nodes


@given(st.lists(loads, min_size=1, max_size=24), st.integers(0, 12))
def test_replicas_go_where_they_lower_the_most(weights, extra):
    """The heaviest replica is as light as any choice of counts can make it, by the exchange argument."""
    slots = replicate(weights, len(weights) + extra)
    copies = [slots.count(expert) for expert in range(len(weights))]
    heaviest = max(weight / count for weight, count in zip(weights, copies, strict=True))
    # Each expert got its last replica when it was the heaviest, so taking it back leaves a heavier one than any now.
    for weight, count in zip(weights, copies, strict=True):
        if count > 1:
            assert weight / (count - 1) >= heaviest


@given(st.integers(1, 8), st.integers(1, 8), st.data())
def test_packs_are_balanced(packs, room, data):
    """As many items in each; no two packs differ by more than the heaviest item."""
    weights = data.draw(st.lists(st.integers(0, 1000), min_size=packs * room, max_size=packs * room))
    held = pack(weights, packs)
    assert sorted(item for one in held for item in one) == list(range(len(weights)))
    assert {len(one) for one in held} == {room}
    carried = [sum(weights[item] for item in one) for one in held]
    assert max(carried) - min(carried) <= max(weights)


def test_equal_loads_go_to_the_lower_index():
    assert pack([5, 5, 5, 5], 2) == ((0, 2), (1, 3))
    assert replicate([5, 5, 5], 5) == (0, 1, 2, 0, 1)


def test_training_keeps_blocks_and_so_groups_together():
    """V3 on 64 ranks: 4 experts each, a group of 32 on the 8 ranks of a node."""
    placement = contiguous(256, 64)
    assert placement.on_gpu[0] == (0, 1, 2, 3)
    assert placement.on_gpu[63] == (252, 253, 254, 255)
    assert all(
        len({expert // 32 for gpu in range(node * 8, node * 8 + 8) for expert in placement.on_gpu[gpu]}) == 1
        for node in range(8)
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([1] * 12, 16, 4, 2, 6), "6 GPUs do not divide 16 slots: 16 = 2 x 6 + 4"),
        (([1] * 12, 16, 5, 2, 8), "5 groups do not divide 12 experts: 12 = 2 x 5 + 2"),
        (([1] * 12, 16, 4, 3, 8), "3 nodes do not divide 8 GPUs: 8 = 2 x 3 + 2"),
        (([1] * 12, 8, 4, 2, 8), "8 slots do not hold 12 experts"),
    ],
)
def test_what_cannot_be_placed_says_why(arguments, says):
    with pytest.raises(PlacementError) as error:
        balanced(*arguments)
    assert str(error.value) == says


# Published deployments (DeepSeek-V3 report, section 3.4; open-infra-index, day 6): the experts of a GPU, exactly.


def test_prefill_of_the_report():
    """EP32 on 4 nodes with 32 redundant experts: 9 a GPU, of which the shared one is not."""
    placement = balanced([1] * 256, slots=256 + 32, groups=8, nodes=4, gpus=32)
    assert placement.slots_per_gpu == 288 // 32 == 9


def test_decode_of_the_report():
    """EP320 on 40 nodes: one expert a GPU, 64 GPUs for redundant and shared ones."""
    placement = balanced([1] * 256, slots=256 + 64, groups=8, nodes=40, gpus=320)
    assert placement.slots_per_gpu == 1
    assert sum(placement.copies) - 256 == 64


def test_online_decode():
    """EP144 on 18 nodes with 32 redundant experts: 2 routed experts a GPU."""
    assert balanced([1] * 256, slots=288, groups=8, nodes=18, gpus=144).slots_per_gpu == 288 // 144 == 2
