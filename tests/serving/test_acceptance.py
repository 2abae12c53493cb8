"""Guesses of a model that was trained: most of them are right, and the text is the one without them."""

import random
from functools import cache
from typing import Any

import pytest
import torch
from serving.packages import Change, module, package

WORDS = ("the cat", "a dog", "some bird"), ("sees", "hears", "follows"), ("a mouse", "the moon", "nobody")
STEPS, BATCH, LENGTH = 90, 8, 32
NEW = 40
LEAST = 0.6  # of the guesses


@cache
def letters() -> list[int]:
    """Short sentences, a token per letter: within a word two letters ahead can be known, between words they cannot."""
    source = random.Random(0)
    text = ". ".join(" ".join(source.choice(words) for words in WORDS) for _ in range(400))
    alphabet = sorted(set(text))
    return [alphabet.index(letter) for letter in text]


@cache
def trained() -> dict[str, Any]:
    """The weights of a model that has read them for some seconds."""
    source, text = random.Random(1), torch.tensor(letters())
    torch.manual_seed(0)
    model = package().model.Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for _ in range(STEPS):
        begins = [source.randrange(len(text) - LENGTH - 1) for _ in range(BATCH)]
        rows = torch.stack([text[begin : begin + LENGTH + 1] for begin in begins])
        loss, _ = model.loss(rows[:, :-1], rows[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights: dict[str, Any] = model.state_dict()
    return weights


def accepted(change: Change | None = None) -> float:
    """Which part of the guesses was right while four greedy texts were written, all steps guessing."""
    model = package(change=change).model.Model().eval()
    model.load_state_dict(trained())
    prompts = [letters()[begin : begin + 8] for begin in range(0, 400, 100)]
    texts = []
    for speculate in (True, False):
        engine = module("engine", change).Engine(model, speculate=speculate)
        engine.speculation._pays = lambda: True
        texts.append(engine.generate(prompts, max_new_tokens=NEW))
        if speculate:
            rate: float = engine.speculation.accepted / engine.speculation.drafted
    assert texts[0] == texts[1]
    return rate


def test_most_guesses_of_a_trained_model_are_right() -> None:
    assert accepted() >= LEAST


DECODE = "infer/decode.py"
FAULTS: dict[str, Change] = {
    "the state is not seen": (DECODE, ("module.mtp[0], hidden,", "module.mtp[0], 0 * hidden,")),
    "the token between is not seen": (
        DECODE,
        ("ahead = module.embed_tokens(tokens)", "ahead = 0 * module.embed_tokens(tokens)"),
    ),
}


@pytest.mark.parametrize("change", FAULTS.values(), ids=FAULTS)
def test_a_fault_makes_most_guesses_wrong(change: Change) -> None:
    assert accepted(change) < LEAST
