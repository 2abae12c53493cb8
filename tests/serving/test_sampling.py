"""The choice of a token: each option against its definition, and draws against the distribution they are to follow."""

import math

import pytest
import torch
from serving.packages import module
from torch import Tensor

sampling = module("sampling")
WIDTH = 50


def logits(rows: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


def row(tokens: list[int] | None = None, prompt: int = 1, **options: object) -> object:
    tokens = tokens or [1]
    return sampling.Row(sampling.Sampling(**options), prompt, tokens, len(tokens))


def draws(values: Tensor, number: int, **options: object) -> Tensor:
    """Shares of the tokens drawn from one row with so many seeds."""
    rows = [row(seed=seed, **options) for seed in range(number)]
    return torch.tensor(sampling.choose(values.expand(number, -1), rows)).bincount(minlength=WIDTH) / number


def test_temperature_zero_takes_the_likeliest() -> None:
    values = logits(8)
    assert sampling.choose(values, [row() for _ in range(8)]) == values.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_draws_follow_the_softmax(temperature: float) -> None:
    """Chi-square over the tokens that are expected at least five times."""
    number, values = 20_000, logits()
    expected = (values[0] / temperature).softmax(-1) * number
    found = draws(values, number, temperature=temperature) * number
    often = expected >= 5
    statistic = ((found - expected)[often] ** 2 / expected[often]).sum().item()
    freedom = int(often.sum()) - 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


def test_draws_at_neighbouring_positions_and_seeds_are_independent() -> None:
    keys = torch.tensor([(seed, position) for seed in range(40) for position in range(40)])
    noise = sampling.gumbel_noise(keys, 64).view(40, 40, 64)
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, rel=0.03)
    for axis in range(3):
        one, other = noise.narrow(axis, 0, noise.shape[axis] - 1), noise.narrow(axis, 1, noise.shape[axis] - 1)
        correlation = torch.corrcoef(torch.stack((one.flatten(), other.flatten())))[0, 1].item()
        assert abs(correlation) < 0.015


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    values = logits(3)
    rows = [row([1] * (n + 1), temperature=1.0, seed=5) for n in range(3)]
    together = sampling.choose(values, rows)
    assert together == [sampling.choose(values[i : i + 1], rows[i : i + 1])[0] for i in range(3)]
    other = row([2] * 3, prompt=2, temperature=1.0, seed=5)
    assert sampling.choose(values[2:], [other]) == together[2:]


def kept(**options: object) -> set[int]:
    """Tokens that are drawn at all, at a temperature that makes all of those likely."""
    return set(draws(logits(), 4000, temperature=1.0, **options).nonzero().flatten().tolist())


def best(count: int) -> set[int]:
    return set(logits()[0].topk(count).indices.tolist())


def test_top_k() -> None:
    assert kept(top_k=3) == best(3)


def test_top_p_is_the_fewest_that_reach_it() -> None:
    shares = logits()[0].softmax(-1).sort(descending=True).values.cumsum(-1)
    fewest = int((shares < 0.6).sum()) + 1
    assert kept(top_p=0.6) == best(fewest) and 1 < fewest < WIDTH


def test_min_p_is_a_share_of_the_likeliest() -> None:
    shares = logits()[0].softmax(-1)
    assert kept(min_p=0.3) == set((shares >= 0.3 * shares.max()).nonzero().flatten().tolist())


def test_top_p_counts_what_top_k_left() -> None:
    shares = logits()[0].topk(4).values.softmax(-1)
    fewest = int((shares.cumsum(-1) < 0.7).sum()) + 1
    assert kept(top_k=4, top_p=0.7) == best(fewest) and fewest < 4


def test_the_likeliest_always_stays() -> None:
    assert kept(top_p=1e-9) == best(1) == kept(min_p=1.0)


def test_penalties_and_bias() -> None:
    values, tokens = logits()[0], [3, 4, 4, 9, 9, 9]
    changed = sampling.penalised(
        values, row(tokens, 1, repetition_penalty=1.5, presence_penalty=0.25, frequency_penalty=0.5, bias={7: 2.0})
    )
    expected = values.clone()
    for token in (3, 4, 9):
        expected[token] = values[token] / 1.5 if values[token] > 0 else values[token] * 1.5
    expected[4] -= 0.25 + 0.5 * 2
    expected[9] -= 0.25 + 0.5 * 3
    expected[7] += 2.0
    torch.testing.assert_close(changed, expected)


def test_options_of_one_row_leave_the_others_alone() -> None:
    values = logits(4)
    rows = [row(), row(temperature=1.0, top_k=1), row(bias={7: 100.0}), row(temperature=0.8, seed=3)]
    assert sampling.choose(values, rows) == [sampling.choose(values[i : i + 1], rows[i : i + 1])[0] for i in range(4)]
    assert sampling.choose(values, rows)[1:3] == [values[1].argmax().item(), 7]


def test_a_forbidden_token_is_never_drawn() -> None:
    likeliest = int(logits()[0].argmax())
    assert draws(logits(), 500, temperature=1.0, bias={likeliest: -math.inf})[likeliest] == 0


def test_logprobs_are_of_the_model_s_own_logits() -> None:
    values = logits(2)
    (first, second) = sampling.logprobs(values, [4, 5], [row(logprobs=2, temperature=2.0, bias={4: 9.0}), row()])
    logs = values[0].log_softmax(-1)
    assert second is None
    assert next(iter(first)) == 4 and set(first) == {4, *logs.topk(2).indices.tolist()}
    assert all(value == pytest.approx(logs[token].item()) for token, value in first.items())


WRONG = {
    "max_new_tokens": 0, "temperature": -1.0, "top_k": 0, "top_p": 0.0, "min_p": 1.5, "repetition_penalty": 0.0,
    "presence_penalty": math.inf, "frequency_penalty": math.nan, "bias": {1: math.nan}, "seed": 2**63, "logprobs": -1,
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_values_that_mean_nothing_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} cannot be"):
        sampling.Sampling(**{name: WRONG[name]})


def test_not_a_number_is_no_temperature() -> None:
    with pytest.raises(ValueError, match="temperature"):
        sampling.Sampling(temperature=math.nan)
