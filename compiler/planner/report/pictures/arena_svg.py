"""An arena as a picture: every value a rectangle, over the ops that it lives through, at its place in memory."""

from __future__ import annotations

from collections import defaultdict

from dsc.compiler.planner.report.pictures.svg import INK, document, line, mix, path, rectangle, text, ticks
from dsc.compiler.planner.serving.arena import Arena

PAGE, LEFT, RIGHT, TOP, HEIGHT, BELOW = 1480.0, 64.0, 18.0, 74.0, 320.0, 34.0
COLOURS = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#87a5c4")  # in turn, so that neighbours can be told apart
STRENGTH = 0.8
LEAST = 0.15  # pixels of height below which a value is not drawn


def arena_svg(arena: Arena, title: str) -> str:
    """Ops from left to right, bytes upwards."""
    width, ops = PAGE - LEFT - RIGHT, 1 + max(one.last for one in arena.intervals)
    bottom = TOP + HEIGHT
    scale, unit = (1e9, "GB") if arena.bytes >= 1e9 else (1e6, "MB")
    waste = arena.bytes - arena.least
    summary = (
        f"{arena.bytes / scale:.2f} {unit} for {len(arena.intervals):,} values of {ops:,} ops, "
        f"{waste / scale:.2f} {unit} above what lives at once"
    )
    body = [text(18, 30, title, "h"), text(18, 50, summary, "m")]
    for mark in ticks(0, arena.bytes / scale, at_most=6):
        y = bottom - HEIGHT * mark * scale / arena.bytes
        body += [line(LEFT, y, PAGE - RIGHT, y, "g"), text(LEFT - 8, y + 4, f"{mark:g} {unit}", "m", "end")]
    for mark in ticks(0, ops, at_most=12):
        body.append(text(LEFT + width * mark / ops, bottom + 16, f"op {mark:g}", "m", "middle"))
    fills: defaultdict[str, list[str]] = defaultdict(list)
    for index, (one, offset) in enumerate(zip(arena.intervals, arena.offsets, strict=True)):
        high = HEIGHT * one.aligned / arena.bytes
        if high >= LEAST:
            x, right = LEFT + width * one.first / ops, LEFT + width * (one.last + 1) / ops
            y = bottom - HEIGHT * offset / arena.bytes - high
            fills[mix(COLOURS[index % len(COLOURS)], STRENGTH)].append(rectangle(x, y, right - x, high))
    body += [path("".join(fills[colour]), colour) for colour in sorted(fills)]
    body.append(f'<path stroke="{INK}" stroke-width=".8" d="M{LEFT:g} {bottom:g}H{PAGE - RIGHT:g}"/>')
    return document(PAGE, bottom + BELOW, f"{title}: {summary}", body)
