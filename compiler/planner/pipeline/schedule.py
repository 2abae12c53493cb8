"""Pipeline schedules, written out: for every rank the actions of one training step, in the order the rank runs them.

Stages are numbered in the order of the layers; which rank holds a stage depends on the schedule:
    1f1b         p stages, stage r on rank r
    interleaved  p v stages, stage r + c p on rank r (Narayanan et al., arXiv 2104.04473)
    zbv          2 p stages in the form of a V: r and 2p - 1 - r on rank r (Qi et al., arXiv 2405.15362)
    dualpipe-v   the same stages as zbv, DualPipe's order (the other half of DualPipe cut off)
    dualpipe     p stages, each on two ranks: r and p - 1 - r. The first half of the micro-batches enters at rank 0,
                 the second half at rank p - 1 (DeepSeek-V3 report, arXiv 2412.19437, section 3.2.1)

Whoever runs stage s for a micro-batch sends its output to whoever runs stage s + 1 for it; the gradient goes back the
same way. Times and deadlocks are the matter of `simulate`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import count, islice
from operator import ge
from typing import Literal, NamedTuple, get_args

Schedule = Literal["1f1b", "interleaved", "zbv", "dualpipe", "dualpipe-v"]
Kind = Literal["F", "B", "W", "BW", "F&B"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


class Action(NamedTuple):
    """One piece of work on one micro-batch. A named tuple, because the lists are long and are hashed.

    F is the forward, B the gradient of a stage's input, W that of its weights, BW both. F&B is a forward with
    the full backward of another micro-batch, whose communication hides behind each other's computation.
    """

    kind: Kind
    stage: int
    micro_batch: int
    backward: Action | None = None  # F&B: its BW; stage and micro_batch are those of its F

    @property
    def members(self) -> tuple[Action, ...]:
        """What is done, one stage and micro-batch each."""
        if self.backward is None:
            return (self,)
        return (Action("F", self.stage, self.micro_batch), self.backward)


Actions = tuple[tuple[Action, ...], ...]  # of each rank, in order


class ScheduleError(ValueError):
    """The schedule does not exist for these numbers; the message has the arithmetic."""


def stages_of_rank(schedule: Schedule, pp: int, vpp: int, rank: int) -> tuple[int, ...]:
    """The stages whose weights the rank holds, ascending."""
    match schedule:
        case "1f1b":
            return (rank,)
        case "interleaved":
            return tuple(rank + chunk * pp for chunk in range(vpp))
        case "zbv" | "dualpipe-v":
            return (rank, 2 * pp - 1 - rank)
        case "dualpipe":
            return tuple(sorted((rank, pp - 1 - rank)))


def stage_count(schedule: Schedule, pp: int, vpp: int) -> int:
    return pp if schedule == "dualpipe" else pp * vpp


def why_not(schedule: Schedule, pp: int, vpp: int, micro_batches: int) -> str | None:
    """Why the schedule does not exist for these numbers, with the arithmetic; None where it does."""
    if min(pp, vpp, micro_batches) < 1:
        return f"pp {pp}, vpp {vpp} and {micro_batches} micro-batches must all be at least 1"
    if schedule != "1f1b" and pp < 2:
        return f"{schedule} needs at least 2 pipeline ranks, not {pp}"
    match schedule:
        case "1f1b" | "dualpipe" if vpp != 1:
            return f"{schedule} has vpp 1, not {vpp}"
        case "zbv" | "dualpipe-v" if vpp != 2:
            return f"{schedule} has vpp 2 (two stages a rank, one down and one up the V), not {vpp}"
        case "interleaved" if vpp < 2:
            return f"interleaved needs vpp of at least 2, not {vpp}; with 1 it is 1f1b"
        case "interleaved" if micro_batches % pp:
            return (
                f"interleaved needs micro-batches divisible by pp: {micro_batches} = {micro_batches // pp} x {pp}"
                f" + {micro_batches % pp}"
            )
        case "dualpipe" if pp % 2 or micro_batches % 2:
            return f"dualpipe runs from both ends, so pp {pp} and the {micro_batches} micro-batches must be even"
        case "dualpipe" | "dualpipe-v" if micro_batches < 2 * pp:
            return f"{schedule} needs at least 2 x pp = {2 * pp} micro-batches, not {micro_batches}"
    return None


@lru_cache(maxsize=256)
def actions(schedule: Schedule, pp: int, vpp: int, micro_batches: int) -> Actions:
    """One step of every rank. Raises ScheduleError where there is no such schedule."""
    reason = why_not(schedule, pp, vpp, micro_batches)
    if reason is not None:
        raise ScheduleError(reason)
    return tuple(tuple(_of_rank(schedule, pp, vpp, micro_batches, rank)) for rank in range(pp))


def _of_rank(schedule: Schedule, pp: int, vpp: int, micro_batches: int, rank: int) -> Iterator[Action]:
    match schedule:
        case "1f1b":
            return _one_forward_one_backward(pp, micro_batches, rank)
        case "interleaved":
            return _interleaved(pp, vpp, micro_batches, rank)
        case "zbv":
            return _zero_bubble_v(pp, micro_batches, rank)
        case "dualpipe":
            return _dualpipe(pp, micro_batches, rank)
        case "dualpipe-v":
            return _dualpipe_v(pp, micro_batches, rank)


def _one_forward_one_backward(pp: int, micro_batches: int, rank: int) -> Iterator[Action]:
    forwards = [Action("F", rank, index) for index in range(micro_batches)]
    backwards = [Action("BW", rank, index) for index in range(micro_batches)]
    return _warm_up_then_alternate(forwards, backwards, warm_up=pp - 1 - rank)


def _interleaved(pp: int, vpp: int, micro_batches: int, rank: int) -> Iterator[Action]:
    """Megatron-LM's order: groups of pp micro-batches go through one chunk after the other."""
    order = [
        (chunk, first + index) for first in range(0, micro_batches, pp) for chunk in range(vpp) for index in range(pp)
    ]
    forwards = [Action("F", rank + chunk * pp, index) for chunk, index in order]
    backwards = [Action("BW", rank + (vpp - 1 - chunk) * pp, index) for chunk, index in order]
    return _warm_up_then_alternate(forwards, backwards, warm_up=2 * (pp - 1 - rank) + (vpp - 1) * pp)


def _warm_up_then_alternate(forwards: list[Action], backwards: list[Action], warm_up: int) -> Iterator[Action]:
    ahead = min(warm_up, len(forwards))
    yield from forwards[:ahead]
    for forward, backward in zip(forwards[ahead:], backwards, strict=False):
        yield forward
        yield backward
    yield from backwards[len(forwards) - ahead :]


def _zero_bubble_v(pp: int, micro_batches: int, rank: int) -> Iterator[Action]:
    """2p - 1 micro-batches keep every rank busy. With fewer, the order is that of 2p - 1, the others left out."""
    order = _busy_v(pp, max(micro_batches, 2 * pp - 1), rank)
    return (action for action in order if action.micro_batch < micro_batches)


def _busy_v(pp: int, micro_batches: int, rank: int) -> Iterator[Action]:
    """Qi et al., ZB-V: each B is followed by its W, but for those at the end, whose Ws fill what would be bubbles."""
    down, up = rank, 2 * pp - 1 - rank

    def stream(kind: Kind, stage: int) -> Iterator[Action]:
        return (Action(kind, stage, index) for index in count())

    f_down, b_down, w_down = (stream(kind, down) for kind in ("F", "B", "W"))
    f_up, b_up, w_up = (stream(kind, up) for kind in ("F", "B", "W"))
    ahead = 2 * (pp - rank) - 1  # forwards on the way down until the first micro-batch is back from the turn of the V
    for _ in range(ahead):
        yield next(f_down)
    for _ in range(rank):
        yield next(f_up)
        yield next(f_down)
    for _ in range(pp - rank):
        yield next(f_up)
        yield next(b_up)
        yield next(w_up)
    for index in range(micro_batches - pp):
        if ahead + rank + index < micro_batches:
            yield next(f_down)
        yield next(b_down)
        yield next(w_down)
        yield next(f_up)
        yield next(b_up)
        yield next(w_up)
    for _ in range(rank):  # no forwards are left: the gradients hurry on to the ranks that wait for them
        yield next(b_down)
        yield next(b_up)
    for _ in range(pp - rank):
        yield next(b_down)
        yield next(w_down)
    for weights in (w_up, w_down):
        yield from islice(weights, rank)


def _dualpipe(pp: int, micro_batches: int, rank: int) -> Iterator[Action]:
    """Direction 0 enters at rank 0, direction 1 at the last rank; ranks r and p - 1 - r mirror each other."""
    half = micro_batches // 2
    near = int(rank >= pp // 2)  # the direction whose micro-batches reach this rank first
    stages = (rank, pp - 1 - rank)  # of each direction
    first, second = ((stages[direction], direction * half) for direction in (near, 1 - near))
    return _two_lanes((first, second), depth=pp // 2, position=min(stages), length=half)


def _dualpipe_v(pp: int, micro_batches: int, rank: int) -> Iterator[Action]:
    lanes = ((rank, 0), (2 * pp - 1 - rank, 0))
    return _two_lanes(lanes, depth=pp, position=rank, length=micro_batches)


class _Lanes:
    """The next action of each lane, a lane being (stage, first micro-batch)."""

    def __init__(self, lanes: tuple[tuple[int, int], tuple[int, int]]) -> None:
        self._lanes = lanes
        self._next: dict[tuple[str, int], int] = {}
        self.waiting: deque[Action] = deque()  # Ws of the Bs done, first in, first out

    def work(self, kind: Kind, lane: int) -> Action:
        stage, first = self._lanes[lane]
        counter = ("F" if kind == "F" else "B", lane)
        index = self._next.get(counter, 0)
        self._next[counter] = index + 1
        if kind == "B":
            self.waiting.append(Action("W", stage, first + index))
        return Action(kind, stage, first + index)

    def pair(self, forward: int, backward: int) -> Action:
        _, stage, micro_batch, _ = self.work("F", forward)
        return Action("F&B", stage, micro_batch, self.work("BW", backward))


def _two_lanes(
    lanes: tuple[tuple[int, int], tuple[int, int]], depth: int, position: int, length: int
) -> Iterator[Action]:
    """The eight phases of DualPipe (github.com/deepseek-ai/DualPipe, `step`).

    A lane is (stage, first micro-batch): lane 0 is the one whose micro-batches reach the rank first. `depth` ranks
    lie between the end of the pipeline (position 0) and its middle, or the turn of the V (position depth - 1);
    `length` micro-batches pass through each lane.
    """
    steps = _Lanes(lanes)
    work, pair, waiting = steps.work, steps.pair, steps.waiting
    inner = depth - 1 - position  # ranks between this one and the middle
    for _ in range(2 * inner):  # 1: forwards until the other lane's first arrives
        yield work("F", 0)
    for _ in range(position + 1):  # 2: forwards of both lanes
        yield work("F", 0)
        yield work("F", 1)
    for _ in range(inner):  # 3: backwards begin; their Ws fill the wait for the next forward
        yield work("B", 1)
        yield waiting.popleft()
        yield work("F", 1)
    for index in range(length - 2 * depth + position + 1):  # 4: the main phase, all in pairs
        if index == 0 and inner == 0:  # the middle begins with its forward alone: the backward can go sooner
            yield work("F", 0)
            yield work("BW", 1)
        else:
            yield pair(0, 1)
        yield pair(1, 0)
    for _ in range(inner):  # 5: lane 0 has no forwards left
        yield work("BW", 1)
        yield pair(1, 0)
    for index in range(2 * (position + 1)):  # 6: backwards only; the second half leaves its Ws for later
        yield work("B" if index > position else "BW", 1 - index % 2)
    for _ in range(inner):  # 7: Ws fill the wait for the last gradients
        yield waiting.popleft()
        yield work("B", 0)
    yield from waiting  # 8


def in_flight(actions: Actions, rank: int) -> dict[int, int]:
    """For each stage of the rank, the most micro-batches whose activations it holds at once.

    Held from the start of F to the end of W (or BW); an F&B pair holds both of its micro-batches.
    The stages of a rank need not peak together: `holdings` has what is held together.
    """
    together = holdings(actions, rank)
    return {stage: max(held[stage] for held in together) for stage in together[0]}


def peak_in_flight(actions: Actions, rank: int) -> int:
    """The most (stage, micro-batch) activations that the rank holds at once."""
    return max(sum(held.values()) for held in holdings(actions, rank))


@lru_cache(maxsize=4096)
def holdings(actions: Actions, rank: int) -> tuple[dict[int, int], ...]:
    """What the rank holds at its fullest: micro-batches by stage, only where no other moment has as many of each.

    Stages are in the model's order. With bytes b per micro-batch of each stage, the peak is exactly max(sum(n *
    b[stage]) over held.items()).
    """
    return held_by(actions[rank])


def held_by(run: Sequence[Action]) -> tuple[dict[int, int], ...]:
    """`holdings` of a rank that runs these."""
    stages = _stages(run)
    held = {counts[: len(stages)] for counts in fullest_moments(run)}
    return tuple(dict(zip(stages, counts, strict=True)) for counts in _not_exceeded(held))


def fullest_moments(run: Sequence[Action]) -> tuple[tuple[int, ...], ...]:
    """Micro-batches that a rank holds of each stage, then those of each between B and W, whose gradients wait.

    Of all moments those that no other has as many of each of.
    """
    stages = _stages(run)
    column = {stage: index for index, stage in enumerate(stages)}
    held, waiting = [0] * len(stages), [0] * len(stages)
    seen: set[tuple[int, ...]] = set()  # before something is given back for the first time since more was taken
    rose = False
    for kind, stage, _, backward in run:
        if kind in ("F", "F&B"):
            held[column[stage]] += 1
            rose = True
        if kind == "B":
            waiting[column[stage]] += 1
            rose = True
        given = stage if backward is None else backward.stage
        if kind not in ("F", "B"):
            if rose:
                seen.add((*held, *waiting))
            held[column[given]] -= 1
            waiting[column[given]] -= kind == "W"
            rose = False
    return _not_exceeded(seen)


def _stages(run: Sequence[Action]) -> list[int]:
    return sorted({one.stage for one in run} | {one.backward.stage for one in run if one.backward})


def _not_exceeded(moments: Iterable[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    fullest: list[tuple[int, ...]] = []
    for one in sorted(moments, reverse=True):  # so that what has as many of each comes before
        if not any(all(map(ge, other, one)) for other in fullest):
            fullest.append(one)
    return tuple(fullest)
