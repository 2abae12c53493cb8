"""The page of a plan: it stands alone, says what the plan says, and can be read on screen and paper."""

import html
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from dsc.compiler.driver import build
from dsc.compiler.planner.report.figures import fixed, gib, percent, size
from dsc.compiler.planner.report.page import TENSORS, beside_the_schedule, memory_picture, plan_html, serving_html
from dsc.compiler.planner.report.pictures.memory_svg import memory_of
from dsc.compiler.planner.report.plan import MEMORY, Plan, given_plan, make_plan, memory, ranks_text, searched_text
from dsc.compiler.planner.search.problem import Problem
from dsc.compiler.planner.serving.deployment import make_serving_plan
from planner.machines import machine, model
from planner.test_plan import llama, serving, tiny

VOID = {"meta", "br"}
FETCHING = re.compile(
    r"<script|<link|<iframe|<img|<object|\bsrc=|\bhref=|url\(|@import|@font-face|\bon\w+=", re.IGNORECASE
)


class Page(HTMLParser):
    """Texts, and whether every element is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.counts: dict[str, int] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())


PAGES = {"train": lambda: plan_html(tiny()), "decode": lambda: serving_html(llama())}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_a_page_stands_alone(page) -> None:  # type: ignore[no-untyped-def]
    """Nothing is fetched, nothing runs, every element is closed; the same plan gives the same bytes."""
    text = page()
    assert not FETCHING.search(text)
    assert set(re.findall(r"https?://[^\"' <]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not Page(text).open
    assert text == page()


def test_what_would_fetch_is_noticed() -> None:
    for bad in ("<script>", '<img src="x">', '<a href="x">', "url(x)", '<p onclick="x">'):
        assert FETCHING.search(bad)


def test_every_line_of_the_ledger_and_of_the_step_is_there() -> None:
    plan, page = tiny(), Page(plan_html(tiny()))
    texts = set(page.texts)
    for role in plan.roles:
        for line in role.lines:
            assert {line.name, f"{line.bytes:,}", line.provenance, line.source} <= texts, line.name
            named = ", ".join(line.tensors[:TENSORS])
            assert any(text.startswith(named) for text in texts), line.name
    for step in plan.lines:
        assert {step.name, f"{step.seconds:.3f}", step.provenance, step.source} <= texts, step.name
    for one in plan.shown:
        assert {one.change, one.binds, one.reason} <= texts, one.change
    assert page.counts["svg"] == 2
    assert any(text.startswith("It fits: the fullest process needs ") for text in texts)


def test_every_line_of_a_deployment_is_there() -> None:
    found = llama()
    page = Page(serving_html(found))
    for line in found.chosen.lines:
        assert {line.name, f"{line.bytes:,}", line.provenance, line.source} <= set(page.texts), line.name
    for one in found.around:
        assert {one.change, one.binds, one.reason} <= set(page.texts), one.change
    assert page.counts["svg"] == 1


def test_a_deployment_that_does_not_fit_has_no_arena() -> None:
    page = Page(serving_html(make_serving_plan(serving("llama-3.1-405b", "h100", 1))))
    assert any(text.startswith("It does not fit: one sequence of ") for text in page.texts)
    assert "svg" not in page.counts


def test_the_drawn_memory_peaks_where_the_ledger_ends() -> None:
    """The picture moves activations over time; at its fullest moment it is the ledger's total, to the byte."""
    plan = tiny()
    stages = plan.problem.stages(plan.layout)
    kinds = [tuple(plan.problem.memory.parts[part].kind for part in stage) for stage in stages]
    held = [plan.problem.memory.stages.of(one, plan.layout).kept for one in kinds]
    for role in plan.roles:
        going = sum(line.bytes for line in role.lines if line.name.startswith(("activations of ", "logits")))
        for rank in role.ranks:
            assert memory_of(plan.timeline, rank, role.bytes - going, held).peak == role.bytes
    assert f"{plan.chosen.bytes / 2**30:.1f} GiB at " in memory_picture(plan)


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_can_be_read_on_light_and_on_dark_ground() -> None:
    """WCAG's contrast of 4.5, for every colour of text on both grounds."""
    schemes = re.findall(r":root \{(.*?)\}", plan_html(tiny()))
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", scheme))
        for text in ("ink", "muted", "good", "bad"):
            for ground in ("ground", "soft"):
                lighter, darker = sorted((_luminance(colours[text]), _luminance(colours[ground])), reverse=True)
                assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (text, ground)


# What a reader would stumble over.


def words(text: str) -> str:
    """What the page says, its pictures' words among it."""
    return " ".join(Page(re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)).texts)


def dense() -> Plan:
    spec, timed = model("llama-3.1-8b")
    return make_plan(Problem(spec, build(spec).training, timed, machine("h100", 1)))


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_units_signs_and_plurals(page) -> None:  # type: ignore[no-untyped-def]
    """Bytes are in GiB, GB is for bandwidths alone; nothing has a sign before a zero; one thing is no several."""
    said = re.sub(r"the graph's [\d.]+ GB", "", words(page()))  # beside a bandwidth, in what a calibration rests on
    assert not re.search(r"\d GB(?!/s)", said) and re.search(r"\d GiB", said)
    assert not re.search(r"-0\.?0*(?![\d.])", said), re.findall(r".{20}-0\.?0*(?![\d.])", said)
    assert not re.search(r"(?<![\d.,])1 (stages|GPUs|nodes|processes|sequences|tokens|ways|activations|ops)\b", said)


def test_figures_have_no_sign_before_nothing() -> None:
    assert [fixed(value, 3) for value in (-1e-17, -0.0004, -0.004)] == ["0.000", "0.000", "-0.004"]
    assert percent(-1e-9) == "0.0%"
    assert [size(2**30), size(2**20 * 32.5), gib(3 * 2**29)] == ["1.00 GiB", "32.50 MiB", "1.50"]


def test_one_way_is_one_way() -> None:
    assert searched_text(replace(tiny().found, legal=1, simulated=1)) == (
        "1 way to share the model is legal, 1 of them was simulated"
    )
    assert searched_text(replace(tiny().found, legal=1200, simulated=2)) == (
        "1,200 ways to share the model are legal, 2 of them were simulated"
    )


def test_the_verdict_comes_first_and_in_its_colour() -> None:
    page = Page(plan_html(tiny()))
    title = page.texts.index("tiny: training on 4 nodes of cpu, 4 processes", 1)
    assert page.texts[title + 1].startswith("It fits: ")
    assert '<p class="verdict fits">' in plan_html(tiny())
    lacking = replace(tiny(), found=replace(tiny().found, best=None))
    assert '<p class="verdict lacks">It does not fit' in plan_html(lacking)


def test_the_picture_says_what_the_step_has_besides() -> None:
    """The lines before it are in the picture, and with those that it names they are the whole step."""
    plan = tiny()
    besides = beside_the_schedule(plan.time)
    named = {name: float(seconds) for name, seconds in re.findall(r"([a-z ]+) ([\d.]+) s(?=,|$)", besides)}
    assert f"a step takes {plan.time.seconds:.2f} s" in besides
    assert besides in html.unescape(plan_html(plan))
    total = plan.timeline.step + sum(seconds for name, seconds in named.items() if "step takes" not in name)
    assert total == pytest.approx(plan.time.seconds, abs=0.02)


def test_ranks_that_hold_alike_are_one_panel() -> None:
    plan = tiny()
    picture = memory_picture(plan)
    for role in plan.roles:
        assert f'class="b">{ranks_text(role.ranks)}</text>' in picture
    assert picture.count('class="b"') == len(plan.roles)


def test_rows_that_do_not_apply_are_left_out() -> None:
    """A model without experts has no line of them; one rank schedules nothing; groups that are empty are none."""
    plan = dense()
    said = words(plan_html(plan))
    assert "bubble" not in said and "between ranks" not in said  # of one pipeline rank
    assert sum(line.seconds for line in plan.lines) == pytest.approx(plan.time.seconds)
    assert "experts" not in said and "needs at least 2 pipeline ranks" not in said
    assert "has no experts" in " ".join(one.reason for one in plan.around)  # the planner knows, and has been asked
    groups = [name for name in MEMORY if any(memory(role, 0)[name] for role in plan.roles)]
    heads = re.findall(r"<tr><td>(\w+)</td><td class=\"n\">", plan_html(plan).split("total")[0])
    assert [name for name in heads if name in MEMORY] == groups


def test_tensors_are_those_of_the_rank() -> None:
    """No rank of a pipeline is told a layer that it does not have, but for what the one before hands on."""
    layout = replace(tiny().layout, pp=4, dp=1, ep=1, zero=0, micro_batch=1)
    plan = given_plan(tiny().problem, layout)
    assert len(plan.roles) > 1
    for role in plan.roles:
        own = {name for stage in role.parts for name in stage}
        for line in role.lines:
            if not line.name.startswith("activations of"):
                continue
            for name in line.tensors:
                layer = re.match(r"(layers\.-?\d+)\.(.*)", name)
                handed_on = layer and re.match(r"x\.\d", layer[2])
                assert layer is None or layer[1] in own or handed_on, (role.ranks, line.name, name)
                assert "layers.-" not in name


def test_a_small_screen_scrolls_what_is_wide() -> None:
    page = plan_html(tiny())
    assert "figure > svg { display: block; width: 100%; min-width: 62rem; height: auto; }" in page
    assert re.search(r"figure \{[^}]*overflow-x: auto", page) and "td.from { min-width: 22rem; }" in page


def test_paper_is_white_and_keeps_together_what_belongs_together() -> None:
    page = plan_html(tiny())
    assert "@media screen and (prefers-color-scheme: dark)" in page
    rules = re.search(r"@media print \{(.*)\}\n", page)
    assert rules and "h2, h3, h2 + p, thead { break-after: avoid; }" in rules[1]
    assert "tr, figure, dl, section { break-inside: avoid; }" in rules[1] and "orphans: 3" in rules[1]
