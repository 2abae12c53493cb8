"""kernels/swiglu.py in the interpreter: forward and backward against the plain formula in float64."""

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from kernels.lab import calc_diff, kernels, mutated, poisoned, randn
from torch import Tensor

DTYPES = {torch.float32: 1e-13, torch.bfloat16: 1e-5}


LIMIT = 2.0


def formula(gate: Tensor, up: Tensor, limit: float | None = None) -> Tensor:
    """With a limit, a gate above it counts as the limit, and so does the magnitude of up."""
    if limit is not None:
        gate = torch.where(gate > limit, limit, gate)
        up = torch.where(up.abs() > limit, limit * up.detach().sign(), up)
    return F.silu(gate) * up


def check(
    module: ModuleType, shape: tuple[int, ...], dtype: torch.dtype, bound: float, limit: float | None = None
) -> None:
    gate, up = (poisoned(3 * randn(*shape, dtype=dtype, seed=seed)).requires_grad_() for seed in (0, 1))
    dy = randn(*shape, dtype=dtype, seed=2)
    y = module.swiglu(gate, up)
    assert y.shape == shape and y.dtype is dtype and y.is_contiguous()
    gradients = torch.autograd.grad(y, (gate, up), dy)

    wide = [t.detach().double().requires_grad_() for t in (gate, up)]
    y_exact = formula(*wide, limit)
    assert calc_diff(y, y_exact) <= bound
    for actual, exact in zip(gradients, torch.autograd.grad(y_exact, wide, dy.double()), strict=True):
        assert calc_diff(actual, exact) <= bound


@pytest.fixture(scope="module")
def swiglu() -> ModuleType:
    return kernels(("swiglu",))[0]


@pytest.fixture(scope="module")
def clamped() -> ModuleType:
    return kernels(("swiglu",), ffn__swiglu_limit=LIMIT)[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_formula(swiglu, dtype: torch.dtype) -> None:
    for shape in ((1, 1), (1, 4100), (7, 100), (37, 256), (2, 3, 2048), (65, 3000)):
        check(swiglu, shape, dtype, DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_clamped_equals_the_formula(clamped, dtype: torch.dtype) -> None:
    """Three in ten gates are above the limit, and half of the ups beyond it, on either side."""
    for shape in ((1, 4100), (7, 100), (65, 3000)):
        check(clamped, shape, dtype, DTYPES[dtype], LIMIT)


@pytest.mark.parametrize("limit", [None, LIMIT])
def test_the_reference_is_the_formula(swiglu, clamped, limit: float | None) -> None:
    module = clamped if limit else swiglu
    gate, up, dy = (3 * randn(5, 70, dtype=torch.float64, seed=seed) for seed in range(3))
    y = formula(gate.requires_grad_(), up.requires_grad_(), limit)
    assert calc_diff(module.reference(gate, up), y) <= 1e-15
    for actual, exact in zip(
        module.reference_backward(dy, gate, up), torch.autograd.grad(y, (gate, up), dy), strict=True
    ):
        assert calc_diff(actual, exact) <= 1e-15


def test_at_the_limit(clamped) -> None:
    """There the slope is still that of no clamp, as torch.clamp has it; and what is no number stays none."""
    gate, up = torch.tensor([2.0, 2.0, -9.0]).requires_grad_(), torch.tensor([1.0, -2.0, 2.0]).requires_grad_()
    actual = torch.autograd.grad(clamped.swiglu(gate, up).sum(), (gate, up))
    expected = torch.autograd.grad((F.silu(gate) * up).sum(), (gate, up))
    assert all(torch.allclose(one, two) for one, two in zip(actual, expected, strict=True))
    nan, one = torch.tensor([float("nan")]), torch.ones(1)
    for function in (clamped.swiglu, clamped.reference):
        assert function(nan, one).isnan() and function(one, nan).isnan()


def test_far_from_zero(swiglu) -> None:
    """sigmoid saturates without infinities in between."""
    gate = torch.tensor([[-200.0, -90, -30, 30, 90, 200]]).requires_grad_()
    up = torch.ones(1, 6)
    y = swiglu.swiglu(gate, up)
    (dgate,) = torch.autograd.grad(y.sum(), gate)
    assert torch.allclose(y, gate.clamp(min=0), atol=1e-10) and torch.allclose(dgate, (gate > 0).float(), atol=1e-10)


def test_halves_of_one_tensor(swiglu) -> None:
    both = poisoned(randn(2, 5, 128)).requires_grad_()
    gate, up = both.chunk(2, -1)
    y = swiglu.swiglu(gate, up)
    assert calc_diff(y, F.silu(gate.double()) * up.double()) <= 1e-13
    y.sum().backward()  # an expanded gradient
    wide = both.detach().double().requires_grad_()
    (F.silu(wide[..., :64]) * wide[..., 64:]).sum().backward()
    assert calc_diff(both.grad, wide.grad) <= 1e-13


def test_fake_outputs_are_the_real_ones(swiglu) -> None:
    gate, up = randn(2, 5, 128, dtype=torch.bfloat16).chunk(2, -1)
    for op, arguments in ((swiglu.swiglu, (gate, up)), (swiglu.swiglu_backward, (gate, gate, up))):
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


FAULTS = {
    "no gate": ("return gate * tl.sigmoid(gate) * up", "return tl.sigmoid(gate) * up"),
    "the slope of sigmoid": ("return dy * up * s * (1 + gate * (1 - s))\n\n\n@", "return dy * up * s * (1 - s)\n\n\n@"),
    "dgate without up": ("    s = tl.sigmoid(gate)\n    return dy * up", "    s = tl.sigmoid(gate)\n    return dy"),
    "up under another stride": ("up_ptr + offs_m * up_stride + offs_n, mask=mask, other=0.0).to(tl.float32)\n    tl",
                                "up_ptr + offs_m * 0 + offs_n, mask=mask, other=0.0).to(tl.float32)\n    tl"),
    "rounded between": ("return gate * tl.sigmoid(gate) * up", "return (gate * tl.sigmoid(gate)).to(tl.bfloat16) * up"),
}  # fmt: skip

GATE = "gate = tl.minimum(gate, LIMIT, propagate_nan=tl.PropagateNan.ALL)\n"
UP = "up = tl.clamp(up, -LIMIT, LIMIT, propagate_nan=tl.PropagateNan.ALL)\n"
CLAMP_FAULTS = {
    "gate clamped from below too": (
        f"{GATE}    {UP}    return", f"gate = tl.clamp(gate, -LIMIT, LIMIT)\n    {UP}    return"
    ),
    "up not clamped": (f"    {UP}    return", "    return"),
    "up clamped from above alone": (f"{UP}    return", "up = tl.minimum(up, LIMIT)\n    return"),
    "up not clamped in the gradient of gate": (f"    {UP}    s =", "    s ="),
    "gate not clamped in the gradient of up": (f"{GATE}    return", "return"),
    "gate has a gradient beyond the limit": ("tl.where(gate <= LIMIT, ", "tl.where(gate == gate, "),
    "up has a gradient beyond the limit": ("tl.where(tl.abs(up) <= LIMIT, ", "tl.where(up == up, "),
    "up has no gradient below zero": ("tl.abs(up) <= LIMIT", "tl.abs(up - LIMIT / 2) <= LIMIT / 2"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str) -> None:
    module = mutated("swiglu", *FAULTS[fault])
    with pytest.raises(AssertionError):
        for dtype, bound in DTYPES.items():
            check(module, (7, 100), dtype, bound)


@pytest.mark.parametrize("fault", CLAMP_FAULTS)
def test_a_planted_fault_of_the_clamp_is_caught(fault: str) -> None:
    module = mutated("swiglu", *CLAMP_FAULTS[fault], ffn__swiglu_limit=LIMIT)
    with pytest.raises(AssertionError):
        check(module, (7, 100), torch.float32, DTYPES[torch.float32], LIMIT)
