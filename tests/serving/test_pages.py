"""Pool and scheduler under random arrivals, cancellations and shared beginnings, in far too few pages.

The model is a stand-in: the row of a token holds the text up to it, so that a row that belongs to another text shows.
"""

import random
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from serving.packages import Change, module

MAX_LENGTH = 110
ALPHABET = 3


class Serving(RuleBasedStateMachine):
    """Plans are carried out with rows that say which text they belong to; `ahead` rows are those of guesses."""

    change: Change | None = None
    ahead = 1

    def __init__(self) -> None:
        super().__init__()
        cache, scheduler = module("cache", self.change), module("scheduler", self.change)
        self.Text, self.Sampling = scheduler.Text, module("sampling", self.change).Sampling
        self.size: int = cache.PAGE_SIZE
        self.pool = cache.PagePool(14)
        self.scheduler = scheduler.Scheduler(self.pool, MAX_LENGTH, max_running=6, step_tokens=40, ahead=self.ahead)
        self.rows: dict[tuple[int, int], tuple[int, ...]] = {}
        self.guessed: dict[tuple[int, int], tuple[int, ...]] = {}
        self.texts: list[Any] = []

    @rule(pages=st.integers(0, 3), last=st.integers(0, 2), tail=st.integers(0, 40), new=st.integers(1, 50))
    def arrive(self, pages: int, last: int, tail: int, new: int) -> None:
        """Prompts begin alike for some pages, and differ in the last token of these."""
        beginning = random.Random(0)
        prompt = [beginning.randrange(ALPHABET) for _ in range(max(1, pages * self.size))]
        prompt = [*prompt[:-1], last, *(beginning.randrange(ALPHABET) for _ in range(tail))]
        text = self.Text(prompt, self.Sampling(max_new_tokens=new))
        if len(prompt) + new > self.scheduler.max_length:
            with pytest.raises(ValueError, match="are more than"):
                self.scheduler.add(text)
        else:
            self.scheduler.add(text)
            self.texts.append(text)

    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        if self.texts:
            self.scheduler.drop(self.texts[which % len(self.texts)], "cancelled")

    @rule(times=st.integers(1, 6))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.step_once()

    def step_once(self) -> None:
        oldest = self.scheduler.running[:1]
        plan = self.scheduler.plan()
        assert self.scheduler.running[:1] == oldest or not oldest, "the oldest lost its pages"
        assert plan or self.scheduler.idle, "nothing is planned though somebody waits"
        assert sum(new for _, new in plan) <= 40 and all(new > 0 for _, new in plan)
        for text, new in plan:
            self.compute(text, new)
        for text, _ in plan:
            if len(text.new_tokens) >= text.sampling.max_new_tokens:
                self.scheduler.drop(text, "length")

    def compute(self, text: Any, new: int) -> None:
        first, known = text.computed, text.tokens + text.guess
        for position in range(first, first + new):
            if position >= text.shared:
                self.rows[self.place(text, position)] = tuple(known[: position + 1])
        if first + new >= len(text.tokens):
            made = [sum(text.tokens) * 7 % ALPHABET]
            if text.guess == made and len(text.new_tokens) + 1 < text.sampling.max_new_tokens:
                made.append(sum([*text.tokens, *made]) * 7 % ALPHABET)
            text.tokens += made
            text.guess = []
        text.computed = min(first + new, len(text.tokens) - 1)
        if self.ahead:
            for position in range(first + 1, text.computed + 1):
                if position >= text.shared:
                    self.guessed[self.place(text, position)] = tuple(text.tokens[: position + 1])
            ready = text.computed == len(text.tokens) - 1 and text.computed >= len(text.prompt)
            if ready and len(text.new_tokens) + 1 < text.sampling.max_new_tokens:
                text.guess = [len(text.tokens) % ALPHABET]
        for page in range(first // self.size, text.computed // self.size):
            self.pool.name(text.pages, page, text.tokens)

    def place(self, text: Any, position: int) -> tuple[int, int]:
        return text.pages[position // self.size], position % self.size

    @invariant()
    def pages_are_held_by_those_who_have_them(self) -> None:
        held = [0] * len(self.pool.holders)
        for text in self.scheduler.running:
            assert len(set(text.pages)) == len(text.pages) and 0 not in text.pages
            for page in text.pages:
                held[page] += 1
        assert held == self.pool.holders
        assert set(self.pool.free) == {page for page in range(1, len(held)) if not held[page]}
        assert not any(text.pages for text in self.scheduler.waiting)

    @invariant()
    def rows_are_those_of_the_text(self) -> None:
        for text in self.scheduler.running:
            for position in range(text.computed):
                expected = tuple(text.tokens[: position + 1])
                assert self.rows[self.place(text, position)] == expected
                assert not self.ahead or not position or self.guessed[self.place(text, position)] == expected

    def teardown(self) -> None:
        """Everybody ends, and every page comes back."""
        for _ in range(2000):
            if self.scheduler.idle:
                break
            self.step_once()
            self.rows_are_those_of_the_text()
        assert self.scheduler.idle and all(text.ended for text in self.texts)
        assert len(self.pool.free) == len(self.pool.holders) - 1


class WithoutGuesses(Serving):
    ahead = 0


SETTINGS = settings(max_examples=60, stateful_step_count=25, deadline=None)


@pytest.mark.parametrize("machine", [Serving, WithoutGuesses], ids=["guesses", "no_guesses"])
def test_no_page_is_lost_and_no_row_is_another_text_s(machine: type[Serving]) -> None:
    run_state_machine_as_test(machine, settings=SETTINGS)  # type: ignore[no-untyped-call]


FIRST_FAILURE = settings(SETTINGS, max_examples=300, database=None, phases=[Phase.generate])

CACHE, SCHEDULER = "infer/cache.py", "infer/scheduler.py"
MUTANTS: dict[str, Change] = {
    "the last token of a key is ignored": (
        CACHE,
        ("end - PAGE_SIZE : end]", "end - PAGE_SIZE : end - 1]"),
        ("(index + 1) * PAGE_SIZE]", "(index + 1) * PAGE_SIZE - 1]"),
    ),
    "a name is kept when its page is taken": (CACHE, ("if page in self._names:", "if False:")),
    "the page before is no part of the key": (
        CACHE,
        ("before = self._names[page][1]", "before = 0"),
        ("before = self._names[pages[index - 1]][1]", "before = 0"),
    ),
    "the whole prompt may be found": (
        CACHE,
        ("range(PAGE_SIZE, len(tokens), PAGE_SIZE)", "range(PAGE_SIZE, len(tokens) + 1, PAGE_SIZE)"),
    ),
    "found pages are not held": (SCHEDULER, ("self.pool.hold(text.pages)", "pass")),
    "admitted before all of it fits": (SCHEDULER, ("len(text.tokens) + self.ahead)", "1)")),
    "too long a text is let in": (SCHEDULER, ("if length > self.max_length:", "if False:")),
    "the oldest is preempted": (SCHEDULER, ("self.running.pop()", "self.running.pop(0)")),
    "nothing behind a found prefix is computed again": (SCHEDULER, ("text.shared - self.ahead", "text.shared")),
    "a cancelled text keeps its pages": (
        SCHEDULER,
        ("remove(text)\n            self._give_back(text)", "remove(text)"),
    ),
}


AHEAD = {"range(PAGE_SIZE, len(tokens), PAGE_SIZE)": 0}  # with guesses, the last found token is computed again anyhow


@pytest.mark.parametrize("change", MUTANTS.values(), ids=MUTANTS)
def test_mutants_die(change: Change) -> None:
    machine = type("Mutant", (Serving,), {"change": change, "ahead": AHEAD.get(change[1][0], 1)})
    with pytest.raises(BaseException):  # noqa: B017  whatever shows first
        run_state_machine_as_test(
            machine, settings=settings(SETTINGS, max_examples=300, database=None, phases=[Phase.generate])
        )  # type: ignore[no-untyped-call]
