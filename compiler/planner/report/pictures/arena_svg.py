"""An arena as a picture: every value a rectangle, over the ops that it lives through, at its place in memory."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from dsc.compiler.planner.report.figures import unit_of
from dsc.compiler.planner.report.pictures.svg import (
    document,
    legend,
    line,
    mix,
    path,
    rectangle,
    text,
    three_ticks,
    ticks,
)
from dsc.compiler.planner.serving.arena import Arena

PAGE, LEFT, RIGHT, TOP, HEIGHT, BELOW = 1480.0, 70.0, 18.0, 100.0, 320.0, 34.0
# By the module that a value is of, as its name says; the first that fits.
KINDS = {
    "attention": (r"\.self_attn\.", "#56b4e9"),
    "feed-forward": (r"\.mlp\.", "#e69f00"),
    "head": (r"^logits|^h\[|^hidden", "#009e73"),
    "between them: the stream, norms, tables": (r"", "#cc79a7"),
}
TINTS = (0.9, 0.6)  # in turn, so that neighbours of one kind can be told apart
LEAST = 0.15  # pixels of height below which a value is not drawn


def arena_svg(arena: Arena, title: str) -> str:
    """Ops from left to right, bytes upwards."""
    width, ops = PAGE - LEFT - RIGHT, 1 + max(one.last for one in arena.intervals)
    bottom = TOP + HEIGHT
    scale, unit = unit_of(arena.bytes)
    waste = arena.bytes - arena.least
    summary = (
        f"{arena.bytes / scale:.2f} {unit} for {len(arena.intervals):,} values of {ops:,} ops, "
        f"{waste / scale:.2f} {unit} above what lives at once"
    )
    body = [text(18, 30, title, "h"), text(18, 50, summary, "m")]
    for mark in three_ticks(arena.bytes / scale):
        y = bottom - HEIGHT * mark * scale / arena.bytes
        body += [line(LEFT, y, PAGE - RIGHT, y, "g"), text(LEFT - 8, y + 4, f"{mark:g} {unit}", "m", "end")]
    for mark in ticks(0, ops, at_most=12):
        body.append(text(LEFT + width * mark / ops, bottom + 16, f"op {mark:g}", "m", "middle"))
    fills: defaultdict[str, list[str]] = defaultdict(list)
    drawn: Counter[str] = Counter()
    for one, offset in zip(arena.intervals, arena.offsets, strict=True):
        high = HEIGHT * one.aligned / arena.bytes
        if high >= LEAST:
            kind = kind_of(one.name)
            x, right = LEFT + width * one.first / ops, LEFT + width * (one.last + 1) / ops
            y = bottom - HEIGHT * offset / arena.bytes - high
            tint = TINTS[drawn[kind] % len(TINTS)]
            fills[mix(KINDS[kind][1], tint)].append(rectangle(x, y, right - x, high))
            drawn[kind] += 1
    body += legend({kind: mix(colour, TINTS[0]) for kind, (_, colour) in KINDS.items() if drawn[kind]}, 18, 64, PAGE)[0]
    body += [path("".join(fills[colour]), colour) for colour in sorted(fills)]
    body.append(line(LEFT, bottom, PAGE - RIGHT, bottom, "a"))
    return document(PAGE, bottom + BELOW, f"{title}: {summary}", body)


def kind_of(name: str) -> str:
    """Of KINDS."""
    return next(kind for kind, (pattern, _) in KINDS.items() if re.search(pattern, name))
