"""Memory over time as a picture: for every rank what stays, stacked, and on it the activations as they come and go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dsc.compiler.planner.pipeline.simulate import Timeline
from dsc.compiler.planner.report.figures import GIB, fixed, unit_of
from dsc.compiler.planner.report.pictures.svg import (
    document,
    legend,
    line,
    mix,
    number,
    path,
    rectangle,
    text,
    three_ticks,
    ticks,
)
from dsc.compiler.planner.report.pictures.svg import seconds as in_seconds

# Colours of Okabe and Ito, which stay apart for the colour-blind; activations, which one looks for, are orange.
STATIC = ("#0072b2", "#56b4e9", "#009e73", "#cc79a7", "#f0e442", "#5c5c5c")
ACTIVATIONS = "#e69f00"
PALEST, DARKEST = 0.55, 0.95  # tints of a rank's first stage and of its last

PAGE, MARGIN, COLUMNS = 1480.0, 18.0, 4
LEFT, HEIGHT, ABOVE, BELOW, BETWEEN = 52.0, 120.0, 24.0, 30.0, 14.0


@dataclass(frozen=True)
class Memory:
    """Bytes held on a rank from each moment until the next."""

    times: tuple[float, ...]
    held: tuple[tuple[int, ...], ...]  # activations of each stage, at each time
    stages: tuple[int, ...]
    static: int

    @property
    def peak(self) -> int:
        return self.static + max(map(sum, self.held))

    @property
    def peak_time(self) -> float:
        """When the peak is first reached."""
        return next(
            time for time, held in zip(self.times, self.held, strict=True) if self.static + sum(held) == self.peak
        )


def memory_of(timeline: Timeline, rank: int, static: int, bytes_per_micro_batch: Sequence[int]) -> Memory:
    """Activations are held from the start of F to the end of W, as `schedule.in_flight` counts them."""
    events: list[tuple[float, int, int]] = []  # time, stage, bytes
    for action, start, end in zip(timeline.actions[rank], timeline.start[rank], timeline.end[rank], strict=True):
        for member in action.members:
            size = bytes_per_micro_batch[member.stage]
            if member.kind == "F":
                events.append((start, member.stage, size))
            elif member.kind != "B":
                events.append((end, member.stage, -size))
    events.sort()
    stages = tuple(sorted({stage for _, stage, _ in events}))
    column = {stage: index for index, stage in enumerate(stages)}
    now = [0] * len(stages)
    times, held = [0.0], [tuple(now)]
    for (time, stage, size), following in zip(events, [*events[1:], None], strict=True):
        now[column[stage]] += size
        if following is not None and following[0] == time:
            continue  # what goes at a moment is gone before what comes
        if time == times[-1]:
            held[-1] = tuple(now)
        else:
            times.append(time)
            held.append(tuple(now))
    return Memory(tuple(times), tuple(held), stages, static)


@dataclass(frozen=True)
class Panel:
    """What is drawn once for ranks that hold alike."""

    name: str
    rank: int
    """The first of them, whose actions are drawn."""
    static: Mapping[str, int]
    """Bytes that stay, by name."""


def memory_svg(
    timeline: Timeline, panels: Sequence[Panel], bytes_per_micro_batch: Sequence[int], capacity: int, title: str
) -> str:
    """`bytes_per_micro_batch` are those of the activations, for each stage; `capacity` is what a GPU has."""
    memories = [memory_of(timeline, one.rank, sum(one.static.values()), bytes_per_micro_batch) for one in panels]
    names = list(dict.fromkeys(name for one in panels for name, size in one.static.items() if size))
    colours = {name: STATIC[index % len(STATIC)] for index, name in enumerate(names)}
    ceiling = 1.08 * max(capacity, *(memory.peak for memory in memories))
    columns = min(COLUMNS, len(memories))
    width = (PAGE - 2 * MARGIN - (columns - 1) * BETWEEN) / columns
    worst = max(range(len(panels)), key=lambda index: memories[index].peak)
    summary = (
        f"fullest: {panels[worst].name} with {_gib(memories[worst].peak)}, "
        f"{_room(capacity - memories[worst].peak)} {_gib(capacity)} of a GPU"
    )
    swatches = {**colours, "activations (pale to dark: the rank's earlier to later stages)": mix(ACTIVATIONS, DARKEST)}
    body, x, y = legend(swatches, MARGIN, 64, PAGE)
    body += [line(x, y + 6.5, x + 24, y + 6.5, "k"), text(x + 30, y + 11, "capacity")]
    top = y + 30
    body = [text(MARGIN, 30, title, "h"), text(MARGIN, 50, summary, "m"), *body]
    for index, (panel, memory) in enumerate(zip(panels, memories, strict=True)):
        x = MARGIN + (index % columns) * (width + BETWEEN)
        y = top + (index // columns) * (ABOVE + HEIGHT + BELOW)
        frame = _Frame(x + LEFT, y + ABOVE, width - LEFT, timeline.step, ceiling)
        body += _panel(frame, panel, memory, colours, capacity)
    rows = -(-len(memories) // columns)
    return document(PAGE, top + rows * (ABOVE + HEIGHT + BELOW), f"{title}: {summary}", body)


@dataclass(frozen=True)
class _Frame:
    """Where a panel's axes lie, and what they measure."""

    left: float
    top: float
    width: float
    longest: float  # seconds
    ceiling: float  # bytes

    def x(self, time: float) -> float:
        return self.left + self.width * time / self.longest

    def y(self, size: float) -> float:
        return self.top + HEIGHT * (1 - size / self.ceiling)


def _panel(frame: _Frame, panel: Panel, memory: Memory, colours: Mapping[str, str], capacity: int) -> Iterator[str]:
    right, bottom = frame.left + frame.width, frame.top + HEIGHT
    yield text(frame.left, frame.top - 8, panel.name, "b")
    peak = f"{_gib(memory.peak)} at {in_seconds(memory.peak_time, frame.longest, 3)}"
    yield text(right, frame.top - 8, peak, "c" if memory.peak > capacity else "m", "end")
    scale, unit = unit_of(frame.ceiling)
    for mark in three_ticks(frame.ceiling / scale):
        y = frame.y(mark * scale)
        yield line(frame.left, y, right, y, "g")
        yield text(frame.left - 6, y + 4, f"{mark:g}", "m", "end")
    yield text(frame.left - 6, frame.top - 8, unit, "m", "end")
    for mark in ticks(0, frame.longest, at_most=5):
        yield text(frame.x(mark), bottom + 15, in_seconds(mark, frame.longest), "m", "middle")
    below = 0
    for label, size in panel.static.items():
        if size:
            low, high = frame.y(below), frame.y(below + size)
            yield path(rectangle(frame.left, high, frame.width, low - high), colours[label])
            below += size
    floors = [memory.static] * len(memory.times)
    for index in range(len(memory.stages)):
        tops = [floor + held[index] for floor, held in zip(floors, memory.held, strict=True)]
        share = index / (len(memory.stages) - 1) if len(memory.stages) > 1 else 1.0
        colour = mix(ACTIVATIONS, PALEST + (DARKEST - PALEST) * share)
        yield path(_area(frame, memory.times, floors, tops), colour)
        floors = tops
    yield line(frame.left, bottom, right, bottom, "a")
    y = frame.y(capacity)
    yield line(frame.left, y, right, y, "k")


def _area(frame: _Frame, times: Sequence[float], floors: Sequence[int], tops: Sequence[int]) -> str:
    """The steps between two stacked levels: along the tops there, along the floors back."""
    there = _steps(frame, times, tops)
    back = [(right, left, y) for left, right, y in reversed(_steps(frame, times, floors))]
    first, *others = there + back
    moves = [f"M{number(first[0])} {number(first[2])}H{number(first[1])}"]
    moves += [f"V{number(y)}H{number(x)}" for _, x, y in others]
    return "".join(moves) + "z"


def _steps(frame: _Frame, times: Sequence[float], levels: Sequence[int]) -> list[tuple[float, float, float]]:
    """(left, right, y) of each level. What looks the same is one step, and dips too short to be seen are left out."""
    result: list[tuple[float, float, float]] = []
    for start, end, level in zip(times, [*times[1:], frame.longest], levels, strict=True):
        left, right, y = frame.x(start), frame.x(end), frame.y(level)
        if result and (number(y) == number(result[-1][2]) or (y > result[-1][2] and right - left < 0.5)):
            result[-1] = (result[-1][0], right, result[-1][2])
        else:
            result.append((left, right, y))
    return result


def _gib(size: int) -> str:
    return f"{fixed(size / GIB, 1)} GiB"


def _room(left: int) -> str:
    return f"{_gib(left)} below the" if left >= 0 else f"{_gib(-left)} above the"
