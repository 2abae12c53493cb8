"""Guesses are those of the module that was trained: multi-token prediction over a whole text, without pages."""

from typing import Any

import pytest
import torch
from numerics.harness import random_model
from serving.packages import Change, module, package
from serving.test_engine_properties import BEGINNINGS, engine

STEPS = 12


def guess_of(model: Any, tokens: list[int]) -> int:
    """The token after the last: from the state before that and the last one itself (DeepSeek-V3, section 2.2)."""
    text = torch.tensor([tokens])
    with torch.no_grad():
        x, rope, *_ = model.backbone(text)
        ahead = model.embed_tokens(text[:, 1:])
        hidden, *_ = model.mtp[0](model.norm(x)[:, :-1], ahead, rope[:, :-1])
        return int(model.lm_head(hidden)[0, -1].argmax())


def wrong_guesses(change: Change | None = None) -> int:
    """Of two greedy texts, the first in parts of a prompt, the second behind its pages; at least eight guesses each."""
    running, model = engine(12, change), random_model(package(change=change)).eval()
    running.speculation._pays = lambda: True
    wrong = 0
    for tail in ([1, 2], [3, 4, 5]):
        sampling = module("sampling", change).Sampling(max_new_tokens=STEPS, temperature=0.0)
        text = running.submit([*BEGINNINGS[0], *tail], sampling)
        guesses = found = 0
        while text.ended is None:
            running.step()
            found = max(found, text.shared)
            if text.guess and text.ended is None:
                guesses += 1
                wrong += text.guess != [guess_of(model, text.tokens)]
        assert guesses >= 8 and found == (0 if tail == [1, 2] else len(BEGINNINGS[0]))
    return wrong


def test_guesses_are_those_of_the_trained_module() -> None:
    assert wrong_guesses() == 0


DECODE, ENGINE = "infer/decode.py", "infer/engine.py"
MUTANTS: dict[str, Change] = {
    "guesses start from the state before the norm": (DECODE, ("return logits, hidden", "return logits, x")),
    "guesses see a row that no token has": (ENGINE, (", begins=1)", ")")),
}


@pytest.mark.parametrize("change", MUTANTS.values(), ids=MUTANTS)
def test_mutants_die(change: Change) -> None:
    assert wrong_guesses(change) > 0
