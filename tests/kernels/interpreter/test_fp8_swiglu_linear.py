"""kernels/fp8_swiglu_linear.py in the interpreter: SwiGLU and its product, against the quantized formula in float64."""

from collections.abc import Sequence
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from kernels.interpreter.test_fp8_gemm import BOUNDS, CHANGES, exact
from kernels.lab import calc_diff, kernels, package, poisoned, printed, randn, spec_with, with_fault
from torch import Tensor

FILES = ("fp8_quantize", "swiglu", "fp8_linear", "fp8_swiglu_linear")
SIZES = [(1, 128, 48), (37, 200, 136), (130, 384, 80), (256, 128, 128)]  # M, F, D
RECODED = 1e-6  # where SwiGLU in float64 is rounded to another code than SwiGLU in float32


def modules() -> list[ModuleType]:
    return kernels(FILES, **CHANGES)


def inputs(m: int, width: int, out: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """gate, up, weight, dy."""
    gate, up = poisoned(2 * randn(m, 2 * width, dtype=dtype)).chunk(2, -1)
    weight = (randn(out, width, seed=1) * width**-0.5).to(dtype)
    return gate, up, weight, randn(m, out, dtype=dtype, seed=2)


def results(op: ModuleType, gate: Tensor, up: Tensor, weight: Tensor, dy: Tensor) -> list[Tensor]:
    given = [x.detach().requires_grad_() for x in (gate, up, weight)]
    y = op.fp8_swiglu_linear(*given)
    return [y.detach(), *torch.autograd.grad(y, given, dy)]


def check(files: Sequence[ModuleType], m: int, width: int, out: int, dtype: torch.dtype) -> None:
    quantize, *_, op = files
    gate, up, weight, dy = inputs(m, width, out, dtype)
    wide = [x.double().requires_grad_() for x in (gate, up)]
    h = F.silu(wide[0]) * wide[1]
    rounded = h.detach().to(dtype)
    codes, scale = quantize.reference_blocks(weight)
    dh = exact(*quantize.reference_rows(dy), codes.T, scale.T)
    expected = [
        exact(*quantize.reference_rows(rounded), codes, scale),
        *torch.autograd.grad(h, wide, dh.to(dtype).double()),
        exact(*quantize.reference_rows(dy.T), *quantize.reference_rows(rounded.T)),
    ]
    for actual, formula in zip(results(op, gate, up, weight, dy), expected, strict=True):
        assert actual.dtype is dtype
        assert calc_diff(actual, formula) <= max(BOUNDS[dtype], RECODED)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("sizes", SIZES)
def test_equals_the_quantized_formula(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    check(modules(), *sizes, dtype)


@pytest.mark.parametrize("dtype", BOUNDS)
def test_same_bits_as_in_two_steps(dtype: torch.dtype) -> None:
    """SwiGLU, then a linear layer: codes are the same, and so is all that is made of them."""
    _, swiglu, linear, op = modules()
    for sizes in SIZES:
        *given, dy = inputs(*sizes, dtype)
        gate, up, weight = (x.detach().requires_grad_() for x in given)
        y = linear.fp8_linear(swiglu.swiglu(gate, up), weight)
        apart = [y, *torch.autograd.grad(y, (gate, up, weight), dy)]
        assert all(torch.equal(a, b) for a, b in zip(results(op, *given, dy), apart, strict=True))


def test_gate_and_up_alone_are_kept() -> None:
    gate, up, weight, _ = (x.detach().requires_grad_() for x in inputs(9, 128, 48, torch.bfloat16))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        modules()[-1].fp8_swiglu_linear(gate, up, weight)
    assert {x.data_ptr() for x in kept} == {x.data_ptr() for x in (gate, up, weight)}


def test_leading_dims_and_no_rows() -> None:
    *_, op = modules()
    gate, up, weight, _ = inputs(6, 128, 48, torch.bfloat16)
    flat = op.fp8_swiglu_linear(gate, up, weight)
    assert torch.equal(op.fp8_swiglu_linear(gate.view(2, 3, 128), up.view(2, 3, 128), weight), flat.view(2, 3, 48))
    assert op.fp8_swiglu_linear(gate[:0], up[:0], weight).shape == (0, 48)


def test_operators() -> None:
    """Schemas, and what FakeTensor is told, are those of the real ones."""
    *_, op = modules()
    gate, up, weight, dy = inputs(37, 200, 136, torch.bfloat16)
    for operator, arguments in ((op._forward, (gate, up, weight)), (op._backward, (dy, gate, up, weight))):
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


FAULTS = {
    "gate for up": ("swiglu_quantize_rows(gate, up), *codes", "swiglu_quantize_rows(up, gate), *codes"),
    "gradient of another order": ("*swiglu_backward(dh, gate, up), dweight", "*swiglu_backward(dh, up, gate), dweight"),
    "h of backward is not h": ("*swiglu_quantize_columns(gate, up), w", "*swiglu_quantize_columns(up, gate), w"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str) -> None:
    spec = spec_with("tiny", {key.replace("__", "."): value for key, value in CHANGES.items()})
    files = package(with_fault(printed(FILES, spec), *FAULTS[fault]), FILES)
    with pytest.raises(AssertionError):
        check(files, 37, 200, 136, torch.float32)
