"""kernels/swiglu_quantize.py in the interpreter: the codes of SwiGLU, then quantization, to the bit."""

from collections.abc import Sequence
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from kernels.lab import kernels, package, poisoned, printed, randn, spec_with, with_fault
from torch import Tensor

FILES = ("swiglu_quantize", "fp8_quantize", "swiglu")
FP8 = {"precision.linear.kind": "fp8_block"}
SIZES = ((1, 128), (7, 100), (130, 384), (37, 256), (128, 128))


def inputs(m: int, width: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return poisoned(3 * randn(m, 2 * width, dtype=dtype)).chunk(2, -1)


def same(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape and a.dtype is e.dtype
        bits = torch.uint8 if a.itemsize == 1 else torch.int32
        assert torch.equal(a.view(bits), e.view(bits))


def whole(y: Tensor) -> Tensor:
    """With rows of zeros up to whole blocks."""
    return F.pad(y, (0, 0, 0, -len(y) % 128))


def check(modules: Sequence[ModuleType], m: int, width: int, dtype: torch.dtype) -> None:
    fused, quantize, swiglu = modules
    gate, up = inputs(m, width, dtype)
    y = swiglu.swiglu(gate, up)
    same(fused.swiglu_quantize_rows(gate, up), quantize.quantize_rows(y))
    same(fused.swiglu_quantize_columns(gate, up), quantize.quantize_rows_and_columns(whole(y))[2:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", ["float32", "ue8m0"])
@pytest.mark.parametrize("limit", [None, 2.0])
def test_same_bits_as_in_two_steps(limit: float | None, scale: str, dtype: torch.dtype) -> None:
    changes = {"precision__linear__kind": "fp8_block", "precision__linear__scale": scale, "ffn__swiglu_limit": limit}
    for m, width in SIZES:
        check(kernels(FILES, **changes), m, width, dtype)


def test_the_reference_is_both_references() -> None:
    """What CPUs run, where the kernels do not: float64 is theirs everywhere."""
    fused, quantize, swiglu = kernels(FILES, precision__linear__kind="fp8_block")
    gate, up = (t.double() for t in inputs(7, 100, torch.bfloat16))
    y = swiglu.reference(gate.float(), up.float())
    same(fused.swiglu_quantize_rows(gate, up), quantize.reference_rows(y))
    same(fused.swiglu_quantize_columns(gate, up), quantize.reference_rows(whole(y).T))


def test_fake_outputs_are_the_real_ones() -> None:
    fused = kernels(FILES, precision__linear__kind="fp8_block")[0]
    for op in (fused.swiglu_quantize_rows, fused.swiglu_quantize_columns):
        arguments = inputs(5, 200, torch.bfloat16)
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


FAULTS = {
    "gate for up": ("y = swiglu_of(gate, up)", "y = swiglu_of(up, gate)"),
    "not rounded between": ("swiglu_of(gate, up).to(gate_ptr.dtype.element_ty).to(tl.float32)", "swiglu_of(gate, up)"),
    "the stride of gate": ("gate_ptr + offs_m[:, None] * gate_stride", "gate_ptr + offs_m[:, None] * F"),
    "columns as long as the rows are many": ("q_ptr, scale_ptr, padded_rows,", "q_ptr, scale_ptr, num_rows,"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str) -> None:
    modules = package(with_fault(printed(FILES, spec_with("tiny", FP8)), *FAULTS[fault]), FILES)
    with pytest.raises(AssertionError):
        check(modules, 130, 256, torch.bfloat16)
