"""The choice of experts is exact: groups, bias, ties, and numbers at the ends of their range."""

import pytest
import torch
from numerics import reference
from numerics.harness import Compile, Package, relative_error
from numerics.specs import SOFTMAX, SPECS, spec_text
from torch import Tensor, nn
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

BASE = spec_text()
HIDDEN, EXPERTS = 32, 8

CHOOSERS = {
    "base": BASE,
    "one_group": spec_text(
        ffn__moe__router={"score": "sigmoid", "selection_bias": True, "norm_topk_prob": True},
    ),
    **{name: SPECS[name] for name in SPECS if name.startswith(("softmax", "sigmoid", "groups"))},
}


def router_of(package: Package, weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    router: nn.Module = package.model.Router().to(weight.dtype)
    router.weight.data.copy_(weight)
    if bias is not None:
        router.e_score_correction_bias.copy_(bias)
    return router


def chosen(router: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Experts in ascending order and their weights, [T, K] each, of tokens x [T, D]."""
    experts, weights, *_ = router(x[None])
    experts, order = experts[0].sort(-1)
    return experts, weights[0].gather(-1, order)


@pytest.mark.parametrize("bias_range", [(-0.3, 0.3), (-1.0, -0.7), (-1.0, 1.0)], ids=str)
@pytest.mark.parametrize("name", CHOOSERS)
def test_choice_and_weights(name: str, bias_range: tuple[float, float], compiled: Compile) -> None:
    package = compiled(CHOOSERS[name])
    moe = package.spec.moe()
    has_bias = moe.router.selection_bias
    weight, x = torch.randn(EXPERTS, HIDDEN).double() / 4, torch.randn(200, HIDDEN).double()
    # The bias itself stays in float32.
    bias = torch.empty(EXPERTS).uniform_(*bias_range) if has_bias else None
    experts, weights = chosen(router_of(package, weight, bias), x)
    scores = reference.scores_of(x, weight, moe.router)
    for token, row in enumerate(scores):
        choice = reference.choose(row, bias, moe)
        expected = dict(zip(choice.experts, choice.weights, strict=True))
        assert experts[token].tolist() == sorted(expected)
        torch.testing.assert_close(weights[token], torch.stack([expected[e] for e in sorted(expected)]))


@pytest.mark.parametrize("bias_range", [(0.0, 0.0), (-1.0, -1.0), (-1.0, 1.0)], ids=str)
def test_ties_are_broken_as_in_transformers(bias_range: tuple[float, float], compiled: Compile) -> None:
    """Small whole numbers make exact products, and so many equal scores."""
    config = DeepseekV3Config(
        hidden_size=HIDDEN, n_routed_experts=EXPERTS, num_experts_per_tok=3, n_group=4, topk_group=2
    )
    theirs = DeepseekV3TopkRouter(config)
    weight = torch.randint(-1, 2, (EXPERTS, HIDDEN)).float()
    weight[:, 4:] = 0
    bias = torch.empty(EXPERTS).uniform_(*bias_range).mul(2).round() / 2
    theirs.weight.data.copy_(weight)
    theirs.e_score_correction_bias.copy_(bias)
    x = torch.randint(-1, 2, (500, HIDDEN)).float()
    _, their_weights, their_experts = theirs(x)
    their_experts, order = their_experts.sort(-1)
    experts, weights = chosen(router_of(compiled(BASE), weight, bias), x)
    scores = x @ weight.T
    assert sum(len(set(row)) < EXPERTS for row in scores.tolist()) > 400, "there are hardly any ties"
    assert torch.equal(experts, their_experts)
    torch.testing.assert_close(weights, their_weights.gather(-1, order), rtol=1e-6, atol=0)


def test_ties_never_leave_the_open_groups(compiled: Compile) -> None:
    """All scores equal, all biased ones negative: any choice is right that stays in two groups and repeats nobody."""
    package = compiled(BASE)
    router = router_of(package, torch.zeros(EXPERTS, HIDDEN), torch.full((EXPERTS,), -1.0))
    experts, weights = chosen(router, torch.randn(64, HIDDEN))
    for row in experts.tolist():
        assert len(set(row)) == 3
        assert len({expert // 2 for expert in row}) <= 2
    torch.testing.assert_close(weights, torch.full_like(weights, 2.5 / 3))


def test_the_bias_chooses_and_does_not_weigh(compiled: Compile) -> None:
    package = compiled(BASE)
    weight, x = torch.randn(EXPERTS, HIDDEN) / 4, torch.randn(50, HIDDEN)
    bias = torch.tensor([5.0, 5.0, 5.0, -5.0, -5.0, -5.0, -5.0, -5.0])
    experts, weights = chosen(router_of(package, weight, bias), x)
    assert experts.unique().tolist() == [0, 1, 2]
    scores = (x @ weight[:3].T).sigmoid()
    torch.testing.assert_close(weights, scores / scores.sum(-1, keepdim=True) * 2.5)


def test_a_chosen_expert_learns_and_the_bias_does_not(compiled: Compile) -> None:
    router = router_of(compiled(BASE), torch.randn(EXPERTS, HIDDEN) / 4)
    _, weights, *_ = router(torch.randn(1, 5, HIDDEN))
    weights.square().sum().backward()
    assert router.weight.grad is not None and router.weight.grad.abs().sum() > 0
    assert not router.e_score_correction_bias.requires_grad
    assert "e_score_correction_bias" not in dict(router.named_parameters())


def test_vanishing_scores_give_no_nan(compiled: Compile) -> None:
    """sigmoid(-200) is 0 in float32: the guard of 1e-20 makes the weights 0 instead of 0 / 0."""
    weight = torch.zeros(EXPERTS, HIDDEN)
    weight[:, 0] = -200.0
    x = torch.zeros(3, HIDDEN)
    x[:, 0] = 1.0
    _, weights = chosen(router_of(compiled(BASE), weight), x)
    assert torch.equal(weights, torch.zeros_like(weights))


def test_gates_compute_in_float32_under_bfloat16(compiled: Compile) -> None:
    """router.compute_dtype float32: the product of bfloat16 operands is not rounded to bfloat16."""
    weight, x = torch.randn(EXPERTS, HIDDEN).bfloat16(), torch.randn(300, HIDDEN).bfloat16()
    exact, exact_weights = chosen(router_of(compiled(BASE), weight), x)
    expected, expected_weights = chosen(router_of(compiled(BASE), weight.float()), x.float())
    assert torch.equal(exact, expected) and torch.equal(exact_weights, expected_weights)
    _, rounded = chosen(router_of(compiled(SPECS["gate_in_the_model's_type"]), weight), x)
    assert relative_error(rounded, expected_weights) > 1e-4, "the other compute_dtype should round"


def test_softmax_is_over_all_experts_before_the_choice(compiled: Compile) -> None:
    package = compiled(spec_text(ffn__moe__router={**SOFTMAX, "norm_topk_prob": False}))
    weight, x = torch.randn(EXPERTS, HIDDEN) / 4, torch.randn(50, HIDDEN)
    _, weights = chosen(router_of(package, weight), x)
    assert (weights.sum(-1) < 1).all()
