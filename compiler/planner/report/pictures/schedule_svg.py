"""A pipeline schedule as a picture: a row for every rank, a cell for every action, time from left to right.

A long step is broken into bands, one below the other like lines of text, so that the micro-batches stay readable.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from dsc.compiler.planner.pipeline.schedule import Action, holdings
from dsc.compiler.planner.pipeline.simulate import Timeline
from dsc.compiler.planner.report.figures import percent
from dsc.compiler.planner.report.pictures.svg import GROUND, MUTED, document, line, mix, path, rectangle, text, ticks
from dsc.compiler.planner.report.pictures.svg import seconds as in_seconds

# Colours of Okabe and Ito, which stay apart for the colour-blind; tints of them carry dark text.
COLOURS = {"F": "#56b4e9", "B": "#e69f00", "W": "#009e73", "BW": "#cc79a7"}
MEANING = {
    "F": "F: forward",
    "B": "B: gradient of the input",
    "W": "W: gradient of the weights",
    "BW": "BW: both gradients",
}
PALEST, DARKEST = 0.4, 0.9  # tints of a rank's first stage and of its last

PAGE, LEFT, RIGHT, TOP = 1480.0, 128.0, 18.0, 96.0
ROW, GAP, AXIS, BETWEEN = 22.0, 2.0, 24.0, 22.0
DIGIT = 5.1  # width of a digit at the cells' font size
MOST = 1700.0  # pixels of height, two screens: of a step that needs more the middle is left out


@dataclass(frozen=True)
class _Cell:
    """What is drawn of one member of an action: a pair has its forward above its backward."""

    rank: int
    member: Action
    start: float
    end: float
    half: int  # 0 the whole height, 1 the upper half, 2 the lower


def schedule_svg(timeline: Timeline, title: str, besides: str = "") -> str:
    """The step as an SVG file; `besides`: what else there is to a step, which a schedule does not show."""
    width = PAGE - LEFT - RIGHT
    cells = list(_cells(timeline))
    bands = _bands(timeline, cells, width)
    scale = width * bands / timeline.step  # pixels of a second
    rows = len(timeline.actions) * ROW
    most = max(2, int((MOST - TOP) // (rows + AXIS + BETWEEN)) // 2 * 2)
    drawn = list(range(bands)) if bands <= most else [*range(most // 2), *range(bands - most // 2, bands)]
    summary = _summary(timeline) + besides
    body = list(_head(timeline, title, summary))
    top = TOP
    for previous, band in zip([-1, *drawn], drawn, strict=False):
        low, high = band * timeline.step / bands, (band + 1) * timeline.step / bands
        if band > previous + 1:
            skipped = low - (previous + 1) * timeline.step / bands
            words = f"{in_seconds(skipped, timeline.step)} of the same are left out here"
            body += [line(LEFT, top, PAGE - RIGHT, top, "e"), text(LEFT, top + 18, words, "m")]
            top += 34
        body += _band(timeline, cells, low, high, scale, top)
        top += rows + AXIS + BETWEEN
    return document(PAGE, top, f"{title}: {summary}", body)


def _cells(timeline: Timeline) -> Iterator[_Cell]:
    for rank, of_rank in enumerate(timeline.actions):
        for action, start, end in zip(of_rank, timeline.start[rank], timeline.end[rank], strict=True):
            for half, member in enumerate(action.members, start=1):
                yield _Cell(rank, member, start, end, half if action.backward else 0)


def _bands(timeline: Timeline, cells: list[_Cell], width: float) -> int:
    """As few as leave a typical forward room for its number."""
    digits = len(str(max(cell.member.micro_batch for cell in cells)))
    forwards = sorted(cell.end - cell.start for cell in cells if cell.member.kind == "F" and not cell.half)
    typical = forwards[len(forwards) // 2] or timeline.step / 100
    needed = timeline.step * (digits * DIGIT + 2) / typical
    return max(1, math.ceil(needed / width))


def _summary(timeline: Timeline) -> str:
    held = max(sum(one.values()) for rank in range(len(timeline.actions)) for one in holdings(timeline.actions, rank))
    return (
        f"{in_seconds(timeline.step, timeline.step)}, {percent(timeline.bubble_fraction)} of it idle, "
        f"at most {held} activation{'' if held == 1 else 's'} in flight on a rank"
    )


def _head(timeline: Timeline, title: str, summary: str) -> Iterator[str]:
    yield text(18, 30, title, "h")
    yield text(18, 50, summary, "m")
    kinds = {member.kind for of_rank in timeline.actions for action in of_rank for member in action.members}
    pairs = any(action.backward for of_rank in timeline.actions for action in of_rank)
    several = any(len(holdings(timeline.actions, rank)[0]) > 1 for rank in range(len(timeline.actions)))
    x = 18.0
    for kind, words in MEANING.items():
        if kind in kinds:
            yield path(rectangle(x, 64, 18, 13), mix(COLOURS[kind], DARKEST))
            yield text(x + 24, 75, words)
            x += 42 + 5.9 * len(words)
    if pairs:
        yield path(rectangle(x, 64, 18, 6.5), mix(COLOURS["F"], DARKEST))
        yield path(rectangle(x, 70.5, 18, 6.5), mix(COLOURS["BW"], DARKEST))
        yield f'<path class="p" d="{rectangle(x, 64, 18, 13)}"/>'
        words = "F&B: overlapped pair"
        yield text(x + 24, 75, words)
        x += 42 + 5.9 * len(words)
    if several:
        for index, strength in enumerate((PALEST, DARKEST)):
            yield path(rectangle(x + 9 * index, 64, 9, 13), mix(MUTED, strength * 0.7))
        yield text(x + 24, 75, "pale to dark: the rank's earlier to later stages")


def _band(timeline: Timeline, cells: list[_Cell], low: float, high: float, scale: float, top: float) -> Iterator[str]:
    """Rows of the time from `low` to `high`, and their axis."""
    stages = [list(holdings(timeline.actions, rank)[0]) for rank in range(len(timeline.actions))]
    yield from _axis(timeline, stages, low, high, scale, top)
    yield from _work(cells, stages, low, high, scale, top)


def _axis(
    timeline: Timeline, stages: list[list[int]], low: float, high: float, scale: float, top: float
) -> Iterator[str]:
    """Names of the ranks, their ground, and marks of the time."""
    width = (high - low) * scale
    bottom = top + len(stages) * ROW
    for rank, of_rank in enumerate(stages):
        y = top + rank * ROW
        yield text(18, y + 15, f"rank {rank}")
        yield text(LEFT - 8, y + 15, _ranges(of_rank), "m", "end")
    rows = (rectangle(LEFT, top + rank * ROW, width, ROW - GAP) for rank in range(len(stages)))
    yield path("".join(rows), GROUND, ' class="r"')
    marks = ticks(low, high, at_most=round(width / 110))
    for mark in marks:
        x = LEFT + (mark - low) * scale
        yield line(x, top, x, bottom + 4, "g")
        yield text(x, bottom + 16, in_seconds(mark, timeline.step), "m", "middle")


def _work(
    cells: list[_Cell], stages: list[list[int]], low: float, high: float, scale: float, top: float
) -> Iterator[str]:
    """What every rank does: colours by kind and stage, frames around pairs, numbers of micro-batches."""
    fills: defaultdict[str, list[str]] = defaultdict(list)
    frames: list[str] = []
    labels: list[str] = []
    for cell in cells:
        start, end = max(cell.start, low), min(cell.end, high)
        if start >= end:
            continue
        x, right = LEFT + (start - low) * scale, LEFT + (end - low) * scale
        height = ROW - GAP
        y = top + cell.rank * ROW
        if cell.half == 1:
            frames.append(rectangle(x, y, right - x, height))
        if cell.half:
            height /= 2
            y += height * (cell.half - 1)
        gap = 0.6 if right - x > 2 else 0.0  # a hair between neighbours, while there is room for it
        of_rank = stages[cell.rank]
        share = of_rank.index(cell.member.stage) / (len(of_rank) - 1) if len(of_rank) > 1 else 1.0
        colour = mix(COLOURS[cell.member.kind], PALEST + (DARKEST - PALEST) * share)
        fills[colour].append(rectangle(x, y, right - x - gap, height))
        label = str(cell.member.micro_batch)
        if len(label) * DIGIT <= right - x and cell.start >= low:
            labels.append(text((x + right - gap) / 2, y + height / 2 + 3, label))
    yield from (path("".join(fills[colour]), colour) for colour in sorted(fills))
    if frames:
        yield f'<path class="p" d="{"".join(frames)}"/>'
    yield '<g class="n">' + "".join(labels) + "</g>"


def _ranges(stages: list[int]) -> str:
    """The stages of a rank, as its label has room for them."""
    if len(stages) <= 3:
        return ("stage " if len(stages) == 1 else "") + ", ".join(map(str, stages))
    return f"{stages[0]}, {stages[1]} … {stages[-1]}"
