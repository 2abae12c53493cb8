"""kernels/fp8_quantize.py in the interpreter: the codes and scales of the reference, to the bit."""

import math

import pytest
import torch
from kernels.lab import kernels, mutated, poisoned, randn
from torch import Tensor

FORMATS = ["float32", "ue8m0"]
DTYPES = [torch.float32, torch.bfloat16]


def linear(scale: str) -> dict[str, str]:
    return {"precision__linear__kind": "fp8_block", "precision__linear__scale": scale}


def quantize(scale: str):
    (module,) = kernels(("fp8_quantize",), **linear(scale))
    return module


def bits(x: Tensor) -> Tensor:
    """The memory of x, to compare NaNs and signed zeros too."""
    return x.view({1: torch.uint8, 4: torch.int32}[x.itemsize])


def layout(x: Tensor) -> tuple[bool, bool]:
    """Whether x lies row by row, and whether column by column: the strides of a dim of one say nothing."""
    return x.is_contiguous(), x.mT.is_contiguous()


def same(actual, expected) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape and a.dtype is e.dtype and layout(a) == layout(e)
        assert torch.equal(bits(a), bits(e))


def activations(m: int, k: int, dtype: torch.dtype) -> Tensor:
    """Rows of magnitudes from 1e3 to 1e-14, every seventh zero."""
    x = randn(m, k) * torch.logspace(3, -14, m)[:, None]
    x[3::7] = 0
    return poisoned(x.to(dtype))


def check(module, m: int, k: int, dtype: torch.dtype) -> None:
    x = activations(m, k, dtype)
    same(module.quantize_rows(x), module.reference_rows(x))
    same(module.quantize_rows_and_columns(x), module.reference_rows_and_columns(x))
    same(module.quantize_blocks(x), module.reference_blocks(x))
    same(module.quantize_blocks_and_transpose(x), module.reference_blocks_and_transpose(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", FORMATS)
def test_same_bits_as_the_reference(scale: str, dtype: torch.dtype) -> None:
    for m, k in ((1, 128), (7, 100), (33, 256), (128, 128), (129, 384), (300, 72)):
        check(quantize(scale), m, k, dtype)


@pytest.mark.parametrize("scale", FORMATS)
def test_the_reference_is_the_definition(scale: str) -> None:
    """One element at a time, in Python's own numbers: act_quant with a lower floor, scales rounded up for ue8m0."""
    x = activations(4, 300, torch.float32)
    q, scales = quantize(scale).reference_rows(x)
    for row in range(4):
        for block in range(3):
            part = x[row, 128 * block : 128 * (block + 1)]
            exact = max(part.abs().max().item(), torch.tensor(1e-12).item()) / 448
            expected = 2.0 ** math.ceil(math.log2(exact)) if scale == "ue8m0" else torch.tensor(exact).item()
            assert scales[row, block].item() == expected
            codes = (part.double() / expected).to(torch.float8_e4m3fn)
            assert torch.equal(bits(q[row, 128 * block : 128 * (block + 1)]), bits(codes))


def test_codes_are_nearly_those_of_division() -> None:
    """x / scale is an ulp of float32 away, which shows where bfloat16 inputs meet the midpoint of two codes: 5e-4."""
    x = randn(512, 1024, dtype=torch.bfloat16)
    q, scale = quantize("float32").reference_rows(x)
    divided = (x.float() / scale.repeat_interleave(128, 1)).to(torch.float8_e4m3fn)
    steps = (bits(q).int() - bits(divided).int()).abs()
    assert int(steps.max()) == 1 and steps.float().mean() <= 1e-3


@pytest.mark.parametrize("scale", FORMATS)
def test_dequantize_is_within_half_a_step(scale: str) -> None:
    """e4m3 keeps 3 bits behind the leading one: 2^-4 of the value, or 2^-10 steps of the scale below 2^-6."""
    module, codes = kernels(("fp8_quantize", "fp8_codes"), **linear(scale))
    x = activations(200, 300, torch.float32)
    for q, scales in (module.reference_rows(x), module.reference_blocks(x), module.reference_blocks(x[:1])):
        x_q = codes.dequantize(q, scales)
        step = torch.maximum(x[: len(q)].abs() * 2**-4, codes.dequantize(torch.full_like(q, 2**-9), scales) / 2)
        assert bool(((x_q - x[: len(q)]).abs() <= step * 1.0001).all())


@pytest.mark.parametrize("scale", FORMATS)
def test_powers_of_two_are_kept(scale: str) -> None:
    """448 * 2^n has the scale 2^n in both formats; one bit above it, ue8m0 takes the next."""
    module = quantize(scale)
    exact = 448 * 2.0 ** torch.arange(-20, 40)
    above = torch.nextafter(exact, torch.tensor(math.inf))
    x = torch.zeros(2, 60, 128)
    x[0, :, 5], x[1, :, 77] = exact, -above
    for scales in (module.quantize_rows(x[0])[1], module.quantize_rows_and_columns(x[0])[1]):
        assert torch.equal(scales[:, 0], exact / 448)
    if scale == "ue8m0":
        assert torch.equal(module.quantize_rows(x[1])[1][:, 0], exact / 448 * 2)


def test_zero_rows_stay_zero() -> None:
    module, x = quantize("float32"), activations(200, 128, torch.bfloat16)
    x[100:] = 0
    q, scale, q_t, scale_t = module.quantize_rows_and_columns(x)
    assert not bits(q[100:]).any() and not bits(q_t[:, 100:]).any()
    assert bool(scale.isfinite().all()) and bool(scale_t.isfinite().all())


def test_scales_of_activations_lie_block_by_block() -> None:
    """Of the kernels, and of the references that CPUs run."""
    module, x = quantize("float32"), activations(200, 300, torch.bfloat16)
    for kind in ("quantize", "reference"):
        _, scale, _, scale_t = getattr(module, f"{kind}_rows_and_columns")(x)
        assert scale.shape == (200, 3) and scale.T.is_contiguous()
        assert scale_t.shape == (300, 2) and scale_t.T.is_contiguous()


def test_slices_expanded_and_transposed_inputs() -> None:
    module = quantize("float32")
    wide = randn(40, 300, dtype=torch.bfloat16)
    for x in (wide[:, 100:228], wide[::2, :128], wide[:1].expand(20, -1), wide[:, :1].expand(-1, 128), wide.T):
        same(module.quantize_rows(x), module.reference_rows(x))
        same(module.quantize_rows_and_columns(x), module.reference_rows_and_columns(x))


def test_experts_keep_their_own_blocks() -> None:
    module, w = quantize("float32"), poisoned(randn(3, 200, 130) * torch.tensor([1.0, 100, 0.01])[:, None, None])
    q, scale, q_t = module.quantize_blocks_and_transpose(w)
    same((q, scale), module.quantize_blocks(w))
    for expert in range(3):
        same((q[expert], scale[expert]), module.reference_blocks(w[expert]))
        same((q_t[expert], scale[expert].T.contiguous()), module.reference_blocks(w[expert].T))


def test_fake_outputs_are_the_real_ones() -> None:
    module, x = quantize("float32"), randn(5, 200, dtype=torch.bfloat16)
    for op in ("rows", "rows_and_columns", "blocks", "blocks_and_transpose"):
        torch.library.opcheck(getattr(module, f"quantize_{op}"), (x,), test_utils=("test_schema", "test_faketensor"))


FAULTS = {
    "no clamp of the scale": ("tl.div_rn(tl.maximum(amax, AMAX_MIN), E4M3_MAX)", "tl.div_rn(amax, E4M3_MAX)"),
    "another largest code": ("AMAX_MIN), E4M3_MAX)", "AMAX_MIN), 240.0)"),
    "rounded to bfloat16 first": ("(x * tl.div_rn(1.0, scale))", "(x * tl.div_rn(1.0, scale)).to(tl.bfloat16)"),
    "signs": ("tl.max(tl.abs(x), 0)", "tl.max(x, 0)"),
    "columns under each other's scales": ("encode(x, scale[None, :])", "encode(x, scale[:, None])"),
    "not transposed": ("tl.trans(q)", "q"),
    "scales row by row": ("scale_ptr + pid_n * num_rows + offs_m", "scale_ptr + offs_m * tl.cdiv(K, BLOCK) + pid_n"),
    "scales of columns row by row": (
        "scale_t_ptr + pid_m * K + offs_n",
        "scale_t_ptr + offs_n * tl.cdiv(num_rows, BLOCK) + pid_m",
    ),
    "the smallest block": ("scale_of(tl.max(tl.abs(w)))", "scale_of(tl.min(tl.abs(w)))"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str) -> None:
    old, new = FAULTS[fault]
    module = mutated("fp8_quantize", old, new, **linear("float32"))
    with pytest.raises(AssertionError):
        for dtype in DTYPES:
            check(module, 129, 256, dtype)
