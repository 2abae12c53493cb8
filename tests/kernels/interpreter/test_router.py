"""kernels/router.py in the interpreter: exact ids, weights and gradients against the formulas in float64."""

import math
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.lab import calc_diff, kernels, mutated, poisoned, randn
from torch import Tensor

BOUND = 1e-11  # measured 2e-12, in the gradient: 1 - s cancels where a score is nearly one


def rules(**changes: Any) -> dict[str, Any]:
    """Keys of the spec for a router, over those of tiny: sigmoid, a bias, 2 of 4 groups by their two best, 4 of 16."""
    keys = {f"ffn__moe__router__{key}": value for key, value in changes.items() if key not in ("experts", "top_k")}
    keys |= {"ffn__moe__router__balance": None}
    keys |= {"ffn__moe__n_routed_experts": changes.get("experts", 16)}
    return keys | {"ffn__moe__num_experts_per_tok": changes.get("top_k", 4)}


UNGROUPED = {"n_group": 1, "topk_group": 1, "group_score": None}
ROUTERS = {
    "deepseek-v3": {"experts": 256, "top_k": 8, "n_group": 8, "topk_group": 4},
    "deepseek-v2": {
        "experts": 160, "top_k": 6, "n_group": 8, "topk_group": 3, "group_score": "max",
        "score": "softmax", "selection_bias": False, "norm_topk_prob": False, "routed_scaling_factor": 16.0,
    },
    "kimi-k2": {"experts": 384, "top_k": 8, **UNGROUPED},
    "qwen3": {"experts": 128, "top_k": 8, **UNGROUPED, "score": "softmax", "selection_bias": False,
              "routed_scaling_factor": 1.0},
    "one of six": {"experts": 6, "top_k": 1, **UNGROUPED, "score": "softmax", "norm_topk_prob": False},
    "three groups of five": {"experts": 15, "top_k": 3, "n_group": 3, "topk_group": 1},
    "unnormed sigmoid": {"experts": 12, "top_k": 12, **UNGROUPED, "norm_topk_prob": False, "selection_bias": False},
}  # fmt: skip


def biased(name: str) -> bool:
    return ROUTERS[name].get("selection_bias", True)


def router(name: str) -> ModuleType:
    return kernels(("router",), **rules(**ROUTERS[name]))[0]


def route(module: ModuleType, name: str, logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return module.route(logits, bias) if biased(name) else module.route(logits)


def by_hand(name: str, scores: list[float], bias: list[float]) -> list[int]:
    """The ids of one token, by sorting Python numbers."""
    changes = {"n_group": 4, "topk_group": 2, "group_score": "top2_sum", **ROUTERS[name]}
    groups, size = changes["n_group"], len(scores) // changes["n_group"]
    choice = [torch.tensor(s).add(b).item() for s, b in zip(scores, bias, strict=True)]
    if changes["topk_group"] < groups:
        members = [sorted(choice[size * g : size * (g + 1)], reverse=True) for g in range(groups)]
        best = [torch.tensor(m[0]).add(m[1]).item() if changes["group_score"] == "top2_sum" else m[0] for m in members]
        open_groups = sorted(range(groups), key=lambda g: (-best[g], g))[: changes["topk_group"]]
        choice = [c if e // size in open_groups else -math.inf for e, c in enumerate(choice)]
    return sorted(range(len(scores)), key=lambda e: (-choice[e], e))[: changes["top_k"]]


def check(module: ModuleType, name: str, logits: Tensor, bias: Tensor) -> None:
    """ids as the reference and as by hand; weights and gradients as the formulas in float64 for those ids."""
    logits = poisoned(logits).requires_grad_()
    bias = poisoned(bias)
    ids, weights = route(module, name, logits, bias)
    expected, _ = module.reference(logits, bias) if biased(name) else module.reference(logits)
    assert ids.dtype is torch.int64 and torch.equal(ids, expected)

    wide = logits.detach().double().requires_grad_()
    changes = {"score": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": 2.5, **ROUTERS[name]}
    scores = wide.softmax(-1) if changes["score"] == "softmax" else wide.sigmoid()
    exact = scores.gather(-1, ids)
    if changes["norm_topk_prob"]:
        exact = exact / (exact.sum(-1, keepdim=True) + (0 if changes["score"] == "softmax" else 1e-20))
    exact = exact * changes["routed_scaling_factor"]
    assert calc_diff(weights, exact) <= BOUND
    g = randn(*weights.shape, seed=5)
    (actual,) = torch.autograd.grad(weights, logits, g)
    (dlogits,) = torch.autograd.grad(exact, wide, g.double())
    if exact.shape[-1] == 1 and changes["norm_topk_prob"]:
        assert float(actual.abs().max()) <= 1e-6  # the weight is constant
    else:
        assert calc_diff(actual, dlogits) <= BOUND


@pytest.mark.parametrize("name", ROUTERS)
def test_random_logits(name: str) -> None:
    module = router(name)
    for tokens in (1, 3, 37):
        logits = 3 * randn(tokens, module.NUM_EXPERTS)
        check(module, name, logits, 0.1 * randn(module.NUM_EXPERTS, seed=1))


@pytest.mark.parametrize("name", ROUTERS)
def test_ties(name: str) -> None:
    """All equal, a few levels, saturated scores, and more -inf than may be left out."""
    module = router(name)
    experts = module.NUM_EXPERTS
    few = torch.randint(0, 3, (9, experts), generator=torch.Generator().manual_seed(0)).float()
    for logits in (torch.zeros(2, experts), few, 40 + few):
        check(module, name, logits, torch.zeros(experts))
    nearly_all = torch.full((3, experts), -math.inf)
    nearly_all[0, -1], nearly_all[1, 0], nearly_all[2, experts // 2] = 1.0, 1.0, 1.0
    ids, _ = route(module, name, nearly_all, torch.zeros(experts))
    scores = [[0.0 if x == -math.inf else 1.0 for x in row] for row in nearly_all.tolist()]
    assert ids.tolist() == [by_hand(name, row, [0.0] * experts) for row in scores]


@pytest.mark.parametrize("name", [name for name in ROUTERS if biased(name)])
def test_a_bias_of_any_sign(name: str) -> None:
    """Closed groups are -inf, not zero, which negative choices would lose to; -inf may be a bias too."""
    module = router(name)
    logits, bias = randn(5, module.NUM_EXPERTS), -5 + 0.1 * randn(module.NUM_EXPERTS, seed=1)
    check(module, name, logits, bias)
    bias[::2] = -math.inf
    check(module, name, logits, bias)


SMALL = [
    name for name in ROUTERS if "expert" not in name and name not in ("deepseek-v3", "deepseek-v2", "kimi-k2", "qwen3")
]


@pytest.mark.parametrize("name", SMALL)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_ids_as_by_hand(name: str, data: st.DataObject) -> None:
    """Logits of few levels: mostly ties. Scores are taken from PyTorch, the choice among them is Python's."""
    module = router(name)
    levels = st.sampled_from([-2.0, -1.0, 0.0, 1.0])
    experts = module.NUM_EXPERTS
    logits = torch.tensor(data.draw(st.lists(levels, min_size=experts, max_size=experts)))
    bias = torch.tensor(data.draw(st.lists(levels, min_size=experts, max_size=experts))) if biased(name) else None
    scores = logits.softmax(-1) if ROUTERS[name].get("score") == "softmax" else logits.sigmoid()
    no_bias = torch.zeros(experts)
    ids, _ = route(module, name, logits[None], no_bias if bias is None else bias)
    assert ids[0].tolist() == by_hand(name, scores.tolist(), (no_bias if bias is None else bias).tolist())


@pytest.mark.parametrize("name", ["deepseek-v3", "qwen3"])
def test_nan_never_makes_an_id_of_no_expert(name: str) -> None:
    module = router(name)
    logits = randn(3, module.NUM_EXPERTS)
    logits[0, 5], logits[1] = math.nan, math.nan
    ids, weights = route(module, name, logits, torch.zeros(module.NUM_EXPERTS))
    assert bool(((ids >= 0) & (ids < module.NUM_EXPERTS)).all())
    assert all(len(set(row)) == module.TOP_K for row in ids.tolist())
    assert bool(weights[0].isnan().any()) and bool(weights[1].isnan().all()) and bool(weights[2].isfinite().all())


@pytest.mark.parametrize("name", ROUTERS)
def test_the_reference_backward(name: str) -> None:
    """In float64, which runs the references, against autograd of the reference."""
    module = router(name)
    logits = 2 * randn(7, module.NUM_EXPERTS, dtype=torch.float64)
    arguments = [logits.requires_grad_()] + ([randn(module.NUM_EXPERTS, seed=1).double()] if biased(name) else [])
    g = randn(7, module.TOP_K, seed=2).double()
    (actual,) = torch.autograd.grad(module.route(*arguments)[1], logits, g)
    (exact,) = torch.autograd.grad(module.reference(*arguments)[1], logits, g)
    assert calc_diff(actual, exact) <= 1e-15 or exact.abs().max() <= 1e-15


def test_batches_of_sequences_and_an_expanded_gradient() -> None:
    name, module = "deepseek-v3", router("deepseek-v3")
    logits, bias = randn(2, 5, 256).requires_grad_(), torch.zeros(256)
    ids, weights = module.route(logits, bias)
    assert ids.shape == weights.shape == (2, 5, 8)
    assert torch.equal(ids.flatten(0, 1), route(module, name, logits.detach().flatten(0, 1), bias)[0])
    (dlogits,) = torch.autograd.grad(weights.sum(), logits)  # weights sum to 2.5 whatever the logits
    assert float(dlogits.abs().max()) <= 1e-6


@pytest.mark.parametrize("name", ["deepseek-v3", "qwen3"])
def test_fake_outputs_are_the_real_ones(name: str) -> None:
    module = router(name)
    logits = randn(2, 5, module.NUM_EXPERTS)
    arguments = (logits, torch.zeros(module.NUM_EXPERTS)) if biased(name) else (logits,)
    ids, weights = module.route(*arguments)
    for op, args in ((module.route, arguments), (module._backward, (weights, logits, ids))):
        torch.library.opcheck(op, args, test_utils=("test_schema", "test_faketensor"))


FAULTS = {
    "the largest id of equals": ("tl.min(tl.where(available & (x == largest), index, NONE), 1)",
                                 "tl.max(tl.where(available & (x == largest), index, 0), 1)", "deepseek-v3"),
    "masked groups at zero": ("tl.where(masked[:, :, None], float(\"-inf\"), choice)",
                              "tl.where(masked[:, :, None], 0.0, choice)", "deepseek-v3"),
    "one expert for a group": ("float(\"-inf\"), choice), 2)\n    group =", "0.0, 0.0 * choice), 2)\n    group =",
                               "deepseek-v3"),
    "the bias in the weights": ("tl.where(available & (expert == chosen), scores, 0.0)",
                                "tl.where(available & (expert == chosen), choice, 0.0)", "kimi-k2"),
    "weights not scaled": ("weights * FACTOR", "weights", "deepseek-v3"),
    "the sum not differentiated": ("(g - tl.sum(g * s / total, 1)[:, None]) / total", "g / total", "deepseek-v3"),
    "the slope of sigmoid": ("g * s * (1 - s)", "g * s", "deepseek-v3"),
    "the slope of softmax": ("scores * (dlogits - tl.sum(g * s, 1)[:, None])", "scores * dlogits", "deepseek-v2"),
    "padding counted in softmax": ("mask=real & (offs_m < num_rows), other=float(\"-inf\")",
                                   "mask=real & (offs_m < num_rows), other=0.0", "deepseek-v2"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str) -> None:
    old, new, name = FAULTS[fault]
    module = mutated("router", old, new, **rules(**ROUTERS[name]))
    experts = module.NUM_EXPERTS
    with pytest.raises(AssertionError):
        for shift in (0.0, -5.0):
            check(module, name, 3 * randn(7, experts), shift + randn(experts, seed=1))
        check(module, name, torch.zeros(2, experts), torch.zeros(experts))
