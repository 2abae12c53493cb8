"""Where every layer sees a window only, pages behind it are given back while a text is written, and never read."""

import math
from typing import Any

import pytest
import torch
from numerics.checks import greedy
from numerics.harness import random_model
from serving.packages import Change, package

WINDOW = 4  # tests/numerics/specs.py
PROMPTS = [[1, 2, 3], [5] * 21, [7, 8, 9, 10, 11] * 8]
TOO_EARLY: Change = ("infer/scheduler.py", ("text.computed - WINDOW + 1", "text.computed + 1"))


def engine_of(pages: int, change: Change | None = None) -> tuple[Any, torch.nn.Module]:
    made = package("window", change)
    model = random_model(made)
    caches = made.importer("infer.decode").empty_caches(1, model.embed_tokens.weight.detach())
    page_bytes = sum(cache.nbytes for cache in caches)
    return made.engine.Engine(model, cache_bytes=pages * page_bytes, step_tokens=24), model


def submit(engine: Any, prompt: list[int], new: int) -> Any:
    return engine.submit(prompt, package("window").importer("infer.sampling").Sampling(new))


def step(engine: Any) -> None:
    """One step, and what lies in pages that nobody holds is made unfit to be read."""
    engine.step()
    for cache in engine.caches:
        cache[[0, *engine.pool.free]] = math.nan


def check_texts(change: Change | None = None) -> None:
    """All are the model's own, though each holds only the pages that its window and two new tokens lie in."""
    (engine, model), size = engine_of(12, change), package("window").importer("infer.cache").PAGE_SIZE
    texts = [submit(engine, prompt, 20) for prompt in PROMPTS]
    while not engine.scheduler.idle:
        step(engine)
        for text in engine.scheduler.running:
            if text.wanted == 1 + len(text.guess):
                held = [page for page in text.pages if page]
                assert len(held) <= 1 + math.ceil((WINDOW + 2) / size), (text.computed, text.pages)
    assert [text.new_tokens for text in texts] == [greedy(model, prompt, 20) for prompt in PROMPTS]
    assert len(engine.pool.free) == len(engine.pool.holders) - 1 and not any(engine.pool.holders)


def test_texts_hold_the_window_and_what_is_being_written() -> None:
    check_texts()


def test_a_page_given_back_too_early_shows() -> None:
    with pytest.raises(AssertionError):
        check_texts(TOO_EARLY)


def test_more_texts_run_than_whole_pages_would_allow() -> None:
    """Each of three texts grows to four pages; six are there, and nobody is preempted."""
    engine, model = engine_of(6)
    texts = [submit(engine, [token], 60) for token in (1, 2, 3)]
    while not engine.scheduler.idle:
        step(engine)
    assert [text.preempted for text in texts] == [0, 0, 0]
    assert [text.new_tokens for text in texts] == [greedy(model, text.prompt, 60) for text in texts]
