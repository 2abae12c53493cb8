"""kernels/experts.py and the grouped products under it in the interpreter, against a plain formula in float64."""

import pytest
import torch
from kernels.lab import calc_diff, kernels, package, poisoned, printed, randn, spec_with, with_fault
from torch import Tensor

FILES = ("expert_dispatch", "grouped_gemm", "grouped_gemm_backward", "experts")
LIMIT = 0.626953125  # half way between two numbers of bfloat16: rounding takes nothing to the other side
BOUNDS = {torch.float32: 1e-12, torch.bfloat16: 1.5e-5}


def modules():
    return kernels(FILES)


def formula(
    tokens: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, shared: Tensor | None, experts: Tensor,
    limit: float = float("inf"),
):  # fmt: skip
    """The definition, token by token."""
    y = []
    for t, (token, ids) in enumerate(zip(tokens, experts, strict=True)):
        total = tokens.new_zeros(tokens.shape[1]) if shared is None else shared[t]
        for k, e in enumerate(ids.tolist()):
            gate, up = (gate_up[e] @ token).chunk(2)
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
            total = total + down[e] @ (gate * gate.sigmoid() * up * weights[t, k])
        y.append(total)
    return torch.stack(y)


def chosen(tokens: int, num_experts: int, top_k: int, seed: int = 0) -> Tensor:
    scores = torch.rand(tokens, num_experts, generator=torch.Generator().manual_seed(seed))
    return (scores / (1 + torch.arange(num_experts))).topk(top_k).indices


def arguments(experts: Tensor, num_experts: int, width: int, inner: int, dtype: torch.dtype) -> list[Tensor]:
    """tokens, weights, gate_up_proj, down_proj, shared: values of order one on every path."""
    tokens, top_k = experts.shape
    return [
        randn(tokens, width, dtype=dtype, seed=1),
        randn(tokens, top_k, seed=2),
        (randn(num_experts, 2 * inner, width, seed=3) / width**0.5).to(dtype),
        (randn(num_experts, width, inner, seed=4) / inner**0.5).to(dtype),
        randn(tokens, width, dtype=dtype, seed=5),
    ]


def check(
    files, experts: Tensor, num_experts: int, width: int, inner: int, dtype: torch.dtype, add: bool,
    limit: float = float("inf"),
) -> None:  # fmt: skip
    """Value and every gradient."""
    dispatch, *_, op = files
    given = [poisoned(x).requires_grad_() for x in arguments(experts, num_experts, width, inner, dtype)]
    given = given if add else given[:-1]
    wide = [x.detach().double().requires_grad_() for x in given]
    order, position, ends = (poisoned_ids(x) for x in dispatch.reference_sort(experts, num_experts))
    tokens, weights, gate_up, down, *shared = given
    y = op.routed_experts(tokens, weights, order, position, ends, gate_up, down, shared[0] if add else None)
    exact = formula(*wide[:4], wide[4] if add else None, experts, limit)
    assert calc_diff(y, exact) <= BOUNDS[dtype]
    dy = randn(*y.shape, dtype=dtype, seed=6)
    actual, expected = torch.autograd.grad(y, given, dy), torch.autograd.grad(exact, wide, dy.double())
    for a, e in zip(actual, expected, strict=True):
        assert calc_diff(a, e) <= BOUNDS[dtype]


def poisoned_ids(x: Tensor) -> Tensor:
    """Numbers between others that no table holds."""
    memory = torch.full((x.numel() + 128,), -(10**6), dtype=x.dtype)
    return memory[64:-64].view(x.shape).copy_(x)


CASES = {
    # experts [T, K], number of experts, D, F
    "even sizes": (chosen(40, 4, 2), 4, 128, 64),
    "odd sizes": (chosen(11, 6, 3), 6, 100, 37),
    "narrower than a tile": (chosen(9, 3, 1), 3, 5, 3),
    "one token": (chosen(1, 16, 4), 16, 32, 16),
    "one expert": (torch.zeros(70, 1, dtype=torch.int64), 1, 48, 24),
    "all tokens on one expert, the last": (torch.full((150, 1), 4), 5, 40, 72),
    "all tokens on one expert, the first": (torch.full((130, 1), 0), 5, 72, 40),
    "empty experts between": (torch.tensor([[1, 5], [5, 1], [1, 8]]), 9, 24, 136),
    "more than one group of row tiles": (chosen(300, 12, 2), 12, 16, 16),
}


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_formula(case: str, dtype: torch.dtype) -> None:
    check(modules(), *CASES[case], dtype, add=case != "odd sizes")


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("case", ["odd sizes", "empty experts between"])
def test_clamped(case: str, dtype: torch.dtype) -> None:
    """At a limit that a quarter of the gates and half of the ups are beyond."""
    clamped = kernels(FILES, ffn__swiglu_limit=LIMIT)
    check(clamped, *CASES[case], dtype, add=True, limit=LIMIT)
    with pytest.raises(AssertionError):
        check(modules(), *CASES[case], dtype, add=True, limit=LIMIT)


def test_many_rows_for_an_expert() -> None:
    """The tiles for training."""
    check(modules(), chosen(150, 2, 1), 2, 80, 48, torch.bfloat16, add=True)


@pytest.mark.parametrize("case", ["even sizes", "odd sizes", "empty experts between", "one expert"])
@pytest.mark.parametrize("limit", [None, LIMIT])
def test_the_references_equal_the_formula(case: str, limit: float | None) -> None:
    """In float64 no kernel runs: the plain forms are what both kernels and CPUs stand on."""
    experts, num_experts, width, inner = CASES[case]
    dispatch, *_, op = kernels(FILES, ffn__swiglu_limit=limit)
    given = [x.double().requires_grad_() for x in arguments(experts, num_experts, width, inner, torch.float64)]
    order, position, ends = dispatch.reference_sort(experts, num_experts)
    y = op.routed_experts(*given[:2], order, position, ends, *given[2:])
    exact = formula(*given, experts, limit or float("inf"))
    dy = randn(*y.shape, seed=6).double()
    assert calc_diff(y, exact) <= 1e-14
    for a, e in zip(torch.autograd.grad(y, given, dy), torch.autograd.grad(exact, given, dy), strict=True):
        assert calc_diff(a, e) <= 1e-14


def test_without_gradients_nothing_is_kept() -> None:
    dispatch, *_, op = modules()
    experts, num_experts, width, inner = CASES["odd sizes"]
    given = arguments(experts, num_experts, width, inner, torch.bfloat16)
    order, position, ends = dispatch.reference_sort(experts, num_experts)
    kept = [op._forward(*given[:2], order, position, ends, *given[2:], keep) for keep in (True, False)]
    assert torch.equal(kept[0][0], kept[1][0])
    assert kept[0][1].shape == (33, 74) and kept[1][1].numel() == 0
    assert torch.equal(op.routed_experts(*given[:2], order, position, ends, *given[2:]), kept[0][0])


def test_what_autograd_saves() -> None:
    """The arguments and the preactivation, nothing else: in the kernel's docstring, and counted by the planner."""
    dispatch, *_, op = modules()
    experts, num_experts, width, inner = CASES["odd sizes"]
    given = [x.requires_grad_() for x in arguments(experts, num_experts, width, inner, torch.bfloat16)]
    metadata = dispatch.reference_sort(experts, num_experts)
    saved: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: saved.setdefault(x.untyped_storage().data_ptr(), x.untyped_storage().nbytes()), lambda x: x
    ):
        op.routed_experts(*given[:2], *metadata, *given[2:])
    known = {x.untyped_storage().data_ptr() for x in (*given, *metadata)}
    assert [size for at, size in saved.items() if at not in known] == [33 * 74 * 2]


def test_the_same_bits_in_every_run() -> None:
    dispatch, *_, op = modules()
    experts, num_experts, width, inner = CASES["even sizes"]
    given = [x.requires_grad_() for x in arguments(experts, num_experts, width, inner, torch.bfloat16)]
    order, position, ends = dispatch.reference_sort(experts, num_experts)
    runs = []
    for _ in range(2):
        y = op.routed_experts(*given[:2], order, position, ends, *given[2:])
        runs.append((y, *torch.autograd.grad(y, given, torch.ones_like(y))))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_fake_results_are_like_real_ones() -> None:
    dispatch, *_, op = modules()
    experts, num_experts, width, inner = CASES["odd sizes"]
    tokens, weights, gate_up, down, shared = arguments(experts, num_experts, width, inner, torch.bfloat16)
    metadata = dispatch.reference_sort(experts, num_experts)
    utils = ("test_schema", "test_faketensor")
    for keep in (True, False):
        given = (tokens, weights, *metadata, gate_up, down, shared, keep)
        torch.library.opcheck(op._forward, given, test_utils=utils)
    pre = randn(33, 74, dtype=torch.bfloat16)
    torch.library.opcheck(op._backward, (shared, tokens, weights, *metadata, gate_up, down, pre), test_utils=utils)


def check_row_tiles(module) -> None:
    """Expert by expert, those with rows; more than the kernel writes at a time, and experts without rows."""
    ends, size = torch.tensor([0, 1700, 1700, 1716, 1733, 1733], dtype=torch.int32), 16
    tiles = module.row_tiles(ends, int(ends[-1]), {"BLOCK_M": size})
    starts = [0, *ends[:-1].tolist()]
    expected = [
        (expert, row, end)
        for expert, (start, end) in enumerate(zip(starts, ends.tolist(), strict=True))
        for row in range(start, end, size)
    ]
    assert [tile for tile in zip(*tiles.tolist(), strict=True) if tile[1] < tile[2]] == expected


def test_row_tiles() -> None:
    check_row_tiles(modules()[1])
    faulty = with_fault(printed(FILES, spec_with("tiny", {})), "tl.range(0, count, CHUNK)", "tl.range(0, CHUNK, CHUNK)")
    with pytest.raises(AssertionError):
        check_row_tiles(package(faulty, FILES)[1])


FAULTS = {
    "gate for up": ("load(w_ptrs + F * D + k", "load(w_ptrs + k"),
    "depth not masked": (
        "x = load(x_ptrs + k, mask_k[None, :], D % BLOCK_K != 0)",
        "x = load(x_ptrs + k, mask_k[None, :], False)",
    ),
    "routing weight left out": ("h *= tl.load(weights_ptr + slot).to(tl.float32)[:, None]", "pass"),
    "a token of another slot": ("tokens_ptr + (slot // CHOSEN)", "tokens_ptr + (offs_m // CHOSEN)"),
    "the expert before": ("tl.store(tile_ptrs, expert, mask", "tl.store(tile_ptrs, expert - 1, mask"),
    "down not transposed": (
        '{"STRIDE_N": 1, "STRIDE_K": k} if transposed',
        '{"STRIDE_N": 1, "STRIDE_K": k} if not transposed',
    ),
    "derivative of silu": (
        "    s = tl.sigmoid(gate)\n    return dy * up * s * (1 + gate",
        "    s = tl.sigmoid(gate)\n    return dy * up * s * (1 - gate",
    ),
    "routing weight left out of backward": ("dy = dh * weight\n", "dy = dh\n"),
    "the last row left out": (
        "tl.store(tile_ptrs + 2 * num_tiles, end,",
        "tl.store(tile_ptrs + 2 * num_tiles, end - 1,",
    ),
    "not gathered": ('GATHER_DY=by_token == "dy"', "GATHER_DY=False"),
    "half of dw": ("dw += _columns", "dw = _columns"),
    "shared left out": ("    if ADD:", "    if False:"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str) -> None:
    files = with_fault(printed(FILES, spec_with("tiny", {})), *FAULTS[fault])
    with pytest.raises(AssertionError):
        check(package(files, FILES), *CASES["odd sizes"], torch.float32, add=True)
