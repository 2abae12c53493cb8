"""Pipeline schedules: every action once, memory as published, and the same lists as PyTorch's own schedules."""

import re

import pytest
import torch.distributed.pipelining.schedules as pytorch
from hypothesis import given
from hypothesis import strategies as st

from dsc.compiler.planner.pipeline.schedule import (
    SCHEDULES,
    Action,
    Kind,
    ScheduleError,
    actions,
    fullest_moments,
    holdings,
    in_flight,
    peak_in_flight,
    stage_count,
    stages_of_rank,
    why_not,
)


@st.composite
def legal(draw):
    """(schedule, pp, vpp, micro-batches) for which a schedule exists."""
    schedule = draw(st.sampled_from(SCHEDULES))
    pp = draw(st.integers(1 if schedule == "1f1b" else 2, 9))
    micro_batches = draw(st.integers(1, 24))
    match schedule:
        case "1f1b":
            return schedule, pp, 1, micro_batches
        case "interleaved":
            return schedule, pp, draw(st.integers(2, 5)), pp * draw(st.integers(1, 4))
        case "zbv":
            return schedule, pp, 2, micro_batches
        case "dualpipe":
            pp += pp % 2
            return schedule, pp, 1, 2 * pp + 2 * micro_batches - 2
        case "dualpipe-v":
            return schedule, pp, 2, 2 * pp + micro_batches - 1


@given(legal())
def test_every_stage_does_every_micro_batch_once_on_a_rank_that_holds_it(point):
    schedule, pp, vpp, micro_batches = point
    seen = {"F": [], "B": [], "W": []}
    for rank, of_rank in enumerate(actions(*point)):
        for action in of_rank:
            for member in action.members:
                assert member.stage in stages_of_rank(schedule, pp, vpp, rank)
                for kind in member.kind:
                    seen[kind].append((member.stage, member.micro_batch))
    once = [(stage, index) for stage in range(stage_count(schedule, pp, vpp)) for index in range(micro_batches)]
    for done in seen.values():
        assert sorted(done) == once


@given(legal())
def test_on_each_rank_forward_comes_before_backward_comes_before_weights(point):
    for of_rank in actions(*point):
        order = [
            (member.stage, member.micro_batch, kind) for a in of_rank for member in a.members for kind in member.kind
        ]
        position = {key: index for index, key in enumerate(order)}
        for stage, micro_batch, kind in order:
            if kind != "F":
                before = (stage, micro_batch, "F" if kind == "B" else "B")
                assert position[before] < position[stage, micro_batch, kind]


def test_ranks_hold_their_stages():
    assert [stages_of_rank("1f1b", 3, 1, rank) for rank in range(3)] == [(0,), (1,), (2,)]
    assert [stages_of_rank("interleaved", 2, 3, rank) for rank in range(2)] == [(0, 2, 4), (1, 3, 5)]
    assert [stages_of_rank("zbv", 3, 2, rank) for rank in range(3)] == [(0, 5), (1, 4), (2, 3)]
    assert [stages_of_rank("dualpipe", 4, 1, rank) for rank in range(4)] == [(0, 3), (1, 2), (1, 2), (0, 3)]


# In flight, as the papers have it.


@pytest.mark.parametrize("micro_batches", [1, 3, 8, 40])
def test_1f1b_holds_fewer_the_later_the_stage(micro_batches):
    lists = actions("1f1b", 8, 1, micro_batches)
    assert [in_flight(lists, rank) for rank in range(8)] == [{rank: min(micro_batches, 8 - rank)} for rank in range(8)]


def test_interleaved_holds_as_megatron_says():
    """In micro-batches of a whole rank: stage 0 p + (p - 1) / v, stage i (2 (p - i - 1) + (v - 1) p + 1) / v."""
    lists = actions("interleaved", 8, 4, 64)
    ranks = [peak_in_flight(lists, rank) / 4 for rank in range(8)]
    assert ranks == [(2 * (8 - i - 1) + 3 * 8 + 1) / 4 for i in range(8)]
    assert (ranks[0], ranks[-1]) == (9.75, 6.25)
    assert ranks[0] == 8 + 7 / 4


@pytest.mark.parametrize(("pp", "micro_batches"), [(2, 8), (4, 8), (8, 20), (16, 120)])
def test_zbv_holds_as_much_as_1f1b_on_its_first_rank(pp, micro_batches):
    """p micro-batches of a whole rank, whose two stages are half of it each; the same on every rank."""
    lists = actions("zbv", pp, 2, micro_batches)
    assert [peak_in_flight(lists, rank) for rank in range(pp)] == [2 * pp] * pp


def test_dualpipe_holds_one_more_than_its_stages_on_every_rank():
    lists = actions("dualpipe", 16, 1, 120)
    assert [peak_in_flight(lists, rank) for rank in range(16)] == [17] * 16
    folded = actions("dualpipe-v", 8, 2, 60)
    assert [peak_in_flight(folded, rank) for rank in range(8)] == [17] * 8


@given(legal())
def test_holdings_are_the_peaks_for_any_bytes(point):
    """max over holdings == the peak of a replay, whatever a micro-batch of each stage weighs."""
    lists = actions(*point)
    for rank, of_rank in enumerate(lists):
        for weight in (lambda stage: 1, lambda stage: 1 + stage, lambda stage: 7 ** (stage % 3)):
            held = peak = 0
            for action in of_rank:
                held += sum(weight(member.stage) for member in action.members if member.kind == "F")
                peak = max(peak, held)
                held -= sum(weight(member.stage) for member in action.members if "W" in member.kind)
            assert held == 0
            assert peak == max(sum(n * weight(stage) for stage, n in one.items()) for one in holdings(lists, rank))


def test_a_rank_whose_stages_peak_apart_holds_less_than_their_sum():
    lists = actions("interleaved", 8, 4, 64)
    assert sum(in_flight(lists, 0).values()) > peak_in_flight(lists, 0)


# The same lists as PyTorch's, which follow the papers' code.


def _torch_lists(cls, pp, **attributes):
    schedule = object.__new__(cls)
    vars(schedule).update(pp_group_size=pp, **attributes)
    return [[repr(a) for a in cls._calculate_single_rank_operations(schedule, rank) if a] for rank in range(pp)]


def _as_torch_prints(lists):
    kinds = {"F": "F", "B": "I", "W": "W", "BW": "B"}

    def one(action):
        return f"{action.stage}{kinds[action.kind]}{action.micro_batch}"

    return [[f"({';'.join(map(one, a.members))})OVERLAP_F_B" if a.backward else one(a) for a in row] for row in lists]


@pytest.mark.parametrize(("pp", "vpp", "micro_batches"), [(2, 2, 2), (4, 2, 8), (4, 3, 4), (8, 4, 16)])
def test_interleaved_is_pytorchs(pp, vpp, micro_batches):
    theirs = _torch_lists(
        pytorch.ScheduleInterleaved1F1B,
        pp,
        _n_microbatches=micro_batches,
        n_local_stages=vpp,
        microbatches_per_round=pp,
    )
    assert _as_torch_prints(actions("interleaved", pp, vpp, micro_batches)) == theirs


@pytest.mark.parametrize(("pp", "micro_batches"), [(2, 1), (2, 4), (4, 7), (4, 5), (8, 20), (16, 120)])
def test_zbv_is_pytorchs(pp, micro_batches):
    theirs = _torch_lists(pytorch.ScheduleZBVZeroBubble, pp, num_stages=2 * pp, _n_microbatches=micro_batches)
    assert _as_torch_prints(actions("zbv", pp, 2, micro_batches)) == theirs


@pytest.mark.parametrize(("pp", "micro_batches"), [(2, 4), (3, 6), (4, 10), (8, 16), (16, 120)])
def test_dualpipe_v_is_pytorchs(pp, micro_batches):
    theirs = _torch_lists(pytorch.ScheduleDualPipeV, pp, _n_microbatches=micro_batches)
    assert _as_torch_prints(actions("dualpipe-v", pp, 2, micro_batches)) == theirs


@pytest.mark.parametrize(("pp", "micro_batches"), [(4, 10), (8, 20), (16, 120)])
def test_dualpipe_is_dualpipe_v_unfolded(pp, micro_batches):
    """A rank and its mirror image do what one rank of the V does, each with half of the micro-batches."""
    half = micro_batches // 2
    dualpipe, folded = actions("dualpipe", pp, 1, micro_batches), actions("dualpipe-v", pp // 2, 2, half)

    def straight(action, far):  # what the V's action is on the rank near end 0, or on its mirror image
        back = action.stage >= pp // 2  # on the way back: the stage that the other direction reaches last
        first = half if back != far else 0
        backward = action.backward and straight(action.backward, far)
        return action._replace(micro_batch=first + action.micro_batch, backward=backward)

    for rank in range(pp // 2):
        assert dualpipe[rank] == tuple(straight(action, far=False) for action in folded[rank])
        assert dualpipe[pp - 1 - rank] == tuple(straight(action, far=True) for action in folded[rank])


# What does not exist.


@pytest.mark.parametrize(
    ("point", "says"),
    [
        (("1f1b", 4, 2, 8), "1f1b has vpp 1, not 2"),
        (("interleaved", 4, 1, 8), "at least 2, not 1"),
        (("interleaved", 4, 2, 10), "10 = 2 x 4 + 2"),
        (("interleaved", 1, 2, 8), "at least 2 pipeline ranks, not 1"),
        (("zbv", 4, 3, 8), "vpp 2 (two stages a rank, one down and one up the V), not 3"),
        (("dualpipe", 3, 1, 8), "pp 3 and the 8 micro-batches must be even"),
        (("dualpipe", 4, 1, 9), "pp 4 and the 9 micro-batches must be even"),
        (("dualpipe", 8, 1, 14), "2 x pp = 16 micro-batches, not 14"),
        (("dualpipe-v", 8, 2, 15), "2 x pp = 16 micro-batches, not 15"),
        (("1f1b", 4, 1, 0), "must all be at least 1"),
    ],
)
def test_a_schedule_that_does_not_exist_says_why(point, says):
    assert says in why_not(*point)
    with pytest.raises(ScheduleError, match=re.escape(says)):
        actions(*point)


def test_the_main_phase_of_dualpipe_is_pairs():
    """V3's step, p = 16 and m = 120: of 240 Fs and Bs the outer ranks do 97 in pairs, the middle ones 103."""
    pairs = [sum(action.kind == "F&B" for action in row) for row in actions("dualpipe", 16, 1, 120)]
    assert (pairs[0], pairs[7]) == (97, 103)
    assert pairs == pairs[::-1]


def test_an_action_knows_its_members():
    backward = Action("BW", 3, 0)
    assert Action("F&B", 1, 5, backward).members == (Action("F", 1, 5), backward)
    assert backward.members == (backward,)


def test_gradients_of_weights_wait_between_b_and_w() -> None:
    """Two micro-batches stand between B and W while a third is held; in 1F1B none ever does."""

    def work(kind: Kind, micro_batch: int) -> Action:
        return Action(kind, 0, micro_batch)

    run = [work("F", 0), work("F", 1), work("B", 0), work("F", 2), work("B", 1)]
    run += [work("W", 0), work("W", 1), work("B", 2), work("W", 2)]
    assert fullest_moments(run) == ((3, 2),)
    assert fullest_moments([work("F", 0), work("BW", 0)]) == ((1, 0),)
