"""The page of a plan: it stands alone, says what the plan says, and can be read on screen and paper."""

import re
from html.parser import HTMLParser

import pytest

from dsc.compiler.planner.report.page import TENSORS, memory_picture, plan_html, serving_html
from dsc.compiler.planner.report.pictures.memory_svg import memory_of
from dsc.compiler.planner.serving.deployment import make_serving_plan
from planner.test_plan import llama, serving, tiny

VOID = {"meta", "br"}
FETCHING = re.compile(
    r"<script|<link|<iframe|<img|<object|\bsrc=|\bhref=|url\(|@import|@font-face|\bon\w+=", re.IGNORECASE
)


class Page(HTMLParser):
    """Texts, and whether every element is closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.counts: dict[str, int] = {}
        self.feed(html)
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
    html = page()
    assert not FETCHING.search(html)
    assert set(re.findall(r"https?://[^\"' <]+", html)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not Page(html).open
    assert html == page()


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
    for step in plan.time.lines:
        assert {step.name, f"{step.seconds:.3f}", step.provenance, step.source} <= texts, step.name
    for one in plan.around:
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
    assert f"{plan.chosen.bytes / 1e9:.1f} GB at " in memory_picture(plan)


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
