"""kernels/swiglu_quantize.py in the interpreter: the codes of SwiGLU, then quantisation, to the bit."""

import inspect

import pytest
import torch
from kernels.lab import kernels, package, poisoned, printed, randn, spec_with
from torch import Tensor

FILES = ("swiglu_quantize", "fp8_quantize", "swiglu", "weighted_swiglu")
FP8 = {"precision.linear.kind": "fp8_block"}
SIZES = ((1, 128), (7, 100), (130, 384), (37, 256))


def inputs(m: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    gate_up, weight = poisoned(3 * randn(m, 2 * width, dtype=dtype)), poisoned(randn(m, seed=1))
    return *gate_up.chunk(2, -1), weight


def same(actual, expected) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape and a.dtype is e.dtype
        bits = torch.uint8 if a.itemsize == 1 else torch.int32
        assert torch.equal(a.view(bits), e.view(bits))


def check(modules, m: int, width: int, dtype: torch.dtype) -> None:
    fused, quantize, swiglu, weighted = modules
    gate, up, weight = inputs(m, width, dtype)
    for y, arguments in (
        (swiglu.swiglu(gate, up), (gate, up)),
        (weighted.weighted_swiglu(torch.cat((gate, up), -1), weight), (gate, up, weight)),
    ):
        same(fused.swiglu_quantize_rows(*arguments), quantize.quantize_rows(y))
        same(fused.swiglu_quantize_rows_and_columns(*arguments), quantize.quantize_rows_and_columns(y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", ["float32", "ue8m0"])
def test_same_bits_as_in_two_steps(scale: str, dtype: torch.dtype) -> None:
    modules = kernels(FILES, precision__linear__kind="fp8_block", precision__linear__scale=scale)
    for m, width in SIZES:
        check(modules, m, width, dtype)


def test_the_reference_is_both_references() -> None:
    """What CPUs run, where the kernels do not: float64 is theirs everywhere."""
    fused, quantize, swiglu, _ = kernels(FILES, precision__linear__kind="fp8_block")
    gate, up, weight = (t.double() for t in inputs(7, 100, torch.bfloat16))
    y = swiglu.reference(gate.float(), up.float())
    same(fused.swiglu_quantize_rows(gate, up), quantize.reference_rows(y))
    weighed = (y * weight[:, None]).float()
    same(fused.swiglu_quantize_rows_and_columns(gate, up, weight), quantize.reference_rows_and_columns(weighed))


def test_a_model_without_experts_has_no_weight() -> None:
    fused, quantize, swiglu = kernels(FILES[:3], "llama-3.1-8b", precision__linear__kind="fp8_block")
    gate, up, _ = inputs(9, 256, torch.bfloat16)
    same(fused.swiglu_quantize_rows(gate, up), quantize.quantize_rows(swiglu.swiglu(gate, up)))
    assert "weight" not in inspect.getsource(fused)


def test_fake_outputs_are_the_real_ones() -> None:
    fused = kernels(FILES, precision__linear__kind="fp8_block")[0]
    arguments = inputs(5, 200, torch.bfloat16)
    for op in (fused.swiglu_quantize_rows, fused.swiglu_quantize_rows_and_columns):
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


FAULTS = {
    "no gate": ("gate * tl.sigmoid(gate) * up", "tl.sigmoid(gate) * up"),
    "not rounded between": ("y.to(gate_ptr.dtype.element_ty).to(tl.float32)", "y"),
    "no weight": ("if WEIGHTED:", "if False:"),
    "one weight for all": ("weight_ptr + row, mask", "weight_ptr + 0 * row, mask"),
    "the stride of gate": ("row[:, None] * gate_stride", "row[:, None] * WIDTH"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str) -> None:
    old, new = FAULTS[fault]
    files = printed(FILES, spec_with("tiny", FP8))
    assert files["swiglu_quantize.py"].count(old) == 1
    files["swiglu_quantize.py"] = files["swiglu_quantize.py"].replace(old, new)
    modules = package(files, FILES)
    with pytest.raises(AssertionError):
        check(modules, 130, 256, torch.bfloat16)
