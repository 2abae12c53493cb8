"""kernels/weighted_swiglu.py in the interpreter: forward and backward against the plain formula in float64."""

import pytest
import torch
import torch.nn.functional as F
from kernels.lab import calc_diff, kernels, mutated, poisoned, randn
from torch import Tensor

DTYPES = {torch.float32: 1e-13, torch.bfloat16: 1e-5}


def formula(gate_up: Tensor, weight: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up * weight[:, None]


def check(module, rows: int, width: int, dtype: torch.dtype, weight_dtype: torch.dtype, bound: float) -> None:
    gate_up = poisoned(3 * randn(rows, 2 * width, dtype=dtype)).requires_grad_()
    weight = poisoned(randn(rows, dtype=weight_dtype, seed=1)).requires_grad_()
    dy = randn(rows, width, dtype=dtype, seed=2)
    y = module.weighted_swiglu(gate_up, weight)
    assert y.shape == (rows, width) and y.dtype is dtype
    dgate_up, dweight = torch.autograd.grad(y, (gate_up, weight), dy)
    assert dweight.dtype is weight_dtype

    wide = [t.detach().double().requires_grad_() for t in (gate_up, weight)]
    y_exact = formula(*wide)
    assert calc_diff(y, y_exact) <= bound
    exact = torch.autograd.grad(y_exact, wide, dy.double())
    assert calc_diff(dgate_up, exact[0]) <= bound
    # A sum over the row may cancel down to the rounding of its terms.
    assert calc_diff(dweight, exact[1]) <= (1e-11 if weight_dtype is torch.float32 else 1e-5)


@pytest.fixture(scope="module")
def swiglu():
    return kernels(("weighted_swiglu",))[0]


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_formula(swiglu, dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    for rows, width in ((1, 3), (7, 100), (37, 256), (3, 2048), (5, 5000)):
        check(swiglu, rows, width, dtype, weight_dtype, DTYPES[dtype])


def test_the_reference_is_the_formula(swiglu) -> None:
    shapes = ((5, 140), (5,), (5, 70))
    gate_up, weight, dy = (randn(*shape, dtype=torch.float64, seed=seed) for seed, shape in enumerate(shapes))
    inputs = gate_up.requires_grad_(), weight.requires_grad_()
    y = formula(*inputs)
    assert calc_diff(swiglu.reference(*inputs), y) <= 1e-15
    for actual, exact in zip(swiglu.reference_backward(dy, *inputs), torch.autograd.grad(y, inputs, dy), strict=True):
        assert calc_diff(actual, exact) <= 1e-15


def test_same_gradient_in_every_run(swiglu) -> None:
    gate_up, weight, dy = randn(3, 10_000), randn(3, seed=1), randn(3, 5000, seed=2)
    runs = [swiglu._backward(dy, gate_up, weight)[1] for _ in range(2)]
    assert torch.equal(*runs)


def test_an_expanded_gradient(swiglu) -> None:
    gate_up, weight = randn(3, 128).requires_grad_(), torch.ones(1).expand(3).requires_grad_()
    y = swiglu.weighted_swiglu(gate_up, weight)
    (actual,) = torch.autograd.grad(y.sum(), weight)
    assert calc_diff(actual, y.detach().double().sum(-1)) <= 1e-11


def test_fake_outputs_are_the_real_ones(swiglu) -> None:
    gate_up, weight = randn(5, 128, dtype=torch.bfloat16), randn(5)
    for op, arguments in (
        (swiglu.weighted_swiglu, (gate_up, weight)),
        (swiglu._backward, (gate_up[:, :64], gate_up, weight)),
    ):
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


FAULTS = {
    "forward without the weight": ("* up * weight\n    tl", "* up\n    tl"),
    "dup without the weight": ("(dy * weight * gate * s)", "(dy * gate * s)"),
    "dweight with the weight": ("tl.sum(dy * gate * s * up, 1)", "tl.sum(dy * gate * s * up * weight, 1)"),
    "halves swapped": ("gate_up_ptr + row * 2 * WIDTH + WIDTH + column", "gate_up_ptr + row * 2 * WIDTH + column"),
    "one block for all": ("partial_ptr + row * num_blocks + block", "partial_ptr + row * num_blocks"),
    "the slope of sigmoid": ("up * s * (1 + gate * (1 - s))\n    tl", "up * s * (1 - s)\n    tl"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str) -> None:
    module = mutated("weighted_swiglu", *FAULTS[fault])
    with pytest.raises(AssertionError):
        for width in (100, 5000):
            check(module, 7, width, torch.float32, torch.float32, 1e-13)
