"""What is trained: log-probabilities and gradients against Model.forward, the engine, and routers made to differ."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from dsc.compiler.driver import build, emit
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec
from dsc.spec.shrink import shrunk

PROMPTS = [[1, 2, 3, 4], [9, 8, 7], [1, 2, 3, 4], [5] * 20]


@dataclass
class Answered:
    module: Any
    model: Any
    rollout: Any


def model_of(module: Any, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(1)
    model = module("model").Model().to(dtype).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.08)  # answers and routers that differ
    return model


def answered(module: Any, dtype: torch.dtype = torch.float32) -> Answered:
    model = model_of(module, dtype)
    return Answered(module, model, module("train.rollout").rollout(model, PROMPTS, frozenset({256}), seed=3))


def log_probabilities(case: Answered, experts: Tensor | None = None) -> tuple[Tensor, Any]:
    replay = case.module("train.replay").Replay(case.rollout.experts if experts is None else experts)
    function = case.module("train.policy").model_log_probabilities
    return function(case.model, case.rollout.tokens, case.rollout.labels, replay), replay


def from_logits(case: Answered, temperature: float = 1.0) -> Tensor:
    """By Model.forward."""
    logits = case.model(case.rollout.tokens) / temperature
    labels = case.rollout.labels
    found = logits.log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return found * (labels != -100)


def test_log_probabilities_and_gradients_are_those_of_forward(learning: Any) -> None:
    case = answered(learning(), torch.float64)
    found, replay = log_probabilities(case)
    assert replay.used_up and not replay.differing[case.rollout.labels != -100].any()
    expected = from_logits(case)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    scale = torch.randn_like(found)
    weights = {n: w for n, w in case.model.named_parameters() if not n.startswith("mtp.")}
    one = torch.autograd.grad((found * scale).sum(), list(weights.values()))
    other = torch.autograd.grad((expected * scale).sum(), list(weights.values()))
    for name, a, b in zip(weights, one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, msg=name)


def test_engine_and_trainer_agree_in_float32(learning: Any) -> None:
    case = answered(learning())
    found, replay = log_probabilities(case)
    said = case.rollout.labels != -100
    assert (found - case.rollout.sampled)[said].abs().max() < 1e-5
    assert not replay.differing[said].any()


def test_engine_and_trainer_agree_in_bfloat16_as_far_as_it_goes(learning: Any) -> None:
    """tests/benchmarks/agreement.py has the figures: 0.05 at most over 1,901 tokens, 0.01 on average."""
    case = answered(learning(), torch.bfloat16)
    found, _ = log_probabilities(case)
    distance = (found - case.rollout.sampled)[case.rollout.labels != -100].abs()
    assert 0 < distance.mean() < 0.03 and distance.max() < 0.15


@pytest.mark.parametrize("name", ["minicpm3-4b", "tiny-window"])
def test_engine_and_trainer_agree_without_experts(emitted: Any, name: str) -> None:
    """A tied head, multipliers, windows and grouped queries."""
    data = shrunk(load(name)).model_dump() | {"rl": {"max_new_tokens": 8}}
    module = emitted(emit(build(ModelSpec.model_validate(data))))
    model = model_of(module)
    rollout = module("train.rollout").rollout(model, PROMPTS, frozenset({0}), seed=3)
    found = module("train.policy").model_log_probabilities(model, rollout.tokens, rollout.labels)
    expected = from_logits(Answered(module, model, rollout))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    said = rollout.labels != -100
    assert (found - rollout.sampled)[said].abs().max() < 1e-5


def test_a_temperature_is_that_of_the_draws(learning: Any) -> None:
    case = answered(learning(temperature=0.7))
    found, _ = log_probabilities(case)
    torch.testing.assert_close(found, from_logits(case, 0.7), rtol=1e-5, atol=1e-5)
    assert (found - case.rollout.sampled)[case.rollout.labels != -100].abs().max() < 1e-5


def test_answers_depend_on_their_own_seed_alone(learning: Any) -> None:
    case = answered(learning())
    alone = learning()("train.rollout").rollout(case.model, PROMPTS[2:3], frozenset({256}), seed=5)
    assert alone.answers[0] == case.rollout.answers[2] != case.rollout.answers[0]


def test_replay_restores_the_experts_of_the_rollout_and_the_gate_learns(learning: Any) -> None:
    """A router nudged after the rollout chooses others; with replay its layers see the same experts, weighed anew."""
    case = answered(learning(), torch.float64)
    before, _ = log_probabilities(case)
    gate = case.model.layers[1].mlp.gate
    gate.e_score_correction_bias += torch.linspace(0, 2, 8)  # takes part in the choice, not in the weights
    after, replay = log_probabilities(case)
    assert replay.differing.any()
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert (from_logits(case) - before).abs().max() > 1e-3  # without replay
    after.sum().backward()
    assert gate.weight.grad is not None and gate.weight.grad.abs().max() > 1e-6


def test_experts_of_another_rollout_change_the_result(learning: Any) -> None:
    case = answered(learning(), torch.float64)
    before, _ = log_probabilities(case)
    other, _ = log_probabilities(case, (case.rollout.experts + 1) % 8)
    assert (before - other).abs().max() > 1e-3


def test_no_expert_is_counted_and_no_bias_moves(learning: Any) -> None:
    case = answered(learning())
    case.model.train()
    log_probabilities(case)[0].sum().backward()
    for layer in case.model.layers[1:]:
        assert not layer.mlp.gate.expert_load.any()
    assert all(weight.grad is None for weight in case.model.mtp.parameters())


@pytest.mark.parametrize(("name", "left_out"), [("tiny-r1", 'LEFT_OUT = ("mtp",)'), ("tiny-window", None)])
def test_all_that_an_answer_depends_on_learns(name: str, left_out: str | None) -> None:
    """Layers too that are reached through a method of the model's own, which no function stands for."""
    spec = ModelSpec.model_validate({**load(name).model_dump(mode="json"), "rl": {}})
    lines = emit(build(spec))["train/learner.py"].splitlines()
    assert next((line.partition("  #")[0] for line in lines if line.startswith("LEFT_OUT")), None) == left_out
