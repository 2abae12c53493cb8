"""How long a pipeline schedule takes: every action starts when its rank is free and what it reads has arrived.

With no choice left to make at run time, discrete-event simulation is the longest path through the dependency graph:
its order is found once for a schedule (O(actions)), and each set of stage times is one pass over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from operator import sub

from dsc.compiler.planner.pipeline.schedule import Action, Actions


@dataclass(frozen=True)
class StageTimes:
    """Seconds that one micro-batch takes on one stage."""

    forward: float
    backward_input: float
    backward_weight: float
    overlapped: float  # a forward and a full backward of this stage as one F&B pair
    alone: float = 0.0  # more of a backward of weights that does not follow that of the input at once

    @property
    def backward(self) -> float:
        return self.backward_input + self.backward_weight

    @property
    def hidden(self) -> float:
        """What a pair saves against its forward and backward one after the other."""
        return self.forward + self.backward - self.overlapped


class ScheduleBug(AssertionError):
    """The lists of actions cannot be run: a bug of the compiler, not of the user."""


class Deadlock(ScheduleBug):
    """Every rank waits for another."""


class MissingReceive(ScheduleBug):
    """What one rank reads, no rank sends; or what one sends, no rank reads."""


@dataclass(frozen=True)
class Timeline:
    """When each action of each rank starts and ends, in seconds from the start of the step."""

    actions: Actions
    start: tuple[tuple[float, ...], ...]
    end: tuple[tuple[float, ...], ...]

    @cached_property
    def step(self) -> float:
        """Seconds until the last rank is done."""
        return max(ends[-1] for ends in self.end)

    @cached_property
    def busy(self) -> tuple[float, ...]:
        """Seconds of work of each rank."""
        return tuple(sum(map(sub, ends, starts)) for starts, ends in zip(self.start, self.end, strict=True))

    @property
    def idle(self) -> tuple[float, ...]:
        """Seconds of the step in which each rank has nothing to do."""
        return tuple(self.step - busy for busy in self.busy)

    @property
    def bubble(self) -> float:
        """Idle seconds of the rank that works most: what the step would be shorter by without a pipeline."""
        return self.step - max(self.busy)

    @property
    def bubble_fraction(self) -> float:
        """Of all ranks' time, the part that is idle."""
        return sum(self.idle) / (len(self.busy) * self.step)

    @property
    def stalls(self) -> tuple[float, ...]:
        """Idle seconds of each rank between its first action and its last.

        What remains of the bubble where ranks need not start and end a step together (Qi et al., arXiv 2401.10241).
        """
        return tuple(
            ends[-1] - starts[0] - busy for starts, ends, busy in zip(self.start, self.end, self.busy, strict=True)
        )


def simulate(actions: Actions, times: Sequence[StageTimes], transfer: float = 0.0) -> Timeline:
    """Runs the actions with the times of each stage; `transfer` is the latency in seconds between two ranks.

    Sends do not hold up the rank that sends, and stages of one rank pass values on at once.
    Raises Deadlock or MissingReceive where the lists cannot be run.
    """
    durations = _durations(actions, times)
    start = [0.0] * len(durations)
    end = [0.0] * len(durations)
    free = [0.0] * len(actions)
    for index, rank, senders in _order(actions, len(times)):
        begin = free[rank]  # no earlier than anything that the rank itself has made
        for sender in senders:
            arrival = end[sender] + transfer
            if arrival > begin:
                begin = arrival
        start[index] = begin
        free[rank] = end[index] = begin + durations[index]
    spans = list(pairwise(accumulate(map(len, actions), initial=0)))  # of each rank
    return Timeline(
        actions,
        tuple(tuple(start[first:last]) for first, last in spans),
        tuple(tuple(end[first:last]) for first, last in spans),
    )


def pair_time(forward: StageTimes, backward: StageTimes) -> float:
    """Seconds of an F&B pair of two stages, neither member less than alone.

    An all-to-all hides beside the other member's compute, and either member has half of its stage's: so half of what
    each stage hides when it is paired with itself.
    """
    hidden = (forward.hidden + backward.hidden) / 2
    return max(forward.forward + backward.backward - hidden, forward.forward, backward.backward)


def _durations(actions: Actions, times: Sequence[StageTimes]) -> list[float]:
    """Seconds of each action, ranks one after the other."""
    alone = {
        "F": [stage.forward for stage in times],
        "B": [stage.backward_input for stage in times],
        "W": [stage.backward_weight + stage.alone for stage in times],
        "BW": [stage.backward for stage in times],
    }
    paired: dict[tuple[int, int], float] = {}
    durations = []
    for of_rank in actions:
        for kind, stage, _, backward in of_rank:
            if backward is None:
                durations.append(alone[kind][stage])
                continue
            stages = (stage, backward.stage)
            if stages not in paired:
                paired[stages] = pair_time(times[stage], times[backward.stage])
            durations.append(paired[stages])
    return durations


@lru_cache(maxsize=64)
def _order(actions: Actions, stages: int) -> tuple[tuple[int, int, list[int]], ...]:
    """Every action after all it waits for: (action, rank, those on other ranks whose results it reads).

    Actions are numbered through, ranks one after the other. Each rank runs until it must wait for another.
    """
    flat = [action for of_rank in actions for action in of_rank]
    waits = _waits(flat, stages)
    first = list(accumulate(map(len, actions), initial=0))  # of each rank, and one past the last
    position, past = first[:-1], first[1:]
    done = bytearray(len(flat))
    blocked: dict[int, list[int]] = {}  # ranks by the action that they wait for
    ready = list(range(len(actions)))
    order = []
    while ready:
        rank = ready.pop()
        begin, end = first[rank], past[rank]
        for index in range(position[rank], end):
            senders = waits[index]
            for other in senders:
                if not done[other]:
                    blocked.setdefault(other, []).append(rank)
                    break
            else:
                order.append((index, rank, [other for other in senders if not begin <= other < end]))
                done[index] = 1
                position[rank] = index + 1
                if index in blocked:
                    ready.extend(blocked.pop(index))
                continue
            break
    if len(order) < len(flat):
        raise Deadlock(_who_waits(flat, position, past, waits, done))
    return tuple(order)


_Made = dict[tuple[int, int], int]  # (stage, micro-batch) to the action that makes it


def _waits(flat: list[Action], stages: int) -> list[list[int]]:
    """For each action the ones whose results it reads."""
    outputs: _Made = {}  # of F
    gradients: _Made = {}  # of stages' inputs, by B or BW
    weights: _Made = {}  # their gradients, by W or BW
    makes = {"F": (outputs,), "B": (gradients,), "W": (weights,), "BW": (gradients, weights)}
    members = [(index, *member[:3]) for index, action in enumerate(flat) for member in action.members]
    for index, kind, stage, micro_batch in members:
        for made in makes[kind]:
            if made.setdefault((stage, micro_batch), index) != index:
                raise ScheduleBug(f"{describe(flat[index])} is done twice")
    _check_received("output", outputs, 1, stages)
    _check_received("gradient", gradients, -1, stages)
    waits: list[list[int]] = [[] for _ in flat]
    for index, kind, stage, micro_batch in members:
        reads = waits[index]
        try:
            if kind == "W":
                reads.append(gradients[stage, micro_batch])
                continue
            if kind != "F":
                reads.append(outputs[stage, micro_batch])
                if stage + 1 < stages:
                    reads.append(gradients[stage + 1, micro_batch])
            elif stage > 0:
                reads.append(outputs[stage - 1, micro_batch])
        except KeyError as missing:
            raise MissingReceive(
                f"{describe(flat[index])} reads (stage, micro-batch) {missing}, which nobody makes"
            ) from None
    return waits


def _check_received(what: str, made: _Made, step: int, stages: int) -> None:
    for stage, micro_batch in made:
        if 0 <= stage + step < stages and (stage + step, micro_batch) not in made:
            raise MissingReceive(f"nobody receives the {what} of stage {stage}, micro-batch {micro_batch}")


def _who_waits(
    flat: list[Action], position: list[int], last: list[int], waits: list[list[int]], done: bytearray
) -> str:
    lines = []
    for rank, (at, end) in enumerate(zip(position, last, strict=False)):
        if at < end:
            missing = next(other for other in waits[at] if not done[other])
            lines.append(f"rank {rank}: {describe(flat[at])} waits for {describe(flat[missing])}")
    return "\n".join(["the schedule cannot go on", *lines])


def describe(action: Action) -> str:
    """An action in words, for messages and titles."""
    return " & ".join(f"{one.kind} of stage {one.stage}, micro-batch {one.micro_batch}" for one in action.members)
