"""kernels/fp8_linear_again.py in the interpreter: bit by bit what kernels/fp8_linear.py makes, with no codes kept."""

from types import ModuleType

import pytest
import torch
from kernels.interpreter.test_fp8_gemm import CHANGES
from kernels.interpreter.test_fp8_linear import saved_by
from kernels.lab import kernels, mutated, randn

FILES = ("fp8_quantize", "fp8_gemm", "fp8_linear", "fp8_linear_again")


def modules() -> list[ModuleType]:
    return kernels(FILES, **CHANGES)


def check_same(again: ModuleType, rows: int) -> None:
    """Results and gradients of layers that share an input."""
    *_, linear, _ = modules()
    x, *weights = (
        randn(*shape, dtype=torch.bfloat16, seed=i).requires_grad_()
        for i, shape in enumerate(((2, rows, 192), (48, 192), (80, 192)))
    )
    found = []
    for products in (linear.fp8_linears, again.fp8_linears_encoding_again):
        ys = products(x, weights)
        dys = [randn(*y.shape, dtype=torch.bfloat16, seed=5) for y in ys]
        found.append((*ys, *torch.autograd.grad(ys, (x, *weights), dys)))
    for kept, made in zip(*found, strict=True):
        assert kept.shape == made.shape and torch.equal(kept, made)


@pytest.mark.parametrize("rows", [0, 1, 37, 128])
def test_as_where_codes_are_kept(rows: int) -> None:
    check_same(modules()[-1], rows)


def test_one_layer() -> None:
    *_, linear, again = modules()
    x, weight = randn(9, 128, dtype=torch.bfloat16), randn(80, 128, dtype=torch.bfloat16, seed=1)
    assert torch.equal(again.fp8_linear_encoding_again(x, weight), linear.fp8_linear(x, weight))


def test_x_alone_is_saved() -> None:
    *_, again = modules()
    x, *weights = (randn(*s, dtype=torch.bfloat16).requires_grad_() for s in ((256, 128), (48, 128), (80, 128)))
    (kept,) = saved_by(lambda: again.fp8_linears_encoding_again(x, weights), weights)
    assert kept.data_ptr() == x.data_ptr() and kept.shape == x.shape


def test_operators() -> None:
    """Schemas, and what FakeTensor is told, are those of the real ones."""
    again = modules()[-1]
    x, dy = randn(37, 200, dtype=torch.bfloat16), randn(37, 80, dtype=torch.bfloat16)
    weights = [randn(80, 200, dtype=torch.bfloat16), randn(80, 200)]
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(again._forward, (x, weights), test_utils=checks)
    torch.library.opcheck(again._backward, ([dy, dy], x, weights), test_utils=checks)


FAULTS = {
    "rows are encoded in the place of others": (
        "_, _, x_q, x_scale = quantize_rows_and_columns(padded(x))",
        "_, _, x_q, x_scale = quantize_rows_and_columns(padded(x.roll(1, 0)))",
    ),
    "another x is saved": ("ctx.save_for_backward(x, *weights)", "ctx.save_for_backward(x.flip(-1), *weights)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str) -> None:
    with pytest.raises(AssertionError):
        check_same(mutated("fp8_linear_again", *FAULTS[fault], **CHANGES), 37)
