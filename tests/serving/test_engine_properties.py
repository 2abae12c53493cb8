"""The whole engine under random arrivals, cancellations and shared beginnings: every text is what it is alone.

In float64, so that no choice hangs on the last bits. Guesses are made by a model with random weights, and never right,
or always, by an oracle that knows what comes.
"""

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from numerics.harness import random_model
from serving.packages import Change, module, package

VOCABULARY = 83
BEGINNINGS = [[(7 * n + 3 * kind) % VOCABULARY for n in range(48)] for kind in range(2)]


def engine(pages: int, change: Change | None = None, **options: Any) -> Any:
    module_ = module("engine", change)
    model = random_model(package(change=change))
    one = sum(cache.nbytes for cache in module("decode", change).empty_caches(1, model.embed_tokens.weight.detach()))
    return module_.Engine(model, cache_bytes=one * pages, max_running=5, step_tokens=24, **options)


@cache
def alone(prompt: tuple[int, ...], options: tuple[tuple[str, Any], ...]) -> list[int]:
    """The text in an engine of its own that makes no guesses."""
    running = engine(8, speculate=False)
    text = running.submit(list(prompt), module("sampling").Sampling(**dict(options)))
    while text.ended is None:
        running.step()
    made: list[int] = text.new_tokens
    return made


class Running(RuleBasedStateMachine):
    change: Change | None = None

    def __init__(self) -> None:
        super().__init__()
        self.engine = engine(9, self.change)
        self.engine.speculation._pays = lambda: True  # whatever the clock says
        for pages in self.engine.caches:
            pages.fill_(float("nan"))  # memory as it was found
        self.texts: list[tuple[Any, tuple[int, ...], tuple[tuple[str, Any], ...]]] = []

    @rule(
        kind=st.integers(0, 1), begin=st.integers(0, 40), tail=st.lists(st.integers(0, 82), min_size=1, max_size=8),
        new=st.integers(1, 14), temperature=st.sampled_from([0.0, 0.0, 0.9]), seed=st.integers(0, 3),
        penalty=st.sampled_from([0.0, 0.0, 1.5]), top_k=st.sampled_from([None, 5]),
    )  # fmt: skip
    def submit(
        self, kind: int, begin: int, tail: list[int], new: int, temperature: float, seed: int, penalty: float,
        top_k: int | None,
    ) -> None:  # fmt: skip
        prompt = (*BEGINNINGS[kind][:begin], *tail)
        options = {"max_new_tokens": new, "temperature": temperature, "seed": seed}
        options |= {"presence_penalty": penalty, "top_k": top_k}
        text = self.engine.submit(list(prompt), module("sampling", self.change).Sampling(**options))
        self.texts.append((text, prompt, tuple(options.items())))

    @rule(times=st.integers(1, 5))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.engine.step()

    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        if self.texts:
            self.engine.cancel(self.texts[which % len(self.texts)][0])

    @invariant()
    def pages_are_held_by_those_who_have_them(self) -> None:
        pool, held = self.engine.pool, [0] * len(self.engine.pool.holders)
        for text in self.engine.scheduler.running:
            for page in text.pages:
                held[page] += 1
        assert held == pool.holders
        assert set(pool.free) == {page for page in range(1, len(held)) if not held[page]}

    def teardown(self) -> None:
        for _ in range(500):
            self.engine.step()
        assert self.engine.scheduler.idle and len(self.engine.pool.free) == len(self.engine.pool.holders) - 1
        for text, prompt, options in self.texts:
            if text.ended != "cancelled":
                assert text.new_tokens == alone(prompt, options), (prompt, options)


SETTINGS = settings(max_examples=15, stateful_step_count=20, deadline=None)


def test_every_text_is_what_it_is_alone() -> None:
    run_state_machine_as_test(Running, settings=SETTINGS)  # type: ignore[no-untyped-call]


ENGINE, BATCH, CACHE, SAMPLING, SCHEDULER = (
    f"infer/{name}.py" for name in ("engine", "batch", "cache", "sampling", "scheduler")
)
MUTANTS: dict[str, Change] = {
    "the table is filled with the page that is nobody's": (BATCH, ("pages[:1] * (width", "[NOWHERE] * (width")),
    "every guess is right": (SCHEDULER, ("token != guess or ", "")),
    "noise without the seed": (SAMPLING, ("(row.sampling.seed, row.end)", "(0, row.end)")),
    "noise of the step": (SAMPLING, ("on_device(keys, torch.long, logits.device)", "torch.randint(9, (len(keys), 2))")),
    "penalties see all guesses": (ENGINE, ("text.known, end))", "text.known, len(text.known)))")),
    "a name is kept when its page is taken": (CACHE, ("if page in self._names:", "if False:")),
    "a page is named before it is full": (ENGINE, ("text.computed // PAGE_SIZE)", "-(-text.computed // PAGE_SIZE))")),
}


@pytest.mark.parametrize("change", MUTANTS.values(), ids=MUTANTS)
def test_mutants_die(change: Change) -> None:
    machine = type("Mutant", (Running,), {"change": change})
    first = settings(SETTINGS, max_examples=400, derandomize=True, database=None, phases=[Phase.generate])
    with pytest.raises(BaseException):  # noqa: B017  whatever shows first
        run_state_machine_as_test(machine, settings=first)  # type: ignore[no-untyped-call]


def test_right_guesses_save_steps_and_change_nothing() -> None:
    """An oracle in the place of the guessing layer: half the steps, the same text."""
    prompt, options = tuple(BEGINNINGS[0][:10]), (("max_new_tokens", 20), ("temperature", 0.9), ("seed", 1))
    expected = [*prompt, *alone(prompt, options)]
    running = engine(8)
    running.speculation._pays = lambda: True
    text = running.submit(list(prompt), module("sampling").Sampling(**dict(options)))
    steps = 0
    while text.ended is None:
        running.step()
        steps += 1
        if text.guess:
            text.guess = expected[len(text.tokens) : len(text.tokens) + 1]
    assert text.tokens == expected
    assert steps <= 12 and running.speculation.accepted >= 9


def test_draws_through_verification_follow_the_model() -> None:
    """Chi-square of 3,000 second tokens, every one drawn behind a guess of the first that was right."""
    prompt, number = BEGINNINGS[0][:6], 3000
    sampling = module("sampling")
    model = random_model(package())
    first = 5
    with torch.no_grad():
        shares = (model(torch.tensor([[*prompt, first]]))[0, -1] / 1.5).softmax(-1)
    counts = torch.zeros(VOCABULARY, dtype=shares.dtype)
    for seed in range(number):
        row = sampling.Row(
            sampling.Sampling(temperature=1.5, seed=seed), len(prompt), [*prompt, first], len(prompt) + 1
        )
        counts[verified(sampling, row, shares)] += 1
    often = shares * number >= 5
    statistic = ((counts - shares * number)[often] ** 2 / (shares * number)[often]).sum().item()
    freedom = int(often.sum()) - 1
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def verified(sampling: Any, row: Any, shares: torch.Tensor) -> int:
    """The token drawn behind an accepted guess, as a text takes it."""
    text = module("scheduler").Text(row.tokens[:-1], sampling.Sampling(max_new_tokens=4, temperature=1.5))
    text.guess = [row.tokens[-1]]
    (drawn,) = sampling.choose(shares.log().unsqueeze(0) * 1.5, [row])
    assert text.extend([(row.tokens[-1], None), (drawn, None)]) == [row.tokens[-1], drawn]
    return int(text.tokens[-1])
