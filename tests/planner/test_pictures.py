"""Pictures of a plan: the same bytes every time, true to the timeline, and readable.

`python tests/planner/test_pictures.py` accepts what is drawn today; look at the pictures before.
"""

import itertools
import json
import re
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsc.compiler.planner.pipeline.schedule import actions, holdings, peak_in_flight, stage_count
from dsc.compiler.planner.pipeline.simulate import StageTimes, simulate
from dsc.compiler.planner.report.pictures.arena_svg import KINDS, TINTS, TOP, arena_svg, kind_of
from dsc.compiler.planner.report.pictures.memory_svg import ACTIVATIONS, STATIC, Panel, memory_of, memory_svg
from dsc.compiler.planner.report.pictures.schedule_svg import COLOURS, DARKEST, PALEST, schedule_svg
from dsc.compiler.planner.report.pictures.svg import DARK, GROUND, INK, mix, seconds, three_ticks, ticks
from dsc.compiler.planner.report.pictures.trace import chrome_trace
from dsc.compiler.planner.serving.arena import Interval, place

GOLDEN = Path(__file__).parent / "golden"
GIB = 2**30


def timeline_of(schedule, pp, vpp, micro_batches):
    times = [StageTimes(0.032, 0.036, 0.022, 0.080)] * stage_count(schedule, pp, vpp)
    return simulate(actions(schedule, pp, vpp, micro_batches), times, transfer=0.0005)


def memory_picture(schedule, pp, vpp, micro_batches, capacity=80 * GIB):
    static = [{"weights": 7 * GIB, "gradients": 14 * GIB, "optimizer moments": 2 * GIB, "logits": 0} for _ in range(pp)]
    static[-1]["logits"] = 4 * GIB
    sizes = [3 * GIB + GIB // 8 * stage for stage in range(stage_count(schedule, pp, vpp))]
    panels = [Panel(f"rank {rank}", rank, static[rank]) for rank in range(pp)]
    return memory_svg(timeline_of(schedule, pp, vpp, micro_batches), panels, sizes, capacity, "memory of " + schedule)


MODULES = ("layers.0.self_attn.v", "layers.0.mlp.v", "x")


def arena_of(count):
    """Values of some sizes that live for some ops, many small ones among them."""
    return place(
        [Interval(f"{MODULES[i % 3]}{i}", 1000 * (1 + i * i % 37), i // 2, i // 2 + i % 5) for i in range(count)]
        + [Interval(f"small{i}", 8, i, i) for i in range(count // 2)]
    )


PICTURES = {
    "schedule-1f1b.svg": lambda: schedule_svg(timeline_of("1f1b", 4, 1, 8), "1f1b, 4 ranks, 8 micro-batches"),
    "schedule-interleaved.svg": lambda: schedule_svg(timeline_of("interleaved", 4, 3, 8), "interleaved"),
    "schedule-zbv.svg": lambda: schedule_svg(timeline_of("zbv", 4, 2, 8), "zbv"),
    "schedule-dualpipe.svg": lambda: schedule_svg(timeline_of("dualpipe", 8, 1, 20), "dualpipe"),
    "memory-1f1b.svg": lambda: memory_picture("1f1b", 4, 1, 8, capacity=30 * GIB),
    "memory-dualpipe-v.svg": lambda: memory_picture("dualpipe-v", 4, 2, 10),
    "arena.svg": lambda: arena_svg(arena_of(40), "one step, op by op"),
    "trace-dualpipe-v.json": lambda: chrome_trace(timeline_of("dualpipe-v", 2, 2, 4), "dualpipe-v"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_the_same_bytes_as_ever(name):
    assert PICTURES[name]() == (GOLDEN / name).read_text(encoding="utf-8"), "changed: look at it, then accept it"


@pytest.mark.parametrize("name", [name for name in PICTURES if name.endswith(".svg")])
def test_an_svg_stands_alone(name):
    """Well-formed XML of a known size that fetches and runs nothing."""
    drawn = PICTURES[name]()
    root = ElementTree.fromstring(drawn)
    assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"
    assert {element.tag.rpartition("}")[2] for element in root.iter()} <= {
        "svg",
        "title",
        "style",
        "rect",
        "path",
        "g",
        "text",
    }
    assert not re.search(r"script|href|url\(|@import|@font-face", drawn)
    assert root[0].text  # the title, which a screen reader says


SPAN = re.compile(r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)h-[\d.]+z")


def fills(drawn):
    """Rectangles of each colour."""
    found = defaultdict(list)
    for element in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}path"):
        found[element.get("fill")] += [tuple(map(float, span)) for span in SPAN.findall(element.get("d"))]
    return found


@pytest.mark.parametrize(
    "point", [("1f1b", 4, 1, 8), ("zbv", 4, 2, 8), ("dualpipe-v", 4, 2, 10), ("dualpipe", 16, 1, 32)]
)
def test_cells_are_as_wide_as_their_actions_are_long(point):
    timeline = timeline_of(*point)
    found = fills(drawn := schedule_svg(timeline, "any"))
    assert "left out" not in drawn
    ground = found["#f3f5f7"]
    shown = sum(width for _, _, width, _ in ground) / len(timeline.actions)  # pixels of the whole step
    for kind in ("F", "B", "W", "BW"):
        work = sum(
            end - start
            for row, starts, ends in zip(timeline.actions, timeline.start, timeline.end, strict=True)
            for action, start, end in zip(row, starts, ends, strict=True)
            if kind in [member.kind for member in action.members]
        )
        tints = {mix(COLOURS[kind], PALEST), mix(COLOURS[kind], DARKEST)}
        cells = [cell for tint in tints for cell in found[tint] if cell[1] > 90]  # below the legend
        drawn = sum(width + 0.6 for _, _, width, _ in cells)
        assert drawn == pytest.approx(work / timeline.step * shown, rel=0.01, abs=0.1)


def test_values_of_an_arena_are_as_long_and_high_as_they_are():
    """And where they are: the area that is drawn is the bytes times the ops of every value that can be seen."""
    arena = arena_of(40)
    cells = (cell for of_colour in fills(arena_svg(arena, "any")).values() for cell in of_colour)
    found = [cell for cell in cells if cell[1] >= TOP - 0.1]  # below the legend
    ops = 1 + max(one.last for one in arena.intervals)
    seen = [one for one in arena.intervals if 320 * one.aligned / arena.bytes >= 0.15]
    assert len(found) == len(seen)
    width = sum(one.last + 1 - one.first for one in seen) * (1480 - 70 - 18) / ops
    assert sum(width for _, _, width, _ in found) == pytest.approx(width, rel=0.01)
    tops = [y for _, y, _, _ in found]
    assert min(tops) == pytest.approx(TOP, abs=0.1)  # the highest value ends where the arena does


def test_every_micro_batch_of_a_small_schedule_has_its_number():
    timeline = timeline_of("1f1b", 4, 1, 8)
    (group,) = ElementTree.fromstring(schedule_svg(timeline, "any")).iter("{http://www.w3.org/2000/svg}g")
    assert sorted(element.text for element in group) == sorted(str(index) for index in range(8) for _ in range(8))


def test_a_large_schedule_stays_readable():
    """16 ranks x 120 micro-batches: what is drawn has its numbers, on two screens, in a file of half a megabyte."""
    timeline = timeline_of("dualpipe", 16, 1, 120)
    drawn = schedule_svg(timeline, "any")
    root = ElementTree.fromstring(drawn)
    cells = [
        cell for colour, of_it in fills(drawn).items() if colour not in (None, GROUND) for cell in of_it if cell[1] > 90
    ]
    labels = [element for group in root.iter("{http://www.w3.org/2000/svg}g") for element in group]
    assert "of the same are left out here" in drawn
    assert len(labels) > 0.9 * len(cells) > 1000
    assert float(root.get("width")) <= 1500 and float(root.get("height")) < 1800
    assert len(drawn) < 500_000


def test_of_a_very_long_step_the_middle_is_left_out():
    drawn = schedule_svg(timeline_of("1f1b", 8, 1, 2000), "any")
    assert "of the same are left out here" in drawn
    assert len(drawn) < 500_000


def _luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("kind", COLOURS)
def test_numbers_can_be_read_on_their_cells(kind):
    """WCAG's contrast of 4.5 for the darkest tint, and so for all."""
    ratio = (_luminance(mix(COLOURS[kind], DARKEST)) + 0.05) / (_luminance(INK) + 0.05)
    assert ratio > 4.5


@settings(max_examples=30)
@given(
    st.sampled_from([("1f1b", 4, 1, 7), ("interleaved", 3, 3, 6), ("zbv", 4, 2, 9), ("dualpipe", 4, 1, 12)]),
    st.lists(st.integers(1, 50), min_size=9, max_size=9),
    st.integers(0, 1000),
)
def test_the_drawn_peak_is_the_peak_of_the_schedule(point, sizes, static):
    """Over time, with any bytes for each stage: what `holdings` says without any times."""
    timeline = timeline_of(*point)
    for rank in range(point[1]):
        memory = memory_of(timeline, rank, static, sizes)
        together = holdings(timeline.actions, rank)
        assert memory.peak == static + max(sum(n * sizes[stage] for stage, n in held.items()) for held in together)
        assert memory.held[-1] == (0,) * len(memory.stages)
        assert list(memory.times) == sorted(set(memory.times))


def test_memory_above_capacity_is_said():
    drawn = memory_picture("1f1b", 4, 1, 8, capacity=30 * GIB)
    assert "fullest: rank 0 with 35.0 GiB, 5.0 GiB above the 30.0 GiB of a GPU" in drawn
    assert 'class="c" text-anchor="end">35.0 GiB at' in drawn


def test_a_trace_has_every_action_once_without_overlap():
    timeline = timeline_of("dualpipe-v", 4, 2, 10)
    events = json.loads(chrome_trace(timeline, "any"))["traceEvents"]
    for rank, row in enumerate(timeline.actions):
        slices = [event for event in events if event["ph"] == "X" and event["tid"] == rank]
        assert [event["cat"] for event in slices] == [action.kind for action in row]
        assert sum(event["dur"] for event in slices) == pytest.approx(timeline.busy[rank] * 1e6, rel=1e-6)
        assert all(a["ts"] + a["dur"] <= b["ts"] + 0.002 for a, b in itertools.pairwise(slices))
        counters = [event for event in events if event["ph"] == "C" and event["name"] == f"in flight, rank {rank}"]
        held = [event["args"]["activations"] for event in counters]
        assert max(held) == peak_in_flight(timeline.actions, rank)
        assert held[-1] == 0


def distance(one, other):
    """How far apart two colours are, each channel by how much the eye makes of it; black and white are 765 apart."""
    red, *_ = mean = [(int(one[i : i + 2], 16) + int(other[i : i + 2], 16)) / 2 for i in (1, 3, 5)]
    delta = [int(one[i : i + 2], 16) - int(other[i : i + 2], 16) for i in (1, 3, 5)]
    assert len(mean) == 3
    return ((2 + red / 256) * delta[0] ** 2 + 4 * delta[1] ** 2 + (2 + (255 - red) / 256) * delta[2] ** 2) ** 0.5


def test_colours_that_mean_something_else_can_be_told_apart():
    memory = [*STATIC, mix(ACTIVATIONS, DARKEST)]
    arena = [mix(colour, TINTS[0]) for _, colour in KINDS.values()]
    for colours in (memory, arena, [mix(colour, DARKEST) for colour in COLOURS.values()]):
        for one, other in itertools.combinations(colours, 2):
            assert distance(one, other) > 120, (one, other)
    assert distance("#8c959f", "#9aa7b5") < 60  # two of what was taken for memory before


def test_what_is_drawn_is_in_the_legend():
    arena = arena_svg(arena_of(40), "any")
    assert [kind for kind in KINDS if f">{kind}</text>" in arena] == [kind for kind in KINDS if kind != "head"]
    assert kind_of("layers.3.self_attn.q[0]") == "attention" and kind_of("logits[0]") == "head"
    memory = memory_picture("1f1b", 4, 1, 8)
    for name in ("weights", "gradients", "optimizer moments", "logits", "capacity"):
        assert f">{name}</text>" in memory


def test_axes_have_three_marks():
    for high in (0.9, 1.0, 1.7, 4.2, 79.11, 85.4, 190.0):
        marks = three_ticks(high)
        assert 3 <= len(marks) <= 6 and marks[0] == 0 and marks[-1] <= high
    for name in ("memory-1f1b.svg", "arena.svg"):
        assert "GB" not in PICTURES[name]() and "GiB" in memory_picture("zbv", 2, 2, 4)


def test_a_dark_screen_turns_the_ground_and_leaves_what_is_measured():
    drawn = PICTURES["schedule-1f1b.svg"]()
    style = drawn[drawn.index("<style>") : drawn.index("</style>")]
    assert "@media screen and (prefers-color-scheme:dark)" in style  # paper stays white
    assert f".w{{fill:{DARK['#ffffff']}}}" in style and f".n text{{fill:{INK}}}" in style
    assert drawn.count('fill="#ffffff" class="w"') == 1 and f'fill="{GROUND}" class="r"' in drawn
    for ground in (DARK["#ffffff"], DARK[GROUND]):
        for text in (DARK[INK], DARK["#57606a"], DARK["#b42318"]):
            lighter, darker = sorted((_luminance(text), _luminance(ground)), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (text, ground)


def test_what_a_schedule_leaves_out_of_a_step_is_said():
    drawn = schedule_svg(timeline_of("1f1b", 4, 1, 8), "any", "; not drawn: optimizer 0.50 s")
    assert drawn.count("; not drawn: optimizer 0.50 s") == 2  # for the eye, and for who listens


def test_ticks_are_round():
    assert ticks(0, 33, 7) == [0, 5, 10, 15, 20, 25, 30]
    assert ticks(0.9, 2.1, 3) == [1.0, 1.5, 2.0]
    assert [seconds(0.25, longest) for longest in (2.0, 0.9, 1e-4)] == ["0.25 s", "250 ms", "2.5e+05 µs"]


def accept():
    for name, draw in PICTURES.items():
        (GOLDEN / name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    accept()
