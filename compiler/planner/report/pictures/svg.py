"""What the pictures share: numbers, colours, axes, the frame of a file. Plain SVG: no scripts, no fonts to fetch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from html import escape

INK, MUTED, LINE, GROUND = "#1b1f24", "#57606a", "#d0d7de", "#f3f5f7"
CAPACITY = "#b42318"
DARK = {"#ffffff": "#0d1117", INK: "#e6edf3", MUTED: "#9aa4af", LINE: "#30363d", GROUND: "#161b22", CAPACITY: "#ff7b72"}
"""By what is drawn on white, what is drawn in its place where the reader's screen is dark."""
FONT = "system-ui,-apple-system,'Segoe UI',Roboto,Helvetica,Arial,sans-serif"

# One for all pictures, so that several can stand in one page: headings, muted and bold text, what exceeds capacity,
# numbers in cells; grid lines, frames of cells, axes, gaps, the capacity.
STYLE = (
    f"text{{fill:{INK};font-size:11px}}"
    ".h{font-size:17px;font-weight:600}"
    ".b{font-weight:600}"
    f".m{{fill:{MUTED}}}"
    f".c{{fill:{CAPACITY}}}"
    f".n text{{font-size:8.5px;text-anchor:middle;fill:{INK}}}"
    f".g{{stroke:{LINE};fill:none}}"
    f".p{{stroke:{INK};stroke-width:.9;fill:none}}"
    f".a{{stroke:{INK};stroke-width:.9;fill:none}}"
    f".e{{stroke:{MUTED};stroke-dasharray:3 3;fill:none}}"
    f".k{{stroke:{CAPACITY};stroke-width:1.3;stroke-dasharray:6 3;fill:none}}"
)
# Colours of what is measured stay as they are, and numbers on them dark.
STYLE += (
    "@media screen and (prefers-color-scheme:dark){"
    f".w{{fill:{DARK['#ffffff']}}}.r{{fill:{DARK[GROUND]}}}"
    f"text{{fill:{DARK[INK]}}}.m{{fill:{DARK[MUTED]}}}.c{{fill:{DARK[CAPACITY]}}}.n text{{fill:{INK}}}"
    f".g{{stroke:{DARK[LINE]}}}.e{{stroke:{DARK[MUTED]}}}.k{{stroke:{DARK[CAPACITY]}}}.a{{stroke:{DARK[INK]}}}"
    "}"
)


def number(value: float) -> str:
    """To a tenth of a pixel, in as few characters."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text


def text(x: float, y: float, content: str, css: str = "", anchor: str = "") -> str:
    """One line of text, its baseline at y."""
    attributes = f' class="{css}"' if css else ""
    attributes += f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{number(x)}" y="{number(y)}"{attributes}>{escape(content, quote=False)}</text>'


def rectangle(x: float, y: float, width: float, height: float) -> str:
    """A piece of a path's `d`: many of one colour make one element."""
    return f"M{number(x)} {number(y)}h{number(width)}v{number(height)}h{number(-width)}z"


def path(d: str, fill: str, extra: str = "") -> str:
    return f'<path fill="{fill}"{extra} d="{d}"/>'


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<path class="{css}" d="M{number(x1)} {number(y1)}L{number(x2)} {number(y2)}"/>'


def mix(colour: str, strength: float, other: str = "#ffffff") -> str:
    """`strength` of one colour and the rest of another; both "#rrggbb"."""
    channels = (
        round(strength * int(colour[i : i + 2], 16) + (1 - strength) * int(other[i : i + 2], 16)) for i in (1, 3, 5)
    )
    return "#" + "".join(f"{channel:02x}" for channel in channels)


def ticks(low: float, high: float, at_most: int) -> list[float]:
    """Round values in [low, high]: multiples of 1, 2 or 5 times a power of ten, at most so many."""
    span = (high - low) / max(at_most, 1)
    power = 10.0 ** math.floor(math.log10(span))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= span * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [step * index for index in range(first, math.floor(high / step + 1e-9) + 1)]


def legend(colours: Mapping[str, str], left: float, top: float, width: float) -> tuple[list[str], float, float]:
    """Swatches in as many lines as they need, and where the next one would stand."""
    x, y = left, top
    body = []
    for name, colour in colours.items():
        wide = 36 + 6.2 * len(name)
        if x > left and x + wide > width - 120:
            x, y = left, y + 20
        body += [path(rectangle(x, y, 18, 13), colour), text(x + 24, y + 11, name)]
        x += wide
    return body, x, y


def three_ticks(high: float) -> list[float]:
    """From nothing to at most `high`, three or more: as few as round values allow."""
    return next(marks for at_most in range(2, 9) if len(marks := ticks(0, high, at_most)) >= 3)


def seconds(value: float, longest: float, digits: int = 4) -> str:
    """A time in the unit that suits the longest on the same axis."""
    scale, unit = (1.0, "s") if longest >= 1 else (1e3, "ms") if longest >= 1e-3 else (1e6, "µs")
    return f"{value * scale:.{digits}g} {unit}"


def document(width: float, height: float, title: str, body: Iterable[str]) -> str:
    """A whole file on a white ground; the title is also what a screen reader says."""
    size = f"{number(width)} {number(height)}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" width="{number(width)}" '
        f'height="{number(height)}" role="img" font-family="{FONT}">',
        f"<title>{escape(title, quote=False)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect width="{number(width)}" height="{number(height)}" fill="#ffffff" class="w"/>',
        *body,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"
