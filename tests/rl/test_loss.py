"""The emitted loss against the formulas of the papers, written out answer by answer, in float64."""

import json
import math
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

TRL = json.loads(Path(__file__).with_name("trl_1_16.json").read_text())
LENGTHS = (5, 3, 7, 1, 7, 2, 4, 6)
GROUP, LONGEST = 4, 8
CASES: list[dict[str, Any]] = [
    {"denominator": "sequences"},
    {"denominator": "tokens"},
    {"denominator": "constant", "std_normalization": False},
    {"denominator": "tokens", "kl": 0.0},
    {"denominator": "sequences", "clip_low": 10.0, "clip_high": 10.0},
    {"denominator": "sequences", "ratio": "sequence", "clip_low": 0.05, "clip_high": 0.05},
    {"denominator": "tokens", "importance_cap": 1.1},
]


def experience(module: Any, rewards: Tensor, **given: Tensor) -> Any:
    """With the tensors that this package's rl has."""
    loss = module("train.grpo_loss")
    experience_of = module("train.experience").Experience
    mask = given["mask"]
    values = {**given, "advantage": loss.advantages(rewards).flatten(), "share": mask / mask.sum()}
    values["weight"] = loss.token_weights(mask, mask.sum(1))
    absent = torch.zeros(len(mask), 1)
    return experience_of(**{field.name: values.get(field.name, absent) for field in fields(experience_of)})


@pytest.fixture
def given() -> dict[str, Tensor]:
    draws = {name: torch.randn(len(LENGTHS), 8, dtype=torch.float64) * 0.3 - 2 for name in ("old", "sampled")}
    draws["reference"] = draws["old"] + torch.randn(len(LENGTHS), 8, dtype=torch.float64) * 0.2
    mask = torch.tensor([[float(t < length) for t in range(8)] for length in LENGTHS], dtype=torch.float64)
    return {**draws, "mask": mask}


def by_hand(rl: dict[str, Any], logp: Tensor, rewards: Tensor, given: dict[str, Tensor]) -> Tensor:
    """Token by token, as the papers have it."""
    low, high = rl.get("clip_low", 0.2), rl.get("clip_high", 0.28)
    kl = rl.get("kl", 0.001)
    total = logp.new_zeros(())
    for i, length in enumerate(LENGTHS):
        group = rewards[i // GROUP]
        mean = sum(group.tolist()) / GROUP
        deviation = math.sqrt(sum((r - mean) ** 2 for r in group.tolist()) / (GROUP - 1)) + 1e-4
        advantage = (group[i % GROUP].item() - mean) / (deviation if rl.get("std_normalization", True) else 1)
        whole = sum(logp[i, t] - given["old"][i, t] for t in range(length)) / length
        answer = logp.new_zeros(())
        for t in range(length):
            log_ratio = whole if rl.get("ratio") == "sequence" else logp[i, t] - given["old"][i, t]
            ratio = torch.exp(log_ratio)
            gain = min(ratio * advantage, torch.clamp(ratio, 1 - low, 1 + high) * advantage)
            if "importance_cap" in rl:
                gain = gain * min(math.exp(given["old"][i, t] - given["sampled"][i, t]), rl["importance_cap"])
            toward = given["reference"][i, t] - logp[i, t]
            answer = answer - gain + kl * (torch.exp(toward) - toward - 1)
        total = (
            total
            + answer
            / {
                "sequences": length * len(LENGTHS),
                "tokens": sum(LENGTHS),
                "constant": LONGEST * len(LENGTHS),
            }[rl["denominator"]]
        )
    return total


@pytest.mark.parametrize("rl", CASES, ids=str)
def test_loss_and_gradient_are_the_formulas(learning: Any, given: dict[str, Tensor], rl: dict[str, Any]) -> None:
    module = learning(**{"clip_low": 0.2, "clip_high": 0.28, **rl})
    rewards = torch.rand(2, GROUP, dtype=torch.float64)
    logp = (given["old"] + torch.randn_like(given["old"]) * 0.3).requires_grad_()
    loss, _ = module("train.grpo_loss").grpo_loss(logp, experience(module, rewards, **given))
    (gradient,) = torch.autograd.grad(loss, logp)
    expected = by_hand(rl, logp, rewards, given)
    (expected_gradient,) = torch.autograd.grad(expected, logp)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rl", CASES, ids=str)
def test_micro_batches_of_any_size_add_up(learning: Any, given: dict[str, Tensor], rl: dict[str, Any]) -> None:
    """A loss that divided by what a micro-batch has, as a mean does, would not: lengths differ."""
    module = learning(**{"clip_low": 0.2, "clip_high": 0.28, **rl})
    taken = experience(module, torch.rand(2, GROUP, dtype=torch.float64), **given)
    logp = (given["old"] + torch.randn_like(given["old"]) * 0.3).requires_grad_()

    def whole(size: int) -> tuple[Tensor, Tensor]:
        parts = zip(logp.split(size), taken.split(size), strict=True)
        losses = [module("train.grpo_loss").grpo_loss(piece, part) for piece, part in parts]
        loss = sum(loss for loss, _ in losses)
        assert isinstance(loss, Tensor)
        return torch.autograd.grad(loss, logp)[0], torch.stack([parts for _, parts in losses]).sum(0)

    for one, other in zip(whole(8), whole(3), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


def test_a_mean_over_a_micro_batch_would_be_seen(learning: Any, given: dict[str, Tensor]) -> None:
    module = learning(denominator="tokens", clip_low=0.2, clip_high=0.28)
    taken = experience(module, torch.rand(2, GROUP, dtype=torch.float64), **given)
    weights = module("train.grpo_loss").token_weights
    local = [replace(part, weight=weights(part.mask, part.mask.sum(1))) for part in taken.split(4)]
    losses = [module("train.grpo_loss").grpo_loss(part.old, part)[0] / 2 for part in local]
    exact = module("train.grpo_loss").grpo_loss(taken.old, taken)[0]
    assert abs((sum(losses) - exact).item()) > 1e-6


@pytest.mark.parametrize("name", TRL["cases"])
def test_advantages_loss_and_gradient_are_trl_s(learning: Any, name: str) -> None:
    """As TRL 1.16 computed them: see record_trl.py. With use_bias_correction_kl=False, as the papers have the KL."""
    case = TRL["cases"][name]
    known = {key: torch.tensor(value, dtype=torch.float64) for key, value in TRL["given"].items()}
    logp, rewards = known.pop("logp").requires_grad_(), known.pop("rewards")
    module = learning(**case["rl"])
    taken = experience(module, rewards, **known)
    torch.testing.assert_close(taken.advantage.tolist(), case["advantages"], rtol=1e-14, atol=1e-15)
    loss, _ = module("train.grpo_loss").grpo_loss(logp, taken)
    (gradient,) = torch.autograd.grad(loss, logp)
    torch.testing.assert_close(loss.item(), case["loss"], rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(gradient.tolist(), case["gradient"], rtol=1e-13, atol=1e-16)


def test_no_two_of_trl_s_cases_are_alike() -> None:
    """So that an option that is ignored shows."""
    losses = sorted(case["loss"] for case in TRL["cases"].values())
    assert min(b - a for a, b in pairwise(losses)) > 1e-4


def test_equal_rewards_teach_nothing(learning: Any) -> None:
    assert not learning()("train.grpo_loss").advantages(torch.full((3, 4), 0.7)).any()


@pytest.mark.parametrize("by_deviation", [True, False])
def test_a_reward_that_failed_is_no_part_of_its_group(learning: Any, by_deviation: bool) -> None:
    """The others have the advantages of a group without it; a group of one, or of none, teaches nothing."""
    of = learning(std_normalization=by_deviation)("train.grpo_loss").advantages
    nan = math.nan
    found = of(torch.tensor([[1.0, nan, 0.0, 1.0], [nan, 0.5, nan, nan], [nan] * 4, [0.0, 1.0, 1.0, 0.0]]))
    assert torch.equal(found[0, [0, 2, 3]], of(torch.tensor([[1.0, 0.0, 1.0]]))[0])
    assert found[0, 1] == 0 and not found[1:3].any()
    as_zero = of(torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
    assert (found[0] - as_zero[0]).abs().max() > 0.1
    assert torch.equal(found[3], of(torch.tensor([[0.0, 1.0, 1.0, 0.0]]))[0])
