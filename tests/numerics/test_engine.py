"""Engine.generate against the plainest way to generate: the full forward on everything so far, one row at a time."""

import pytest
import torch
from numerics.checks import RAGGED, greedy
from numerics.families import Case, case
from numerics.harness import Compile, OracleOf, Package, imported_text, random_model
from numerics.specs import SPECS
from torch import nn


@pytest.fixture(scope="module")
def package(compiled: Compile) -> Package:
    return compiled(SPECS["everything"])


@pytest.fixture(scope="module")
def model(package: Package) -> nn.Module:
    return random_model(package)


def test_greedy_is_the_argmax_of_the_full_forward(family: Case, oracle_of: OracleOf, compiled: Compile) -> None:
    package = compiled(imported_text(oracle_of(family)))
    model = random_model(package)
    generated = package.engine.Engine(model).generate(RAGGED, max_new_tokens=8)
    assert generated == [greedy(model, prompt, 8) for prompt in RAGGED]


@pytest.mark.parametrize("name", ["qwen3-base", "qwen3-last_layers", "mistral-base"])
def test_greedy_is_that_of_transformers_beyond_the_window(name: str, oracle_of: OracleOf, compiled: Compile) -> None:
    """Windows of 6 tokens; prompts shorter and longer, and three windows of new tokens."""
    oracle = oracle_of(case(name))
    package = compiled(imported_text(oracle))
    engine = package.engine.Engine(package.load(oracle.folder))
    for prompt in (RAGGED[1], RAGGED[0], [*RAGGED[2], *RAGGED[0], *RAGGED[3]]):
        tokens = torch.tensor([prompt])
        asked = {"attention_mask": torch.ones_like(tokens), "max_new_tokens": 18, "do_sample": False, "pad_token_id": 0}
        expected = oracle.model.generate(tokens, **asked)[0, len(prompt) :].tolist()
        assert engine.generate([prompt], max_new_tokens=18) == [expected]


def test_prompts_do_not_change_each_other(package: Package, model: nn.Module) -> None:
    engine = package.engine.Engine(model)
    together = engine.generate(RAGGED, max_new_tokens=6)
    assert together == [engine.generate([prompt], max_new_tokens=6)[0] for prompt in RAGGED]
    assert engine.generate(RAGGED[::-1], max_new_tokens=6) == together[::-1]


def test_it_stops_at_the_stop_token_and_keeps_it(package: Package, model: nn.Module) -> None:
    engine = package.engine.Engine(model)
    unstopped = engine.generate(RAGGED, max_new_tokens=8)
    stop = unstopped[0][3]
    expected = [row[: row.index(stop) + 1] if stop in row else row for row in unstopped]
    assert engine.generate(RAGGED, max_new_tokens=8, stop_token=stop) == expected
    assert len(expected[0]) <= 4


def test_a_stop_token_in_the_prompt_stops_nothing(package: Package, model: nn.Module) -> None:
    engine = package.engine.Engine(model)
    unstopped = engine.generate(RAGGED, max_new_tokens=3)
    stop = next(token for token in RAGGED[2] if all(token not in row for row in unstopped))
    assert engine.generate(RAGGED, max_new_tokens=3, stop_token=stop) == unstopped


@pytest.mark.parametrize("count", [0, 1])
def test_few_new_tokens(count: int, package: Package, model: nn.Module) -> None:
    generated = package.engine.Engine(model).generate(RAGGED, max_new_tokens=count)
    assert [len(row) for row in generated] == [count] * len(RAGGED)


def test_no_prompts(package: Package, model: nn.Module) -> None:
    assert package.engine.Engine(model).generate([], max_new_tokens=4) == []


def test_an_empty_prompt_is_refused(package: Package, model: nn.Module) -> None:
    with pytest.raises(ValueError, match="a prompt has no tokens"):
        package.engine.Engine(model).generate([[1], []], max_new_tokens=4)


@pytest.mark.parametrize("seed", [0, 7])
def test_a_seed_reproduces_and_another_does_not(seed: int, package: Package, model: nn.Module) -> None:
    engine = package.engine.Engine(model)
    seeds = (seed, seed, seed + 1)
    first, again, other = (engine.generate(RAGGED, max_new_tokens=12, temperature=1.0, seed=one) for one in seeds)
    assert first == again
    assert first != other


def test_sampling_follows_the_distribution(package: Package, model: nn.Module) -> None:
    """The first new token of one prompt, drawn often, against softmax(logits / temperature)."""
    draws, temperature = 4000, 0.7
    generated = package.engine.Engine(model).generate(
        [RAGGED[0]] * draws, max_new_tokens=1, temperature=temperature, seed=3
    )
    counts = torch.tensor([row[0] for row in generated]).bincount(minlength=package.spec.vocab_size)
    with torch.no_grad():
        shares = (model(torch.tensor([RAGGED[0]]))[0, -1] / temperature).softmax(-1)
    # Five standard deviations of a binomial, for each token.
    bound = 5 * (shares * (1 - shares) / draws).sqrt() + 1 / draws
    assert ((counts / draws - shares).abs() <= bound).all()


def test_prompts_are_left_alone(package: Package, model: nn.Module) -> None:
    prompts = [list(prompt) for prompt in RAGGED]
    package.engine.Engine(model).generate(prompts, max_new_tokens=3)
    assert prompts == RAGGED
