"""How many published facts the planner reproduces, as README.md says it.

`make goldens` writes what is true today into README.md; look at the difference.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from planner import test_memory_facts as of_memory
from planner import test_serving_time as of_serving
from planner import test_time_facts as of_time

README = Path(__file__).parents[2] / "README.md"
LINE = re.compile(r"^\*\*\d+ of \d+ published facts reproduced\*\*.*$", re.MULTILINE)

# These compare published figures with each other, not with the model.
ARITHMETIC = re.compile(r"^(14|15) |of the measured step$")
MEASURED_MEMORY = 0.02  # of bytes that a GPU reports; Megatron's kernels keep other tensors than ours


class Fact(NamedTuple):
    name: str
    published: float
    found: float
    tolerance: float
    """Relative; of what was held out, the uncertainty that the model states."""
    held_out: bool

    @property
    def error(self) -> float:
        return self.found / self.published - 1

    @property
    def holds(self) -> bool:
        return abs(self.error) <= self.tolerance + 1e-12


def facts() -> Iterator[Fact]:
    for one in of_memory.FACTS:
        yield Fact(one.row, one.published, one.computed(), one.tolerance, False)
    for fact in of_time.FACTS:
        if not ARITHMETIC.search(fact.name):
            yield Fact(fact.name, fact.published, fact.found, fact.tolerance, False)
    for ranks, published in of_time.DEEPEP:
        found = of_time.logical_bandwidth(ranks)
        yield Fact(f"dispatch over {ranks} GPUs", published, found, of_time.ONE_COLLECTIVE, False)
    for served in of_serving.SERVED:
        yield Fact(served.name, served.published, served.found, served.tolerance, served.source == of_serving.DAY_6)
    for row, layout, measured in of_memory.HELD_OUT:
        found = of_memory.fullest_of_four(layout).allocated / of_memory.GIB
        yield Fact(row, measured, found, MEASURED_MEMORY, True)
    for run in of_time.HOLD_OUT:
        tokens, step, model = of_time.tokens_per_second(run)
        found = tokens if run.tokens else step.mfu * model.hardware.cluster.bf16_flops / 1e12
        yield Fact(run.row, run.tokens or run.tflops, found, step.uncertainty, True)


def badge() -> str:
    every = list(facts())
    kept = [one for one in every if one.held_out]
    held = sum(one.holds for one in every)
    within = sum(one.holds for one in kept)
    return (
        f"**{held} of {len(every)} published facts reproduced** within their tolerance. {len(kept)} of the facts are "
        f"measured runs that no calibration has seen: {within} lie within the uncertainty that is stated for them "
        f"({min(one.tolerance for one in kept):.0%} to {max(one.tolerance for one in kept):.0%}), "
        f"with errors of {min(one.error for one in kept):+.0%} to {max(one.error for one in kept):+.0%}."
    )


def test_readme_says_how_many_facts_are_reproduced() -> None:
    for one in facts():
        word = "holds" if one.holds else "MISSES"
        print(f"{word} {one.name}: published {one.published:g}, found {one.found:.6g} ({one.error:+.1%})")
    (said,) = LINE.findall(README.read_text(encoding="utf-8"))
    assert said == badge(), "true is the second; `make goldens` writes it"


def test_a_fact_that_misses_is_counted_as_one() -> None:
    assert Fact("", 100.0, 110.0, 0.1, False).holds and not Fact("", 100.0, 111.0, 0.1, False).holds
    assert Fact("", 100.0, 90.0, 0.1, False).holds and not Fact("", 100.0, 89.0, 0.1, False).holds


def accept() -> None:
    README.write_text(LINE.sub(badge(), README.read_text(encoding="utf-8")), encoding="utf-8")
