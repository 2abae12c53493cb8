"""The whole engine under random arrivals, cancellations and shared beginnings: every text is what it is alone.

In float64, so that no choice hangs on the last bits. Guesses are made by a model with random weights, and never right,
or always, by an oracle that knows what comes.
"""

from collections import Counter
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


def engine(pages: int, change: Change | None = None, spec: str = "everything", **options: Any) -> Any:
    model = random_model(package(spec, change))
    caches = module("decode", change, spec).empty_caches(1, model.embed_tokens.weight.detach())
    options = {"max_running": 5, "step_tokens": 24, **options}
    cache_bytes = pages * sum(cache.nbytes for cache in caches)
    return module("engine", change, spec).Engine(model, cache_bytes=cache_bytes, **options)


@cache
def alone(prompt: tuple[int, ...], options: tuple[tuple[str, Any], ...], spec: str = "everything") -> list[int]:
    """The text in an engine of its own that makes no guesses."""
    running = engine(8, spec=spec, speculate=False)
    text = running.submit(list(prompt), module("sampling", spec=spec).Sampling(**dict(options)))
    while text.ended is None:
        running.step()
    made: list[int] = text.new_tokens
    return made


class Running(RuleBasedStateMachine):
    change: Change | None = None
    spec = "everything"

    def __init__(self) -> None:
        super().__init__()
        self.engine = engine(9, self.change, self.spec)
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
        text = self.engine.submit(list(prompt), module("sampling", self.change, self.spec).Sampling(**options))
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
        if self.spec == "window":
            held[0] = 0  # what stands for pages behind the window
        assert held == pool.holders
        assert set(pool.free) == {page for page in range(1, len(held)) if not held[page]}

    def teardown(self) -> None:
        for _ in range(500):
            self.engine.step()
        assert self.engine.scheduler.idle and len(self.engine.pool.free) == len(self.engine.pool.holders) - 1
        for text, prompt, options in self.texts:
            if text.ended != "cancelled":
                assert text.new_tokens == alone(prompt, options, self.spec), (prompt, options)


class InAWindow(Running):
    spec = "window"


SETTINGS = settings(max_examples=15, stateful_step_count=20, deadline=None)


@pytest.mark.parametrize("machine", [Running, pytest.param(InAWindow, marks=pytest.mark.slow)])
def test_every_text_is_what_it_is_alone(machine: type[Running]) -> None:
    run_state_machine_as_test(machine, settings=SETTINGS)  # type: ignore[no-untyped-call]


ENGINE, BATCH, SAMPLING, SCHEDULER = (f"infer/{name}.py" for name in ("engine", "batch", "sampling", "scheduler"))
MUTANTS: dict[str, Change] = {
    "the table is filled with the page that is nobody's": (BATCH, ("pages[:1] * (width", "[NOWHERE] * (width")),
    "every guess is right": (SCHEDULER, ("token != guess or ", "")),
    "noise without the seed": (SAMPLING, ("(row.sampling.seed, row.end)", "(0, row.end)")),
    "noise of the step": (SAMPLING, ("on_device(keys, torch.long, logits.device)", "torch.randint(9, (len(keys), 2))")),
    "penalties see all guesses": (ENGINE, ("text.known, end))", "text.known, len(text.known)))")),
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


NAMED_EARLY: Change = (ENGINE, ("text.computed // PAGE_SIZE)", "-(-text.computed // PAGE_SIZE))"))


def goes_on_after(change: Change | None = None) -> bool:
    """Whether a text is what it is alone that begins as one did whose last row was not computed when it was dropped."""
    running, how, page = engine(9, change), {"max_new_tokens": 8}, module("cache").PAGE_SIZE
    first = running.submit(BEGINNINGS[0][: page - 1], module("sampling", change).Sampling(**how))
    while len(first.tokens) < page:
        running.step()
    running.cancel(first)
    text = running.submit([*first.tokens, 1], module("sampling", change).Sampling(**how))
    while text.ended is None:
        running.step()
    return bool(text.new_tokens == alone(tuple(text.prompt), tuple(how.items())))


def test_a_page_is_found_only_when_it_is_full() -> None:
    assert goes_on_after() and not goes_on_after(NAMED_EARLY)


NUMBER, TEMPERATURE, TOP_K = 3000, 1.5, 4
SAME_NOISE: Change = (SAMPLING, ("(row.sampling.seed, row.end)", "(row.sampling.seed, 0)"))


def drawn(change: Change | None, right: list[list[int]] | None = None) -> list[list[int]]:
    """Three tokens behind one prompt for every seed; with those that come, the second one is guessed right."""
    running = engine(500, change, speculate=right is not None, max_running=500, step_tokens=4000)
    running.speculation._pays = lambda: True
    sampling = module("sampling", change).Sampling(max_new_tokens=3, temperature=TEMPERATURE, top_k=TOP_K)
    texts = [running.submit(BEGINNINGS[0][:6], sampling.with_seed(seed, frozenset())) for seed in range(NUMBER)]
    numbers = {text: number for number, text in enumerate(texts)}
    while not running.scheduler.idle:
        running.step()
        for text in running.scheduler.running if right else []:
            text.guess = right[numbers[text]][1:2] if text.guess else []
    assert right is None or running.speculation.accepted == NUMBER
    return [text.new_tokens for text in texts]


def shares_behind(model: Any, tokens: list[int], share: float, count: int) -> dict[tuple[int, ...], float]:
    """What share of all draws begins with each of the next `count` tokens, by the model's own forward."""
    if not count:
        return {(): share}
    with torch.no_grad():
        best = (model(torch.tensor([tokens]))[0, -1] / TEMPERATURE).topk(TOP_K)
    pairs = zip(best.indices.tolist(), best.values.softmax(-1).tolist(), strict=True)
    return {
        (token, *more): part
        for token, chance in pairs
        for more, part in shares_behind(model, [*tokens, token], share * chance, count - 1).items()
    }


def is_unlikely(draws: list[list[int]]) -> bool:
    """By chi-square over what comes at least five times, against the product of the model's own distributions."""
    expected = shares_behind(random_model(package()), BEGINNINGS[0][:6], float(NUMBER), 3)
    found, often = Counter(map(tuple, draws)), [tokens for tokens, number in expected.items() if number >= 5]
    assert found.keys() <= expected.keys() and len(often) > 30
    statistic = sum((found[tokens] - expected[tokens]) ** 2 / expected[tokens] for tokens in often)
    freedom = len(often) - 1
    return bool(statistic > freedom + 4 * (2 * freedom) ** 0.5)


def test_draws_through_verification_follow_the_model() -> None:
    """3,000 times three tokens, the third of each drawn behind a guess of the second."""
    plain = drawn(None)
    assert drawn(None, plain) == plain and not is_unlikely(plain)


def test_draws_that_share_their_noise_are_noticed() -> None:
    """Each text is what it is alone then, too."""
    assert is_unlikely(drawn(SAME_NOISE))
