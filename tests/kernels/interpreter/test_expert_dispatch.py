"""kernels/expert_dispatch.py in the interpreter: the sort exactly, the sums against the reference in float64."""

import pytest
import torch
from kernels.lab import calc_diff, kernels, mutated, poisoned, randn
from torch import Tensor

BOUNDS = {torch.float32: 1e-13, torch.bfloat16: 1e-5}


def dispatch():
    (module,) = kernels(("expert_dispatch",))
    return module


def chosen(tokens: int, num_experts: int, top_k: int, seed: int = 0) -> Tensor:
    """top_k different experts for each token, low numbers more often."""
    scores = torch.rand(tokens, num_experts, generator=torch.Generator().manual_seed(seed))
    return (scores / (1 + torch.arange(num_experts))).topk(top_k).indices


SLOTS = {
    "one token": (chosen(1, 16, 4), 16),
    "one expert": (torch.zeros(5, 1, dtype=torch.int64), 1),
    "all tokens on one expert": (torch.full((300, 2), 5), 7),
    "the last expert only": (torch.full((3, 1), 255), 256),
    "more experts than slots": (chosen(3, 257, 8), 257),
    "several blocks of slots": (chosen(700, 6, 3), 6),
    "exactly one block": (chosen(128, 256, 4), 256),
    "many blocks": (chosen(2200, 16, 4), 16),
    "int32 ids, batch and sequence": (chosen(24, 9, 2).int().view(4, 6, 2), 9),
}


def check_sort(module, experts: Tensor, num_experts: int) -> None:
    order, position, ends = module.sort_by_expert(experts, num_experts)
    ids = experts.flatten()
    sorted_ids, slots = ids.sort(stable=True)
    assert torch.equal(order, slots.int())
    assert torch.equal(order[position.flatten().long()], torch.arange(ids.numel(), dtype=torch.int32))
    assert position.shape == (ids.numel() // experts.shape[-1], experts.shape[-1])
    assert torch.equal(ends, torch.searchsorted(sorted_ids, torch.arange(num_experts), right=True).int())


@pytest.mark.parametrize("case", SLOTS)
def test_sort_equals_torch(case: str) -> None:
    check_sort(dispatch(), *SLOTS[case])


def test_reference_sort_equals_torch() -> None:
    for experts, num_experts in SLOTS.values():
        order, position, ends = dispatch().reference_sort(experts, num_experts)
        for actual, expected in zip(
            (order, position, ends), dispatch().sort_by_expert(experts, num_experts), strict=True
        ):
            assert torch.equal(actual, expected)


def check_combine(module, tokens: int, width: int, top_k: int, dtype: torch.dtype, add: bool) -> None:
    """Value and gradients against a plain formula in float64."""
    experts = chosen(tokens, 2 * top_k, top_k)
    _, position, _ = module.reference_sort(experts, 2 * top_k)
    rows = poisoned(randn(tokens * top_k, width, dtype=dtype)).requires_grad_()
    shared = poisoned(randn(tokens, width, dtype=dtype, seed=1)).requires_grad_() if add else None
    dy = randn(tokens, width, dtype=dtype, seed=2)
    given = [rows, shared] if add else [rows]
    wide = [t.detach().double().requires_grad_() for t in given]

    y = module.combine(rows, position, shared)
    exact = sum((wide[0][position[:, k]] for k in range(top_k)), start=wide[1] if add else 0)
    assert calc_diff(y, exact) <= BOUNDS[dtype]
    actual, expected = torch.autograd.grad(y, given, dy), torch.autograd.grad(exact, wide, dy.double())
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a.double(), e)  # copies of dy
    assert torch.equal(
        module.reference_combine(*(t.detach() for t in (wide[0], position)), None if not add else wide[1]), exact
    )
    assert torch.equal(module.reference_spread(dy, position).double(), expected[0])


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("width", [3, 100, 1024, 1500])
def test_combine(width: int, dtype: torch.dtype, add: bool) -> None:
    for tokens, top_k in ((1, 1), (7, 3), (12, 8)):
        check_combine(dispatch(), tokens, width, top_k, dtype, add)


def test_an_expanded_gradient() -> None:
    _, position, _ = dispatch().reference_sort(chosen(5, 4, 2), 4)
    rows = randn(10, 24).requires_grad_()
    dispatch().combine(rows, position, None).sum().backward()
    assert torch.equal(rows.grad, torch.ones(10, 24))


def test_fake_results_are_like_real_ones() -> None:
    module, experts = dispatch(), chosen(5, 4, 2)
    _, position, _ = module.reference_sort(experts, 4)
    utils = ("test_schema", "test_faketensor")
    torch.library.opcheck(module.sort_by_expert, (experts, 4), test_utils=utils)
    torch.library.opcheck(module.combine, (randn(10, 24), position, randn(5, 24)), test_utils=utils)
    torch.library.opcheck(module._spread, (randn(5, 24), position), test_utils=utils)


FAULTS = {
    "not stable": ("(before[None, :] < slot[:, None])", "(before[None, :] > slot[:, None])"),
    "a slot not counted": ("BLOCK_E, mask=ids >= 0)", "BLOCK_E, mask=(ids >= 0) & (slot < num_slots - 1))"),
    "chunks skipped": ("tl.range(0, SLOTS, CHUNK)", "tl.range(0, SLOTS, 2 * CHUNK)"),
    "blocks before left out": ("tl.cumsum(counts, 0) - counts", "0 * counts"),
    "a term left out": ("y += tl.load(rows_ptr", "y = tl.load(rows_ptr"),
    "shared left out": ("if ADD:", "if False:"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str) -> None:
    module = mutated("expert_dispatch", *FAULTS[fault])
    with pytest.raises(AssertionError):
        for case in ("several blocks of slots", "one token", "many blocks"):
            check_sort(module, *SLOTS[case])
        check_combine(module, 7, 100, 3, torch.float32, add=True)
